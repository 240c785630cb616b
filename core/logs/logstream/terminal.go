package logstream

import (
	"bytes"
	"fmt"
	"time"

	"berth/core/logs/dockerlog"
)

// A terminal splits the log stream of a container with a terminal, which is not framed: it
// is a sequence of times and texts. A text ends with a line break or, without one,
// where Docker splits a line: after dockerlog.PieceSize bytes or, where the log driver
// splits later or replaces invalid UTF-8 with U+FFFD, somewhat later.
// All pieces of a line have the same time, to the nanosecond, by which the next piece is
// recognised. The last piece of a line may have no line break (log driver local of docker 20.10);
// then the text that follows has a later time.
type terminal struct {
	to    sender
	buf   []byte // received and not sent
	stamp []byte // of the text at the beginning of buf; nil if buf begins with a time
	split []byte // time of the previous text, if that had no line break; else nil
}

// maxText is how long a text without a line break may get before it is sent unfinished. The
// largest pieces of Docker's log drivers are those of awslogs, 256 KiB.
const maxText = 1 << 20

func (t *terminal) Write(b []byte) (int, error) {
	t.buf = append(t.buf, b...)
	for {
		if t.stamp == nil {
			stamp := leadingTime(t.buf)
			if stamp == nil && len(t.buf) <= maxTimeLength && bytes.IndexByte(t.buf, '\n') < 0 {
				return len(b), nil // the time is incomplete
			}
			if stamp == nil {
				return 0, errNoTime(t.buf)
			}
			t.stamp = bytes.Clone(stamp)
			t.buf = t.buf[len(stamp)+1:]
		}
		n, complete := t.next()
		if n < 0 {
			return len(b), nil
		}
		if err := t.to.send(t.stamp, t.buf[:n]); err != nil {
			return 0, err
		}
		t.split = t.stamp
		if n > 0 && t.buf[n-1] == '\n' {
			t.split = nil
		}
		t.buf = t.buf[n:] // append drops the sent bytes when it grows buf
		if complete {
			t.stamp = nil
		}
	}
}

// next returns how many bytes of buf to send now, -1 for none, and whether the text is
// complete then.
func (t *terminal) next() (n int, complete bool) {
	newline := bytes.IndexByte(t.buf, '\n') + 1
	text := t.buf
	if newline > 0 {
		text = text[:newline]
	}
	n = -1
	if len(text) > dockerlog.PieceSize {
		if i := bytes.Index(text[dockerlog.PieceSize:], append(bytes.Clone(t.stamp), ' ')); i >= 0 {
			n = dockerlog.PieceSize + i
		} else if leadingTime(text[dockerlog.PieceSize:]) != nil {
			n = dockerlog.PieceSize // journald may give each piece its own time, and changes no bytes
		}
	}
	if t.split != nil && bytes.Equal(t.split, t.stamp) {
		if i := indexLaterTime(text, t.stamp); i >= 0 && (n < 0 || i < n) {
			n = i
		}
	}
	switch {
	case n >= 0:
		return n, true
	case newline > 0:
		return newline, true
	case len(text) > maxText:
		return maxText / 2, false
	}
	return -1, false
}

// indexLaterTime returns the index in text of a time, as Docker writes it, that is later than
// stamp; -1 if text contains no such time.
func indexLaterTime(text, stamp []byte) int {
	now, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return -1
	}
	// Candidates are found by the dot between the seconds and their nine digits.
	const before, after = len("2006-01-02T15:04:05"), len(".000000000Z ")
	for from := before; ; {
		dot := bytes.IndexByte(text[min(from, len(text)):], '.')
		if dot < 0 {
			return -1
		}
		i := from + dot - before
		from += dot + 1
		if len(text) < i+before+after || text[i+len("2006-01-02")] != 'T' {
			continue
		}
		found := leadingTime(text[i:])
		if len(found) < before+after-1 {
			continue
		}
		if t, err := time.Parse(time.RFC3339Nano, string(found)); err == nil && t.After(now) {
			return i
		}
	}
}

// close sends the last text, if it has no line break.
func (t *terminal) close() error {
	if len(t.buf) == 0 {
		return nil
	}
	if t.stamp == nil {
		return fmt.Errorf("log stream: ends with %q", t.buf[:min(len(t.buf), 64)])
	}
	return t.to.send(t.stamp, t.buf)
}
