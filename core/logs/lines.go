package logs

import "bytes"

// pieceSize is where the Engine cuts a line that is longer, in bytes. A piece
// without a line break is either as long as that (longer with some log drivers,
// or where U+FFFD stands for single bytes) or the last one of its stream.
//
// See copySrc in moby's daemon/logger/copier.go.
const pieceSize = 16 << 10

// openLines tells which lines have begun in the kubelet's file and not ended:
// by stream, the time of the line, "" for none.
type openLines struct {
	Stdout string `json:"stdout,omitempty"`
	Stderr string `json:"stderr,omitempty"`
}

const (
	stdout = "stdout"
	stderr = "stderr"
)

func (o openLines) any() bool { return o != openLines{} }

// of returns where the time of a stream's open line is.
func (o *openLines) of(stream []byte) *string {
	if string(stream) == stderr {
		return &o.Stderr
	}
	return &o.Stdout
}

// set notes that the line of a stream is open, as of stamp, or is not.
func (o *openLines) set(stream, stamp []byte, open bool) {
	at := o.of(stream)
	switch {
	case !open:
		*at = ""
	case *at == "" || *at != string(stamp):
		*at = string(stamp)
	}
}

// enter appends the end of the line that is open in stream, unless a piece of
// stamp goes on with it: the Engine gives all pieces of a line the same time in its json-file. That
// the rest of a line is missing happens where the Engine has dropped output, or
// a container was started again.
func (o *openLines) enter(dst, stream, stamp []byte) []byte {
	at := *o.of(stream)
	if at == "" || at == string(stamp) {
		return dst
	}
	o.set(stream, nil, false)
	return appendEnd(dst, at, string(stream))
}

// end appends the ends of all lines that are open: their streams have ended.
func (o *openLines) end(dst []byte) []byte {
	if o.Stdout != "" {
		dst = appendEnd(dst, o.Stdout, stdout)
	}
	if o.Stderr != "" {
		dst = appendEnd(dst, o.Stderr, stderr)
	}
	*o = openLines{}
	return dst
}

// appendEnd appends a record that adds no text to the line and ends it. The Engine
// itself says so of a line of exactly pieceSize bytes.
func appendEnd(dst []byte, stamp, stream string) []byte {
	return append(appendHead(dst, []byte(stamp), []byte(stream), true), '\n')
}

// appendPiece appends the records for text, which the Engine has read from a
// stream at once, split at its line breaks. What follows the last one is a
// part of a line, to be gone on with by the next piece, unless it is too
// short for that: then the stream has ended. Without text it only ends the line.
func (o *openLines) appendPiece(dst, stamp, stream, text []byte) []byte {
	if at := *o.of(stream); len(text) == 0 && at != "" {
		o.set(stream, nil, false)
		return appendEnd(dst, at, string(stream))
	}
	long := len(text) >= pieceSize
	for len(text) > 0 {
		line, rest, full := bytes.Cut(text, []byte{'\n'})
		dst = appendHead(dst, stamp, stream, full || !long)
		dst = append(dst, line...)
		dst = append(dst, '\n')
		o.set(stream, stamp, !full && long)
		text = rest
	}
	return dst
}

// appendHead appends what stands before the text of a record: time, stream, F for
// the end of a line or P for a part of one.
func appendHead(dst, stamp, stream []byte, full bool) []byte {
	dst = append(dst, stamp...)
	dst = append(dst, ' ')
	dst = append(dst, stream...)
	if full {
		return append(dst, " F "...)
	}
	return append(dst, " P "...)
}
