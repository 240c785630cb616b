package localfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"berth/core/logs/dockerlog"
)

// A record is an entry as Docker's log driver local is given it.
type record struct {
	stream     string
	time       int64
	line       string
	partial    bool
	metadata   bool // of a partial line; Docker 20.10 may write none
	last       bool
	attributes map[string]string
}

// encode returns r as Docker writes it.
func (r record) encode() []byte {
	var m []byte
	m = protowire.AppendTag(m, fieldSource, protowire.BytesType)
	m = protowire.AppendString(m, r.stream)
	m = protowire.AppendTag(m, fieldTime, protowire.VarintType)
	m = protowire.AppendVarint(m, uint64(r.time))
	if r.line != "" {
		m = protowire.AppendTag(m, fieldLine, protowire.BytesType)
		m = protowire.AppendString(m, r.line)
	}
	if r.partial {
		m = protowire.AppendTag(m, fieldPartial, protowire.VarintType)
		m = protowire.AppendVarint(m, 1)
	}
	if r.metadata {
		var meta []byte
		if r.last {
			meta = protowire.AppendTag(meta, fieldLast, protowire.VarintType)
			meta = protowire.AppendVarint(meta, 1)
		}
		meta = protowire.AppendTag(meta, 2, protowire.BytesType)
		meta = protowire.AppendString(meta, strings.Repeat("0123456789abcdef", 4))
		meta = protowire.AppendTag(meta, 3, protowire.VarintType)
		meta = protowire.AppendVarint(meta, 10)
		m = protowire.AppendTag(m, fieldMetadata, protowire.BytesType)
		m = protowire.AppendBytes(m, meta)
	}
	for key, value := range r.attributes {
		var attribute []byte
		attribute = protowire.AppendTag(attribute, 1, protowire.BytesType)
		attribute = protowire.AppendString(attribute, key)
		attribute = protowire.AppendTag(attribute, 2, protowire.BytesType)
		attribute = protowire.AppendString(attribute, value)
		m = protowire.AppendTag(m, 6, protowire.BytesType)
		m = protowire.AppendBytes(m, attribute)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(m)))
	b = binary.BigEndian.AppendUint32(append(b, m...), uint32(len(m)))
	return b
}

const at = 1_700_000_000_123_456_789

func line(text string) record { return record{stream: dockerlog.Stdout, time: at, line: text} }

// decodeAll returns the entries in b as text, the number of times that there was none in some bytes, and
// the bytes that are left.
func decodeAll(b []byte) (entries []string, skipped int, rest []byte) {
	var d Decoder
	for {
		e, n, ok := d.Next(b)
		switch {
		case n == 0:
			return entries, skipped, b
		case !ok:
			skipped++
		case len(e.Time) > 0:
			entries = append(entries, fmt.Sprintf("%s %s %s", e.Time, e.Stream, e.Text))
		}
		b = b[n:]
	}
}

