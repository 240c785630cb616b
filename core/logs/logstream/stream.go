// Package logstream reads the log stream of a container that the Engine API serves
// (GET /containers/{id}/logs) with time stamps, for any log driver that can be read.
//
// Split makes a dockerlog.Entry of each message of the stream. The API can continue a stream
// only from a time. Therefore a Position counts the entries of the last time that were
// processed, and a Replay recognises them when the stream is opened again.
package logstream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/docker/docker/pkg/stdcopy"

	"berth/core/logs/dockerlog"
)

// Split sends the entries of the log stream body until it ends or ctx does. tty is
// whether the container has a terminal.
func Split(ctx context.Context, body io.Reader, tty bool, to chan<- dockerlog.Entry) error {
	if tty {
		t := &terminal{to: sender{ctx, dockerlog.Stdout, to}}
		if _, err := io.Copy(t, body); err != nil {
			return err // an incomplete message is sent again by the next stream
		}
		return t.close()
	}
	_, err := stdcopy.StdCopy(sender{ctx, dockerlog.Stdout, to}, sender{ctx, dockerlog.Stderr, to}, body)
	return err
}

// A sender sends each write as one entry: Docker frames each message separately.
type sender struct {
	ctx    context.Context //nolint:containedctx // io.Writer has no parameter for it
	stream string
	to     chan<- dockerlog.Entry
}

func (s sender) Write(frame []byte) (int, error) {
	stamp := leadingTime(frame)
	if stamp == nil {
		return 0, errNoTime(frame)
	}
	return len(frame), s.send(stamp, frame[len(stamp)+1:])
}

// send sends copies of its arguments.
func (s sender) send(stamp, text []byte) error {
	select {
	case s.to <- dockerlog.Entry{Time: bytes.Clone(stamp), Stream: s.stream, Text: bytes.Clone(text)}:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func errNoTime(message []byte) error {
	return fmt.Errorf("log stream: %q does not begin with a time", message[:min(len(message), 64)])
}

// leadingTime returns the time at the beginning of b, which a space must follow; nil if b
// does not begin so.
func leadingTime(b []byte) []byte {
	stamp, _, ok := bytes.Cut(b[:min(len(b), maxTimeLength+1)], []byte{' '})
	if !ok {
		return nil
	}
	if _, err := time.Parse(time.RFC3339Nano, string(stamp)); err != nil {
		return nil
	}
	return stamp
}

// maxTimeLength is the length of the longest time: Docker writes nine digits for the
// fraction, and mostly Z for the zone.
const maxTimeLength = len("2006-01-02T15:04:05.000000000-07:00")
