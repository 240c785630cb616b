package exec

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/pkg/stdcopy"
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

// errDrained ends the output of a command that has ended before its children have closed it.
var errDrained = errors.New("output drained")

// An output reads the output of a command. Once the command has ended, it ends with
// errDrained after maxDrain bytes or when reads have blocked for drainTimeout in total.
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
			return 0, errDrained
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
			err = errDrained
		}
	}
	return n, err
}

// copyOutput copies Docker's output to a client's streams, which may be nil, until it ends. The
// error is io.ErrUnexpectedEOF if the connection ends inside a frame: output was lost.
// A connection that ends between two frames, or that of a terminal, which has no frames,
// cannot be told from the end of the output.
func copyOutput(from io.Reader, out, errs io.Writer, tty bool) (err error) {
	if tty {
		_, err = io.Copy(orDiscard(out), from)
	} else {
		_, err = stdcopy.StdCopy(orDiscard(out), orDiscard(errs), &frameReader{Reader: from})
	}
	if errors.Is(err, errDrained) {
		return nil
	}
	return err
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// frameHeader is the length of the header of a frame; its last four bytes are the length of
// the data that follows (Engine API, POST /containers/{id}/attach).
const frameHeader = 8

// A frameReader reads a stream of frames and ends it with io.ErrUnexpectedEOF if it ends
// inside a frame, which stdcopy.StdCopy takes for the end of the stream.
type frameReader struct {
	io.Reader
	header [frameHeader]byte
	have   int    // bytes of the current header
	left   uint32 // bytes of the current frame's data that have not been read
}

// Read implements io.Reader.
func (f *frameReader) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	for data := p[:n]; len(data) > 0; {
		if f.left > 0 {
			k := min(uint64(f.left), uint64(len(data)))
			f.left -= uint32(k)
			data = data[k:]
			continue
		}
		k := copy(f.header[f.have:], data)
		f.have += k
		data = data[k:]
		if f.have == frameHeader {
			f.have, f.left = 0, binary.BigEndian.Uint32(f.header[frameHeader-4:])
		}
	}
	if errors.Is(err, io.EOF) && (f.have > 0 || f.left > 0) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