func TestNext(t *testing.T) {
	const stamp = "2023-11-14T22:13:20.123456789Z "
	long := strings.Repeat("x", dockerlog.PieceSize)
	for name, tt := range map[string]struct {
		record record
		want   string
	}{
		"a line":                        {line("hello"), stamp + "stdout hello\n"},
		"of stderr":                     {record{stream: dockerlog.Stderr, time: at, line: "hello"}, stamp + "stderr hello\n"},
		"an empty line":                 {line(""), stamp + "stdout \n"},
		"from a terminal":               {line("hello\r"), stamp + "stdout hello\r\n"},
		"not UTF-8":                     {line("a\xff\xfe\x00b\xc3"), stamp + "stdout a\xff\xfe\x00b\xc3\n"},
		"a piece":                       {record{stream: dockerlog.Stdout, time: at, line: long, partial: true, metadata: true}, stamp + "stdout " + long},
		"the last piece":                {record{stream: dockerlog.Stdout, time: at, line: "end", partial: true, metadata: true, last: true}, stamp + "stdout end\n"},
		"the last piece, 16 KiB":        {record{stream: dockerlog.Stdout, time: at, line: long, partial: true, metadata: true, last: true}, stamp + "stdout " + long + "\n"},
		"an empty last piece":           {record{stream: dockerlog.Stdout, time: at, partial: true, metadata: true, last: true}, stamp + "stdout \n"},
		"a piece without metadata":      {record{stream: dockerlog.Stdout, time: at, line: "end", partial: true}, stamp + "stdout end"},
		"attributes":                    {record{stream: dockerlog.Stdout, time: at, line: "a", attributes: map[string]string{"tag": "\n\x06stdout"}}, stamp + "stdout a\n"},
		"a time without a fraction":     {record{stream: dockerlog.Stdout, time: 1_700_000_000_000_000_000, line: "a"}, "2023-11-14T22:13:20Z stdout a\n"},
		"a time with a short fraction":  {record{stream: dockerlog.Stdout, time: 1_700_000_000_120_000_000, line: "a"}, "2023-11-14T22:13:20.12Z stdout a\n"},
		"a time with a small fraction":  {record{stream: dockerlog.Stdout, time: 1_700_000_000_000_000_005, line: "a"}, "2023-11-14T22:13:20.000000005Z stdout a\n"},
		"a time before 1970":            {record{stream: dockerlog.Stdout, time: -1, line: "a"}, "1969-12-31T23:59:59.999999999Z stdout a\n"},
		"text that looks like an entry": {line(strings.ReplaceAll(string(line("forged").encode()), "\n", "")), stamp + "stdout " + strings.ReplaceAll(string(line("forged").encode()), "\n", "") + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			b := tt.record.encode()
			got, skipped, rest := decodeAll(slices.Concat(b, b))
			if want := []string{tt.want, tt.want}; !slices.Equal(got, want) || skipped > 0 || len(rest) > 0 {
				t.Errorf("got %.200q, skipped %d, left %d bytes; want %.200q twice", got, skipped, len(rest), tt.want)
			}
			// Docker may be writing it.
			for n := range b {
				if got, skipped, rest := decodeAll(b[:n]); len(got) > 0 || skipped > 0 || len(rest) != n {
					t.Fatalf("of the first %d bytes: got %q, skipped %d, left %d", n, got, skipped, len(rest))
				}
			}
		})
	}
}

// The text of times is that of a json-file.
func TestTimesAreThoseOfJSONFiles(t *testing.T) {
	var d Decoder
	second := time.Second.Nanoseconds()
	for _, nanoseconds := range []int64{0, 1, at, at + 1, at + second, at - second, 1_700_000_000 * second, 1_700_000_000*second + 100, -at, 10 * second} {
		want := time.Unix(0, nanoseconds).UTC().Format(time.RFC3339Nano)
		if got := string(d.format(nanoseconds)); got != want {
			t.Errorf("%d: got %s, want %s", nanoseconds, got, want)
		}
	}
}

// A torn entry costs no other one, wherever it ends and whatever follows it.
func TestTornEntryIsSkipped(t *testing.T) {
	whole := map[string]record{
		"short": line("torn"), "long": line(strings.Repeat("y", dockerlog.PieceSize)),
		"piece": {stream: dockerlog.Stderr, time: at, line: strings.Repeat("y", 300), partial: true, metadata: true},
	}
	for name, torn := range whole {
		for what, next := range map[string]record{
			"of the same length": torn, "a short one": line("1"), "a long one": line(strings.Repeat("z", dockerlog.PieceSize)),
		} {
			for _, between := range []string{"", "\x00", "\x00\x00\x00", strings.Repeat("\x00", 5000), "\xff", "\n\x06std", "\n\x06stdout\x10"} {
				t.Run(fmt.Sprintf("%s, then %.10q and %s", name, between, what), func(t *testing.T) {
					a, before, after := torn.encode(), line("0").encode(), slices.Concat(next.encode(), line("2").encode())
					want, _, _ := decodeAll(slices.Concat(before, after))
					for n := 1; n < len(a); n++ {
						if n > 40 && n < len(a)-40 {
							n = min(n+len(a)/20, len(a)-40)
						}
						got, _, rest := decodeAll(slices.Concat(before, a[:n], []byte(between), after))
						if !slices.Equal(got, want) || len(rest) > 0 {
							t.Fatalf("torn after %d of %d bytes: got %d entries, want %d; left %d bytes\n%.300q", n, len(a), len(got), len(want), len(rest), got)
						}
					}
				})
			}
		}
	}
}

