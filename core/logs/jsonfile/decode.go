// Package jsonfile decodes the log files that Docker's log driver json-file writes: lines of
// JSON. core/logs/logfile reads them.
package jsonfile

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"berth/core/logs/dockerlog"
)

// The bytes around the three fields that Docker writes in a line, in Docker's order.
//
// See MarshalJSONBuf in moby's daemon/logger/jsonfilelog/jsonlog/jsonlogbytes.go.
var (
	beforeLog    = []byte(`{"log":"`)
	beforeStream = []byte(`","stream":"`)
	beforeTime   = []byte(`","time":"`)
	afterTime    = []byte(`"}`)
)

// maxTrailer is the most that follows the text in a line without attributes.
const maxTrailer = 96

// A Decoder decodes lines of a json-file log.
type Decoder struct {
	text []byte // of the last entry
}

// Next returns the first entry in b and its length in the file; 0 if b contains no complete
// line. ok is false if the line cannot be decoded. An entry without a time stands for zero
// bytes that have to be skipped. The byte slices of the entry are valid as those of Decode.
func (d *Decoder) Next(b []byte) (entry dockerlog.Entry, length int, ok bool) {
	if end := bytes.IndexByte(b, '\n'); end >= 0 {
		entry, ok = d.Decode(b[:end])
		return entry, end + 1, ok
	}
	if len(bytes.TrimLeft(b, "\x00")) == 0 {
		return dockerlog.Entry{}, len(b), true // the hole that truncating a file leaves
	}
	return dockerlog.Entry{}, 0, false
}

// Decode returns the entry in line, which has no line break at its end, and reports
// whether line could be decoded. The entry's text may be empty. Its byte slices are valid
// until the next call and as long as line is not changed.
func (d *Decoder) Decode(line []byte) (dockerlog.Entry, bool) {
	// The machine lost power during the write, or the file was truncated.
	line = bytes.TrimLeft(line, "\x00")
	entry, ok := d.decodePlain(line)
	if !ok {
		return decodeJSON(line)
	}
	return entry, true
}

// decodePlain decodes a line without attributes. It is several times as fast as
// encoding/json and allocates nothing.
func (d *Decoder) decodePlain(line []byte) (dockerlog.Entry, bool) {
	none := dockerlog.Entry{}
	if !bytes.HasPrefix(line, beforeLog) {
		return none, false
	}
	// Quotes in the text are escaped, so the first match is the end of the text.
	from := max(len(line)-maxTrailer, 0)
	end := bytes.Index(line[from:], beforeStream)
	if end < 0 {
		return none, false
	}
	end += from
	rest := line[end+len(beforeStream):]
	name, rest, ok := bytes.Cut(rest, beforeTime)
	stream, known := streamOf(name)
	if !ok || !known || !bytes.HasSuffix(rest, afterTime) {
		return none, false
	}
	stamp := rest[:len(rest)-len(afterTime)]
	if end <= len(beforeLog) || bytes.IndexByte(stamp, '"') >= 0 {
		return none, false
	}
	if d.text, ok = unescape(d.text[:0], line[len(beforeLog):end]); !ok {
		return none, false
	}
	return dockerlog.Entry{Time: stamp, Stream: stream, Text: d.text}, true
}

// decodeJSON decodes any line, such as one to which the log-opts of daemon.json add
// attributes.
func decodeJSON(line []byte) (dockerlog.Entry, bool) {
	var fields struct {
		Log    string `json:"log"`
		Stream string `json:"stream"`
		Time   string `json:"time"`
	}
	if err := json.Unmarshal(line, &fields); err != nil || fields.Time == "" {
		return dockerlog.Entry{}, false
	}
	stream, known := streamOf([]byte(fields.Stream))
	if !known {
		return dockerlog.Entry{}, false
	}
	return dockerlog.Entry{Time: []byte(fields.Time), Stream: stream, Text: []byte(fields.Log)}, true
}

// streamOf returns the constant for the name of a stream, so that none is allocated.
func streamOf(name []byte) (string, bool) {
	switch string(name) {
	case dockerlog.Stdout:
		return dockerlog.Stdout, true
	case dockerlog.Stderr:
		return dockerlog.Stderr, true
	}
	return "", false
}

// unescape appends to dst the value of the JSON string raw, given without its quotes.
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
				// Half of a surrogate pair becomes U+FFFD, as in encoding/json.
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
