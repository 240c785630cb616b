package logs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestLines(t *testing.T) {
	const at = `"time":"2026-11-23T14:26:30.123456789Z"}`
	long := strings.Repeat("x", pieceSize)
	const stamp = "2026-11-23T14:26:30.123456789Z "
	for name, tt := range map[string]struct{ line, want string }{
		"a line":                       {`{"log":"hello\n","stream":"stdout",` + at, stamp + "stdout F hello\n"},
		"of the other stream":          {`{"log":"hello\n","stream":"stderr",` + at, stamp + "stderr F hello\n"},
		"the last of its stream":       {`{"log":"hello","stream":"stdout",` + at, stamp + "stdout F hello\n"},
		"part of a line":               {`{"log":"` + long + `","stream":"stdout",` + at, stamp + "stdout P " + long + "\n"},
		"a byte less than a part":      {`{"log":"` + long[1:] + `","stream":"stdout",` + at, stamp + "stdout F " + long[1:] + "\n"},
		"an empty line":                {`{"log":"\n","stream":"stdout",` + at, stamp + "stdout F \n"},
		"nothing":                      {`{"log":"","stream":"stdout",` + at, ""},
		"from a terminal":              {`{"log":"hello\r\n","stream":"stdout",` + at, stamp + "stdout F hello\r\n"},
		"escapes":                      {`{"log":"\"a\\b\/\t\u003c\u00e9\ud83d\ude00\n","stream":"stdout",` + at, stamp + "stdout F \"a\\b/\t<é😀\n"},
		"half a pair":                  {`{"log":"\ud83dx\n","stream":"stdout",` + at, stamp + "stdout F \ufffdx\n"},
		"a backslash and an n":         {`{"log":"a\\n","stream":"stdout",` + at, stamp + "stdout F a\\n\n"},
		"a backslash and a break":      {`{"log":"a\\\n","stream":"stdout",` + at, stamp + "stdout F a\\\n"},
		"breaks inside":                {`{"log":"a\nb\nc","stream":"stdout",` + at, stamp + "stdout F a\n" + stamp + "stdout F b\n" + stamp + "stdout F c\n"},
		"text that looks like the end": {`{"log":"\",\"stream\":\"stderr\",\"time\":\"x\"}\n","stream":"stdout",` + at, stamp + `stdout F ","stream":"stderr","time":"x"}` + "\n"},
		"attributes": {`{"log":"a\n","stream":"stdout","attrs":{"tag":"x\"y","stream":"stderr"},` + at,
			stamp + "stdout F a\n"},
		"after a hole": {"\x00\x00\x00" + `{"log":"a\n","stream":"stdout",` + at, stamp + "stdout F a\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := new(openLines).appendLine([]byte("before "), []byte(tt.line))
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
			if got, ok := new(openLines).appendLine(nil, []byte(line)); ok || len(got) > 0 {
				t.Errorf("got %q, %v of what cannot be read", got, ok)
			}
		})
	}
}

// A line ends where its stream does, and where the Engine goes on with another
// one: pieces of the same line have the same time.
func TestLinesEnd(t *testing.T) {
	long := strings.Repeat("x", pieceSize)
	line := func(stream, text, at string) string {
		return fmt.Sprintf(`{"log":"%s","stream":"%s","time":"2026-11-23T14:26:3%s.000000001Z"}`, text, stream, at)
	}
	for name, tt := range map[string]struct{ lines, want []string }{
		"goes on":                  {[]string{line("stdout", long, "0"), line("stdout", long, "0"), line("stdout", `end\n`, "0")}, []string{"0 stdout P long", "0 stdout P long", "0 stdout F end"}},
		"ends without a break":     {[]string{line("stdout", long, "0"), line("stdout", "end", "0")}, []string{"0 stdout P long", "0 stdout F end"}},
		"ends with a whole piece":  {[]string{line("stdout", long, "0")}, []string{"0 stdout P long", "0 stdout F "}},
		"both streams":             {[]string{line("stderr", long, "0"), line("stdout", long, "1")}, []string{"0 stderr P long", "1 stdout P long", "1 stdout F ", "0 stderr F "}},
		"one stream of two":        {[]string{line("stderr", long, "0"), line("stdout", "a", "1")}, []string{"0 stderr P long", "1 stdout F a", "0 stderr F "}},
		"the rest has been lost":   {[]string{line("stdout", long, "0"), line("stdout", `next\n`, "1")}, []string{"0 stdout P long", "0 stdout F ", "1 stdout F next"}},
		"lost, then a part":        {[]string{line("stdout", long, "0"), line("stdout", long, "1")}, []string{"0 stdout P long", "0 stdout F ", "1 stdout P long", "1 stdout F "}},
		"the other stream is none": {[]string{line("stdout", long, "0"), line("stderr", `b\n`, "1"), line("stdout", `end\n`, "0")}, []string{"0 stdout P long", "1 stderr F b", "0 stdout F end"}},
		"with attributes": {[]string{strings.Replace(line("stdout", long, "0"), `"time"`, `"attrs":{"a":"b"},"time"`, 1), line("stdout", `end\n`, "0")},
			[]string{"0 stdout P long", "0 stdout F end"}},
	} {
		t.Run(name, func(t *testing.T) {
			var open openLines
			var got []byte
			for _, l := range tt.lines {
				var ok bool
				if got, ok = open.appendLine(got, []byte(l)); !ok {
					t.Errorf("cannot be read: %.100q", l)
				}
			}
			got = open.end(got)
			text := strings.NewReplacer(long, "long", "2026-11-23T14:26:3", "", ".000000001Z", "").Replace(string(got))
			if want := strings.Join(tt.want, "\n") + "\n"; text != want {
				t.Errorf("got\n%.500s\nwant\n%s", text, want)
			}
			if open.any() {
				t.Errorf("open in the end: %v", open)
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
		want, ok := new(openLines).appendOddLine(nil, line)
		if !ok {
			t.Fatalf("the slow reader cannot read %q", line)
		}
		got, ok := new(openLines).appendLine(nil, line)
		if !ok || !bytes.Equal(got, want) {
			t.Errorf("%q:\ngot  %q, %v\nwant %q", line, got, ok, want)
		}
		if n := strings.Count(string(got), "\n"); n != strings.Count(text, "\n") && n != strings.Count(text, "\n")+1 {
			t.Errorf("%d lines of %q", n, text)
		}
	})
}

func BenchmarkLine(b *testing.B) {
	line := []byte(`{"log":"` + strings.Repeat("x", 100) + `\n","stream":"stdout","time":"2026-11-23T14:26:30.123456789Z"}`)
	var out []byte
	var open openLines
	for b.Loop() {
		out, _ = open.appendLine(out[:0], line)
	}
}
