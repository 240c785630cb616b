package logs

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/core/logs/crifile"
	"berth/core/logs/dockerlog"
	"berth/core/logs/jsonfile"
	"berth/core/logs/localfile"
)

// convertLine appends the records of the only line of a log to prefix.
func convertLine(prefix, line string) (string, bool) {
	records, ok := appendLine([]byte(prefix), line, &jsonfile.Decoder{}, &crifile.OpenLines{})
	return string(records), ok
}

// appendLine appends the records of a line of a json-file, given without its line break.
func appendLine(dst []byte, line string, d *jsonfile.Decoder, open *crifile.OpenLines) ([]byte, bool) {
	entry, length, ok := d.Next([]byte(line + "\n"))
	if !ok {
		return dst, length != len(line)+1
	}
	return appendEntry(dst, entry, open), length == len(line)+1
}

func TestAppendLine(t *testing.T) {
	const at = `"time":"2026-11-23T14:26:30.123456789Z"}`
	long := strings.Repeat("x", dockerlog.PieceSize)
	const stamp = "2026-11-23T14:26:30.123456789Z "
	for name, tt := range map[string]struct{ line, want string }{
		"a line":                           {`{"log":"hello\n","stream":"stdout",` + at, stamp + "stdout F hello\n"},
		"of stderr":                        {`{"log":"hello\n","stream":"stderr",` + at, stamp + "stderr F hello\n"},
		"last without a break":             {`{"log":"hello","stream":"stdout",` + at, stamp + "stdout F hello\n"},
		"piece of a line":                  {`{"log":"` + long + `","stream":"stdout",` + at, stamp + "stdout P " + long + "\n"},
		"a byte less than a piece":         {`{"log":"` + long[1:] + `","stream":"stdout",` + at, stamp + "stdout F " + long[1:] + "\n"},
		"an empty line":                    {`{"log":"\n","stream":"stdout",` + at, stamp + "stdout F \n"},
		"no text":                          {`{"log":"","stream":"stdout",` + at, ""},
		"from a terminal":                  {`{"log":"hello\r\n","stream":"stdout",` + at, stamp + "stdout F hello\r\n"},
		"escapes":                          {`{"log":"\"a\\b\/\t\u003c\u00e9\ud83d\ude00\n","stream":"stdout",` + at, stamp + "stdout F \"a\\b/\t<é😀\n"},
		"half a surrogate pair":            {`{"log":"\ud83dx\n","stream":"stdout",` + at, stamp + "stdout F \ufffdx\n"},
		"a backslash and an n":             {`{"log":"a\\n","stream":"stdout",` + at, stamp + "stdout F a\\n\n"},
		"a backslash and a break":          {`{"log":"a\\\n","stream":"stdout",` + at, stamp + "stdout F a\\\n"},
		"line breaks in the text":          {`{"log":"a\nb\nc","stream":"stdout",` + at, stamp + "stdout F a\n" + stamp + "stdout F b\n" + stamp + "stdout F c\n"},
		"text that looks like the trailer": {`{"log":"\",\"stream\":\"stderr\",\"time\":\"x\"}\n","stream":"stdout",` + at, stamp + `stdout F ","stream":"stderr","time":"x"}` + "\n"},
		"attributes": {`{"log":"a\n","stream":"stdout","attrs":{"tag":"x\"y","stream":"stderr"},` + at,
			stamp + "stdout F a\n"},
		"after zero bytes": {"\x00\x00\x00" + `{"log":"a\n","stream":"stdout",` + at, stamp + "stdout F a\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := convertLine("before ", tt.line)
			if !ok || got != "before "+tt.want {
				t.Errorf("got %q, %v\nwant %q", got, ok, "before "+tt.want)
			}
		})
	}
	for name, line := range map[string]string{
		"empty":       ``,
		"torn":        `{"log":"hello\n","stream":"std`,
		"not JSON":    `hello`,
		"no time":     `{"log":"hello\n","stream":"stdout"}`,
		"bad escape":  `{"log":"\x\n","stream":"stdout",` + at,
		"torn escape": `{"log":"\u00","stream":"stdout",` + at,
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := convertLine("", line); ok || len(got) > 0 {
				t.Errorf("got %q, %v of a line that cannot be decoded", got, ok)
			}
		})
	}
}

