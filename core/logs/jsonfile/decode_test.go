package jsonfile

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Docker writes JSON, so the fast decoder must return what encoding/json returns.
func FuzzDecode(f *testing.F) {
	f.Add("hello\n", true, "")
	f.Add("a\\\"\x00\xff<é😀\n", false, "x")
	f.Fuzz(func(t *testing.T, text string, stdout bool, attr string) {
		stream := map[bool]string{true: "stdout", false: "stderr"}[stdout]
		var attrs map[string]string
		if attr != "" {
			attrs = map[string]string{"tag": attr}
		}
		line, err := json.Marshal(struct {
			Log    string            `json:"log"`
			Stream string            `json:"stream"`
			Attrs  map[string]string `json:"attrs,omitempty"`
			Time   time.Time         `json:"time"`
		}{text, stream, attrs, time.Unix(1700000000, 5).UTC()})
		if err != nil {
			t.Skip()
		}
		want, ok := decodeJSON(line)
		if !ok {
			t.Fatalf("encoding/json cannot decode %q", line)
		}
		got, ok := new(Decoder).Decode(line)
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Errorf("Decode(%q) returns %v, differs from encoding/json (-want +got):\n%s", line, ok, diff)
		}
	})
}

// A Decoder returns only what the line contains, also after it has decoded a longer one.
func TestDecoderIsReusable(t *testing.T) {
	var d Decoder
	const trailer = `","stream":"stderr","time":"2026-11-23T14:26:30.123456789Z"}`
	for _, text := range []string{strings.Repeat("x", 1000), "short", ""} {
		e, ok := d.Decode([]byte(`{"log":"` + text + trailer))
		if !ok || string(e.Text) != text || e.Stream != "stderr" || string(e.Time) != "2026-11-23T14:26:30.123456789Z" {
			t.Errorf("%.20q: decoded %v as %s %s %.20q", text, ok, e.Time, e.Stream, e.Text)
		}
	}
	if e, ok := d.Decode([]byte(`{"log":"x","stream":"stdin","time":"2026-11-23T14:26:30Z"}`)); ok {
		t.Errorf("decoded a line of an unknown stream: %+v", e)
	}
}
