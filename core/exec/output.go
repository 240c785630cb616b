package exec

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/docker/docker/api/types"
)

const (
	// drainTimeout bounds the wait for the output of a command that has ended. What the
	// command has written is on its way; its children may write forever.
	drainTimeout = time.Second
	// maxDrain bounds the output that is read then, in bytes. It is more than the pipes and
	// buffers between the command and the daemon hold.
	maxDrain = 4 << 20
)

// outputError is an error of copying the output of a command.
type outputError struct{ error }

func (e outputError) Unwrap() error { return e.error }

// An output reads the output of a command. Once the command has ended, it ends after
// maxDrain bytes or when reads have blocked for drainTimeout in total.
type output struct {
	io.Reader
	conn net.Conn // below Reader

	mu      sync.Mutex // guards following
	ended   time.Time  // when the command ended; zero before
	blocked time.Duration
	left    int // of maxDrain
}

func newOutput(streams types.HijackedResponse) *output {
	return &output{Reader: streams.Reader, conn: streams.Conn, left: maxDrain}
}

// drain waits until the output of a command that has ended has been copied, or ctx is
// canceled. copied gets the result of copying, and is nil if that has ended.
func (o *output) drain(ctx context.Context, copied <-chan error) error {
	o.mu.Lock()
	o.ended = time.Now()
	_ = o.conn.SetReadDeadline(o.ended.Add(drainTimeout))
	o.mu.Unlock()
	if copied == nil {
		return nil
	}
	canceled := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.Canceled) { // not at the deadline, which has passed after a timeout
			close(canceled)
		}
	})()
	select {
	case err := <-copied:
		if err != nil {
			return outputError{err}
		}
		return nil
	case <-canceled:
		return ctx.Err()
	}
}

// Read implements io.Reader.
func (o *output) Read(p []byte) (int, error) {
	start := time.Now()
	o.mu.Lock()
	if !o.ended.IsZero() {
		if o.left <= 0 || o.blocked >= drainTimeout {
			o.mu.Unlock()
			return 0, io.EOF
		}
		p = p[:min(len(p), o.left)]
		_ = o.conn.SetReadDeadline(start.Add(drainTimeout - o.blocked))
	}
	o.mu.Unlock()
	n, err := o.Reader.Read(p)
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended.IsZero() {
		if start.Before(o.ended) {
			start = o.ended
		}
		o.blocked += time.Since(start)
		o.left -= n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = io.EOF
		}
	}
	return n, err
}
