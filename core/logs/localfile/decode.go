// Package localfile decodes the log files that Docker's log driver local writes. core/logs/logfile reads
// them.
//
// An entry is a message of protocol buffers between two copies of its length, 4 bytes each, the
// most significant one first. The message is LogEntry of moby's daemon/logger/internal/logdriver/entry.proto
// (api/types/plugins/logdriver before Docker 29). Docker writes each entry at once, but a crash or a full disk
// may leave a part of one, or zero bytes, in the middle of a file. See marshal in moby's daemon/logger/local/local.go.
package localfile

import (
	"bytes"
	"encoding/binary"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"berth/core/logs/dockerlog"
)

const (
	// lengthSize is the size of each of the two lengths of an entry.
	lengthSize = 4
	// maxMessage is the longest message that Docker itself reads (maxMsgLen in moby's daemon/logger/local/read.go).
	// The longest one that it writes has 16 KiB of text and the attributes that log-opts in daemon.json add.
	maxMessage = 1_000_000
)

// messageStart is how a message begins: with the tag and the length of its first field, the name of
// a stream. All streams have names of the same length.
//
// Docker splits output at line breaks and does not store them, so the first byte of messageStart is never in
// the text of a container. Therefore no output can be taken for an entry.
var messageStart = []byte("\n\x06std")

// The numbers of the fields of a message.
const (
	fieldSource   = 1
	fieldTime     = 2 // nanoseconds since 1970
	fieldLine     = 3
	fieldPartial  = 4
	fieldMetadata = 5 // of a partial line
)

// fieldLast is the number of the field of fieldMetadata that marks the last piece of a line.
const fieldLast = 1

// A message is the fields of an entry that berth needs.
type message struct {
	stream  string
	time    int64
	line    []byte
	partial bool // a piece of a line
	last    bool // the last piece
}

// A Decoder decodes entries of a file of the log driver local.
type Decoder struct {
	stamp  []byte // of the last entry
	second int64  // of stamp
	prefix int    // length of stamp without the fraction of the second; 0 if there is no stamp
	text   []byte // of the last entry
}

// Next returns the first entry in b and its length in the file; 0 if b may contain the beginning of one only.
// ok is false if there is no entry in the bytes of that length; they end where the next entry may begin. An entry
// without a time stands for zero bytes that have to be skipped. The text has its line break, which Docker does not
// store. The byte slices are valid until the next call.
func (d *Decoder) Next(b []byte) (entry dockerlog.Entry, length int, ok bool) {
	m, length, state := parseEntry(b)
	switch state {
	case complete:
		if isForeign(b[length-lengthSize:]) {
			return dockerlog.Entry{}, length - lengthSize, false
		}
		return d.entry(m), length, true
	case incomplete:
		// The rest never comes if another entry follows.
		next, _ := findEntry(b)
		return dockerlog.Entry{}, next, false
	case corrupt:
	}
	next, candidate := findEntry(b)
	if next == 0 {
		next = candidate
	}
	if next == 0 {
		next = max(len(b)-(lengthSize+len(messageStart)-1), 0) // an entry may begin after that
	}
	isHole := len(bytes.TrimLeft(b[:next], "\x00")) == 0 // that truncating a file leaves, or a crash
	return dockerlog.Entry{}, next, isHole
}

// entry returns m as an entry with buffers of d.
func (d *Decoder) entry(m message) dockerlog.Entry {
	d.text = append(d.text[:0], m.line...)
	if !m.partial || m.last {
		d.text = append(d.text, '\n')
	}
	return dockerlog.Entry{Time: d.format(m.time), Stream: m.stream, Text: d.text}
}

// format returns a time as Docker writes it to a json-file: RFC 3339 with the digits of the fraction
// that are needed. Most entries differ from the previous one in the fraction only.
func (d *Decoder) format(nanoseconds int64) []byte {
	t := time.Unix(0, nanoseconds).UTC()
	if second := t.Unix(); d.prefix == 0 || second != d.second {
		d.stamp = t.AppendFormat(d.stamp[:0], "2006-01-02T15:04:05")
		d.second, d.prefix = second, len(d.stamp)
	}
	d.stamp = d.stamp[:d.prefix]
	if fraction := t.Nanosecond(); fraction > 0 {
		var digits [10]byte
		digits[0] = '.'
		end := 1
		for i := 9; i > 0; i-- {
			digits[i] = byte('0' + fraction%10)
			if end == 1 && digits[i] != '0' {
				end = i + 1
			}
			fraction /= 10
		}
		d.stamp = append(d.stamp, digits[:end]...)
	}
	d.stamp = append(d.stamp, 'Z')
	return d.stamp
}