// A line ends with its stream, and where an entry with another time follows: pieces of the
// same line have the same time.
func TestAppendLineEndsInterruptedLines(t *testing.T) {
	long := strings.Repeat("x", dockerlog.PieceSize)
	line := func(stream, text, at string) string {
		return fmt.Sprintf(`{"log":"%s","stream":"%s","time":"2026-11-23T14:26:3%s.000000001Z"}`, text, stream, at)
	}
	for name, tt := range map[string]struct{ lines, want []string }{
		"continues":                           {[]string{line("stdout", long, "0"), line("stdout", long, "0"), line("stdout", `end\n`, "0")}, []string{"0 stdout P long", "0 stdout P long", "0 stdout F end"}},
		"ends without a break":                {[]string{line("stdout", long, "0"), line("stdout", "end", "0")}, []string{"0 stdout P long", "0 stdout F end"}},
		"ends with a full piece":              {[]string{line("stdout", long, "0")}, []string{"0 stdout P long", "0 stdout F "}},
		"both streams":                        {[]string{line("stderr", long, "0"), line("stdout", long, "1")}, []string{"0 stderr P long", "1 stdout P long", "1 stdout F ", "0 stderr F "}},
		"one stream of two":                   {[]string{line("stderr", long, "0"), line("stdout", "a", "1")}, []string{"0 stderr P long", "1 stdout F a", "0 stderr F "}},
		"rest is missing":                     {[]string{line("stdout", long, "0"), line("stdout", `next\n`, "1")}, []string{"0 stdout P long", "0 stdout F ", "1 stdout F next"}},
		"rest is missing, then a piece":       {[]string{line("stdout", long, "0"), line("stdout", long, "1")}, []string{"0 stdout P long", "0 stdout F ", "1 stdout P long", "1 stdout F "}},
		"not interrupted by the other stream": {[]string{line("stdout", long, "0"), line("stderr", `b\n`, "1"), line("stdout", `end\n`, "0")}, []string{"0 stdout P long", "1 stderr F b", "0 stdout F end"}},
		"with attributes": {[]string{strings.Replace(line("stdout", long, "0"), `"time"`, `"attrs":{"a":"b"},"time"`, 1), line("stdout", `end\n`, "0")},
			[]string{"0 stdout P long", "0 stdout F end"}},
	} {
		t.Run(name, func(t *testing.T) {
			var open crifile.OpenLines
			var decoder jsonfile.Decoder
			var got []byte
			for _, l := range tt.lines {
				var ok bool
				if got, ok = appendLine(got, l, &decoder, &open); !ok {
					t.Errorf("cannot be decoded: %.100q", l)
				}
			}
			got = open.AppendEnds(got)
			text := strings.NewReplacer(long, "long", "2026-11-23T14:26:3", "", ".000000001Z", "").Replace(string(got))
			if want := strings.Join(tt.want, "\n") + "\n"; text != want {
				t.Errorf("got\n%.500s\nwant\n%s", text, want)
			}
			if open.Any() {
				t.Errorf("lines still open: %v", open)
			}
		})
	}
}

// Each line break of the text becomes one record, and the rest becomes one more.
func FuzzAppendLine(f *testing.F) {
	f.Add("hello\n", true)
	f.Add("a\\\"\x00\xff<é😀\n\nb", false)
	f.Fuzz(func(t *testing.T, text string, stdout bool) {
		line, err := json.Marshal(struct {
			Log    string    `json:"log"`
			Stream string    `json:"stream"`
			Time   time.Time `json:"time"`
		}{text, map[bool]string{true: "stdout", false: "stderr"}[stdout], time.Unix(1700000000, 5).UTC()})
		if err != nil {
			t.Skip()
		}
		got, ok := convertLine("", string(line))
		if !ok {
			t.Errorf("%q cannot be decoded", line)
		}
		if n := strings.Count(got, "\n"); n != strings.Count(text, "\n") && n != strings.Count(text, "\n")+1 {
			t.Errorf("%d records of %q", n, text)
		}
	})
}

// BenchmarkConvert is the work for each line between reading Docker's file and writing the kubelet's.
func BenchmarkConvert(b *testing.B) {
	const stamp = 1700000000123456789
	text := strings.Repeat("x", 100)
	local := []byte("\x0a\x06stdout\x10")
	local = append(binary.AppendUvarint(local, stamp), 0x1a, byte(len(text)))
	local = append(local, text...)
	length := binary.BigEndian.AppendUint32(nil, uint32(len(local)))
	for name, bm := range map[string]struct {
		entry   []byte
		decoder decoder
	}{
		"json-file": {[]byte(`{"log":"` + text + `\n","stream":"stdout","time":"2023-11-14T22:13:20.123456789Z"}` + "\n"), &jsonfile.Decoder{}},
		"local":     {slices.Concat(length, local, length), &localfile.Decoder{}},
	} {
		b.Run(name, func(b *testing.B) {
			var out []byte
			var open crifile.OpenLines
			b.ReportAllocs()
			for b.Loop() {
				entry, n, ok := bm.decoder.Next(bm.entry)
				if out = appendEntry(out[:0], entry, &open); !ok || n != len(bm.entry) || len(out) != 141 {
					b.Fatalf("%v, %d bytes: %q", ok, n, out)
				}
			}
		})
	}
}
