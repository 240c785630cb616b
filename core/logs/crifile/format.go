package crifile

import (
	"bytes"

	"berth/core/logs/dockerlog"
)

// OpenLines are the lines that have begun in a log and not ended: for each stream the time
// of the line, "" for none. Its methods append records to a buffer.
//
// A record is "time stream tag text\n". The tag is F for the end of a line (full) and P for
// a part of one (partial). See
// https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
type OpenLines struct {
	Stdout string `json:"stdout,omitempty"`
	Stderr string `json:"stderr,omitempty"`
}

// Any reports whether a line is open in any stream.
func (o *OpenLines) Any() bool { return *o != OpenLines{} }

// of returns the open line of a stream.
func (o *OpenLines) of(stream string) *string {
	if stream == dockerlog.Stderr {
		return &o.Stderr
	}
	return &o.Stdout
}

// set records whether the line of time stamp is open in a stream.
func (o *OpenLines) set(stream string, stamp []byte, open bool) {
	line := o.of(stream)
	switch {
	case !open:
		*line = ""
	case *line != string(stamp):
		*line = string(stamp)
	}
}

// AppendEntry appends the records of an entry, one for each of its line breaks. Text after
// the last line break is a part of a line, which the next entry continues, unless it is
// shorter than a piece: then it is the last output of the stream. An entry without text
// ends the line that is open.
func (o *OpenLines) AppendEntry(dst []byte, e dockerlog.Entry) []byte {
	if line := *o.of(e.Stream); len(e.Text) == 0 && line != "" {
		o.set(e.Stream, nil, false)
		return appendEnd(dst, line, e.Stream)
	}
	piece := len(e.Text) >= dockerlog.PieceSize
	for text := e.Text; len(text) > 0; {
		line, rest, full := bytes.Cut(text, []byte{'\n'})
		dst = appendHeader(dst, e.Time, e.Stream, full || !piece)
		dst = append(dst, line...)
		dst = append(dst, '\n')
		o.set(e.Stream, e.Time, !full && piece)
		text = rest
	}
	return dst
}

// AppendInterrupted ends the open line of the stream of e if e does not continue it: in a
// json-file all pieces of a line have the same time. The rest of a line is missing where
// Docker has dropped output or the container was started again.
func (o *OpenLines) AppendInterrupted(dst []byte, e dockerlog.Entry) []byte {
	line := *o.of(e.Stream)
	if line == "" || line == string(e.Time) {
		return dst
	}
	o.set(e.Stream, nil, false)
	return appendEnd(dst, line, e.Stream)
}

// AppendEnds ends all open lines, because both streams have ended.
func (o *OpenLines) AppendEnds(dst []byte) []byte {
	if o.Stdout != "" {
		dst = appendEnd(dst, o.Stdout, dockerlog.Stdout)
	}
	if o.Stderr != "" {
		dst = appendEnd(dst, o.Stderr, dockerlog.Stderr)
	}
	*o = OpenLines{}
	return dst
}

// appendEnd appends a record that ends a line without adding text to it. For a line of
// exactly dockerlog.PieceSize bytes Docker writes one too.
func appendEnd(dst []byte, stamp, stream string) []byte {
	return append(appendHeader(dst, []byte(stamp), stream, true), '\n')
}

// appendHeader appends what precedes the text of a record.
func appendHeader(dst, stamp []byte, stream string, full bool) []byte {
	dst = append(dst, stamp...)
	dst = append(dst, ' ')
	dst = append(dst, stream...)
	if full {
		return append(dst, " F "...)
	}
	return append(dst, " P "...)
}