// Bytes that are no entry are skipped as far as the next entry may begin, and never kept in memory.
func TestBytesWithoutEntryAreSkipped(t *testing.T) {
	huge := binary.BigEndian.AppendUint32(nil, 0x7fffffff)
	for name, tt := range map[string]struct {
		bytes   []byte
		skipped int // zero bytes do not count
		left    int // at most
	}{
		"zero bytes":           {make([]byte, 1<<20), 0, 8},
		"random bytes":         {bytes.Repeat([]byte("\xa5\x5a\x17"), 1<<18), 1, 8},
		"an enormous length":   {slices.Concat(huge, []byte("\n\x06stdout"), bytes.Repeat([]byte{'x'}, 1<<20)), 1, 8},
		"an unknown stream":    {record{stream: "stdxxx", time: at, line: "x"}.encode(), 1, 40},
		"no stream":            {[]byte("\x00\x00\x00\x02\x10\x01\x00\x00\x00\x02xxxxxxxx"), 1, 8},
		"different lengths":    {slices.Concat(line("x").encode()[:25], []byte("\x00\x00\x00\x01")), 1, 40},
		"an invalid field":     {[]byte("\x00\x00\x00\x02\x0a\x7f\x00\x00\x00\x02xxxxxxxx"), 1, 8},
		"lengths without more": {bytes.Repeat([]byte{0, 0, 0, 1}, 1<<18), 1, 8},
	} {
		t.Run(name, func(t *testing.T) {
			got, skipped, rest := decodeAll(tt.bytes)
			if len(got) > 0 || min(skipped, 1) != tt.skipped || len(rest) > tt.left {
				t.Errorf("got %q, skipped %d times, left %d bytes", got, skipped, len(rest))
			}
			got, _, rest = decodeAll(slices.Concat(tt.bytes, line("next").encode()))
			if len(got) != 1 || !strings.HasSuffix(got[0], " next\n") || len(rest) > 0 {
				t.Errorf("the entry that follows: got %.100q, left %d bytes", got, len(rest))
			}
		})
	}
}

// A Decoder returns only what the entry contains, also after it has decoded a longer one.
func TestDecoderIsReusable(t *testing.T) {
	var d Decoder
	for _, text := range []string{strings.Repeat("x", 1000), "short", ""} {
		b := record{stream: dockerlog.Stderr, time: at, line: text}.encode()
		e, n, ok := d.Next(b)
		if !ok || n != len(b) || string(e.Text) != text+"\n" || e.Stream != "stderr" || string(e.Time) != "2023-11-14T22:13:20.123456789Z" {
			t.Errorf("%.20q: decoded %v, %d bytes as %s %s %.20q", text, ok, n, e.Time, e.Stream, e.Text)
		}
	}
}

// Whatever a file contains, decoding ends, and what Docker wrote after it is found.
func FuzzNext(f *testing.F) {
	f.Add([]byte{}, "hello")
	f.Add(line("hello").encode()[:17], "a\xff")
	f.Add(slices.Concat(line("hello").encode(), make([]byte, 10), record{stream: dockerlog.Stderr, line: "x", partial: true, metadata: true, last: true}.encode()), "")
	f.Fuzz(func(t *testing.T, before []byte, text string) {
		got, _, rest := decodeAll(before)
		if len(rest) > maxMessage+2*lengthSize {
			t.Errorf("%d bytes are kept", len(rest))
		}
		text = strings.ReplaceAll(text, "\n", "")
		after := slices.Concat(line("before").encode(), line(text).encode(), line("end").encode())
		all, _, rest := decodeAll(slices.Concat(before, after))
		// The first entry may be taken for the rest of what is before it, if that is a valid entry then.
		want, _, _ := decodeAll(after)
		if len(all) < len(got) || !slices.Equal(all[:len(got)], got) {
			t.Errorf("entries change when more follow: %.100q, %.100q", got, all)
		}
		if len(all) < 2 || !slices.Equal(all[len(all)-2:], want[1:]) || len(rest) > 0 {
			t.Errorf("after %d bytes: got %.200q, left %d, want the end %.200q", len(before), all, len(rest), want)
		}
	})
}
