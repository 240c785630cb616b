package logs

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestLines(t *testing.T) {
	const at = `"time":"2026-11-23T14:26:30.123456789Z"}`
	const stamp = "2026-11-23T14:26:30.123456789Z "
	for name, tt := range map[string]struct{ line, want string }{
		"a line":                       {`{"log":"hello\n","stream":"stdout",` + at, stamp + "stdout F hello\n"},
		"of the other stream":          {`{"log":"hello\n","stream":"stderr",` + at, stamp + "stderr F hello\n"},
		"part of a line":               {`{"log":"hello","stream":"stdout",` + at, stamp + "stdout P hello\n"},
		"an empty line":                {`{"log":"\n","stream":"stdout",` + at, stamp + "stdout F \n"},
		"nothing":                      {`{"log":"","stream":"stdout",` + at, stamp + "stdout P \n"},
		"from a terminal":              {`{"log":"hello\r\n","stream":"stdout",` + at, stamp + "stdout F hello\r\n"},
		"escapes":                      {`{"log":"\"a\\b\/\t\u003c\u00e9\ud83d\ude00\n","stream":"stdout",` + at, stamp + "stdout F \"a\\b/\t<é😀\n"},
		"half a pair":                  {`{"log":"\ud83dx\n","stream":"stdout",` + at, stamp + "stdout F \ufffdx\n"},
		"a backslash and an n":         {`{"log":"a\\n","stream":"stdout",` + at, stamp + "stdout P a\\n\n"},
		"a backslash and a break":      {`{"log":"a\\\n","stream":"stdout",` + at, stamp + "stdout F a\\\n"},
		"breaks inside":                {`{"log":"a\nb\nc","stream":"stdout",` + at, stamp + "stdout F a\n" + stamp + "stdout F b\n" + stamp + "stdout P c\n"},
		"text that looks like the end": {`{"log":"\",\"stream\":\"stderr\",\"time\":\"x\"}\n","stream":"stdout",` + at, stamp + `stdout F ","stream":"stderr","time":"x"}` + "\n"},
		"attributes": {`{"log":"a\n","stream":"stdout","attrs":{"tag":"x\"y","stream":"stderr"},` + at,
			stamp + "stdout F a\n"},
		"after a hole": {"\x00\x00\x00" + `{"log":"a\n","stream":"stdout",` + at, stamp + "stdout F a\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := appendLine([]byte("before "), []byte(tt.line))
			if !ok || string(got) != "before "+tt.want {
				t.Errorf("got %q, %v\nwant %q", got, ok, "before "+tt.want)
			}
		})
	}
	for name, line := range map[string]string{
		"empty":       ``,
		"torn":        `{"log":"hello\n","stream":"std`,
		"not ours":    `hello`,
		"no time":     `{"log":"hello\n","stream":"stdout"}`,
		"bad escape":  `{"log":"\x\n","stream":"stdout",` + at,
		"torn escape": `{"log":"\u00","stream":"stdout",` + at,
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := appendLine(nil, []byte(line)); ok || len(got) > 0 {
				t.Errorf("got %q, %v of what cannot be read", got, ok)
			}
		})
	}
}

// What the Engine may write is what encoding/json may: both readers agree.
func FuzzLines(f *testing.F) {
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
		want, ok := appendOddLine(nil, line)
		if !ok {
			t.Fatalf("the slow reader cannot read %q", line)
		}
		got, ok := appendLine(nil, line)
		if !ok || !bytes.Equal(got, want) {
			t.Errorf("%q:\ngot  %q, %v\nwant %q", line, got, ok, want)
		}
		if n := strings.Count(string(got), "\n"); n != max(strings.Count(text, "\n"), 1) && n != strings.Count(text, "\n")+1 {
			t.Errorf("%d lines of %q", n, text)
		}
	})
}

func BenchmarkLine(b *testing.B) {
	line := []byte(`{"log":"` + strings.Repeat("x", 100) + `\n","stream":"stdout","time":"2026-11-23T14:26:30.123456789Z"}`)
	var out []byte
	for b.Loop() {
		out, _ = appendLine(out[:0], line)
	}
}
