package logs

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// What surrounds the three fields that the Engine writes in a line of its
// json-file, in its order.
var (
	beforeLog    = []byte(`{"log":"`)
	beforeStream = []byte(`","stream":"`)
	beforeTime   = []byte(`","time":"`)
	afterTime    = []byte(`"}`)
)

// tail is the most that follows the text in a line as the Engine writes it
// without attributes.
const tail = 96

// appendLine appends to dst the records of the CRI that tell what line, one of a
// json-file without its end, does. It reports whether line could be read.
func (o *openLines) appendLine(dst, line []byte) ([]byte, bool) {
	// The machine lost power while this was written, or somebody truncated it.
	line = bytes.TrimLeft(line, "\x00")
	if !bytes.HasPrefix(line, beforeLog) {
		return o.appendOddLine(dst, line)
	}
	// A quote in the text is escaped, so this is the end of it wherever it is.
	from := max(len(line)-tail, 0)
	end := bytes.Index(line[from:], beforeStream)
	if end < 0 {
		return o.appendOddLine(dst, line)
	}
	end += from
	rest := line[end+len(beforeStream):]
	stream, rest, ok := bytes.Cut(rest, beforeTime)
	if !ok || string(stream) != stdout && string(stream) != stderr || !bytes.HasSuffix(rest, afterTime) {
		return o.appendOddLine(dst, line)
	}
	stamp := rest[:len(rest)-len(afterTime)]
	if end <= len(beforeLog) || bytes.IndexByte(stamp, '"') >= 0 {
		return o.appendOddLine(dst, line)
	}
	raw := line[len(beforeLog):end]
	full := endsLine(raw)
	if full {
		raw = raw[:len(raw)-len(`\n`)]
	}
	begin, before := len(dst), *o
	dst = o.enter(dst, stream, stamp)
	dst = appendHead(dst, stamp, stream, false)
	text := len(dst)
	dst, ok = unescape(dst, raw)
	if !ok || bytes.IndexByte(dst[text:], '\n') >= 0 {
		*o = before
		return o.appendOddLine(dst[:begin], line)
	}
	open := !full && len(dst)-text >= pieceSize
	if !open {
		dst[text-len("P ")] = 'F'
	}
	o.set(stream, stamp, open)
	return append(dst, '\n'), true
}

// endsLine reports whether the JSON string raw ends in a line break.
func endsLine(raw []byte) bool {
	if !bytes.HasSuffix(raw, []byte(`\n`)) {
		return false
	}
	escapes := 0
	for i := len(raw) - 2; i >= 0 && raw[i] == '\\'; i-- {
		escapes++
	}
	return escapes%2 == 1
}

// appendOddLine is appendLine for a line that is not in the usual form, as
// when the Engine has been told to add attributes.
func (o *openLines) appendOddLine(dst, line []byte) ([]byte, bool) {
	var said struct {
		Log    string `json:"log"`
		Stream string `json:"stream"`
		Time   string `json:"time"`
	}
	if err := json.Unmarshal(line, &said); err != nil || said.Time == "" || said.Stream != stdout && said.Stream != stderr {
		return dst, false
	}
	if said.Log == "" {
		return dst, true
	}
	stream, stamp := []byte(said.Stream), []byte(said.Time)
	return o.appendPiece(o.enter(dst, stream, stamp), stamp, stream, []byte(said.Log)), true
}

// unescape appends to dst what the JSON string raw, without its quotes, stands
// for.
func unescape(dst, raw []byte) ([]byte, bool) {
	for {
		plain := bytes.IndexByte(raw, '\\')
		if plain < 0 {
			return append(dst, raw...), true
		}
		dst = append(dst, raw[:plain]...)
		raw = raw[plain+1:]
		if len(raw) == 0 {
			return dst, false
		}
		c := raw[0]
		raw = raw[1:]
		switch c {
		case '"', '\\', '/':
			dst = append(dst, c)
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'u':
			r, ok := hex4(raw)
			if !ok {
				return dst, false
			}
			raw = raw[4:]
			if utf16.IsSurrogate(r) {
				// Half a pair stands for nothing, as in encoding/json.
				low := rune(utf8.RuneError)
				if len(raw) >= 6 && raw[0] == '\\' && raw[1] == 'u' {
					low, _ = hex4(raw[2:])
				}
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					raw = raw[6:]
				}
			}
			dst = utf8.AppendRune(dst, r)
		default:
			return dst, false
		}
	}
}

// hex4 reads four hexadecimal digits.
func hex4(raw []byte) (rune, bool) {
	if len(raw) < 4 {
		return utf8.RuneError, false
	}
	n, err := strconv.ParseUint(string(raw[:4]), 16, 16)
	return rune(n), err == nil
}