// A state is what a part of a file is.
type state int

const (
	complete   state = iota // an entry
	incomplete              // may be the beginning of an entry
	corrupt                 // no entry
)

// parseEntry returns the message at the beginning of b, and the length of its entry if it is complete.
func parseEntry(b []byte) (m message, length int, s state) {
	if len(b) < lengthSize {
		if len(b) > 0 && b[0] != 0 { // a larger length than maxMessage
			return m, 0, corrupt
		}
		return m, 0, incomplete
	}
	size := binary.BigEndian.Uint32(b)
	if size == 0 || size > maxMessage {
		return m, 0, corrupt
	}
	length = int(size) + 2*lengthSize
	switch {
	case len(b) < length:
		return m, 0, incomplete
	case !bytes.Equal(b[:lengthSize], b[length-lengthSize:length]):
		return m, 0, corrupt
	}
	m, ok := parseMessage(b[lengthSize : length-lengthSize])
	if !ok {
		return m, 0, corrupt
	}
	return m, length, complete
}

// isForeign reports whether the second length of an entry, at which b begins, is the first length of the next one. The
// entry is torn then: its end was not written, and the next one has the same length.
func isForeign(b []byte) bool {
	if !bytes.HasPrefix(b[lengthSize:], messageStart) {
		return false // as always, if no entry is torn
	}
	_, _, s := parseEntry(b)
	return s != corrupt
}

// findEntry returns the offset of the first complete entry in b, and the offset before it of the first
// incomplete one; 0 for none. It does not consider the beginning of b.
func findEntry(b []byte) (found, candidate int) {
	for at := lengthSize + 1; at < len(b); at++ {
		i := bytes.Index(b[at:], messageStart)
		if i < 0 {
			break
		}
		at += i
		start := at - lengthSize
		switch _, _, s := parseEntry(b[start:]); {
		case s == complete:
			return start, candidate
		case s == incomplete && candidate == 0:
			candidate = start
		}
	}
	return 0, candidate
}

// parseMessage parses a message and reports whether it is valid: that its fields are, and that it has a known stream.
func parseMessage(b []byte) (m message, ok bool) {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return m, false
		}
		b = b[n:]
		var number uint64
		var content []byte
		switch kind {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			content, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return m, false
		}
		b = b[n:]
		switch {
		case field == fieldSource && kind == protowire.BytesType:
			m.stream = streamOf(content)
		case field == fieldTime && kind == protowire.VarintType:
			m.time = int64(number)
		case field == fieldLine && kind == protowire.BytesType:
			m.line = content
		case field == fieldPartial && kind == protowire.VarintType:
			m.partial = number != 0
		case field == fieldMetadata && kind == protowire.BytesType:
			m.last = isLast(content)
		}
	}
	return m, m.stream != ""
}

// isLast reports whether the metadata of a piece marks it as the last one of its line.
func isLast(metadata []byte) bool {
	for len(metadata) > 0 {
		field, kind, n := protowire.ConsumeTag(metadata)
		if n < 0 {
			return false
		}
		metadata = metadata[n:]
		if field == fieldLast && kind == protowire.VarintType {
			number, n := protowire.ConsumeVarint(metadata)
			return n > 0 && number != 0
		}
		if n = protowire.ConsumeFieldValue(field, kind, metadata); n < 0 {
			return false
		}
		metadata = metadata[n:]
	}
	return false
}

// streamOf returns the constant for the name of a stream, so that none is allocated; "" if it is not known.
func streamOf(name []byte) string {
	switch string(name) {
	case dockerlog.Stdout:
		return dockerlog.Stdout
	case dockerlog.Stderr:
		return dockerlog.Stderr
	}
	return ""
}
