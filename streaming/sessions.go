package streaming

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

const (
	// stopGrace is how long a Server that stops waits for its clients to take what
	// they were sent and how their command has ended. The kubelet has no runtime
	// meanwhile, so it is short; most clients take some milliseconds.
	stopGrace = 5 * time.Second
	// slowGrace is how long a client that has been given up may take to read that.
	slowGrace = 5 * time.Second
)

// calls stands between the library and a Runtime, whose calls it ends: with
// their client, and with the Server.
type calls struct {
	runtime Runtime

	mu       sync.Mutex      // guards following
	run      context.Context //nolint:containedctx // of Run; nil before it and after
	open     sync.WaitGroup  // calls of the Runtime
	sessions map[*client]bool
	fewer    chan struct{} // has an element when sessions has lost one
}

func newCalls(runtime Runtime) *calls {
	return &calls{runtime: runtime, sessions: map[*client]bool{}, fewer: make(chan struct{}, 1)}
}

// begin has calls let in until ctx ends. end waits for those that are there.
func (c *calls) begin(ctx context.Context) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.run = ctx
	return func() {
		c.mu.Lock()
		c.run = nil
		c.mu.Unlock()
		c.open.Wait()
	}
}

// errStopped is what clients are told when the server of their streams stops.
var errStopped = errors.New("berthd is shutting down")

// enter lets a call in, whose context ends with the Server as well. leave is to
// be called when it is over.
func (c *calls) enter(ctx context.Context) (_, run context.Context, leave func(), err error) {
	c.mu.Lock()
	run = c.run
	if run == nil || run.Err() != nil {
		c.mu.Unlock()
		return nil, nil, nil, errStopped
	}
	c.open.Add(1)
	c.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(run, func() { cancel(errStopped) })
	return ctx, run, func() { stop(); cancel(nil); c.open.Done() }, nil
}

// track counts the connection of an exec or attach until it is closed.
func (c *calls) track(ctx context.Context) {
	each(ctx, func(conn *client) {
		if conn.outer != nil {
			return // it is the outer one that is to take what it was sent
		}
		c.mu.Lock()
		c.sessions[conn] = true
		c.mu.Unlock()
		conn.onClosed(func() {
			c.mu.Lock()
			delete(c.sessions, conn)
			c.mu.Unlock()
			select {
			case c.fewer <- struct{}{}:
			default:
			}
		})
	})
}

// drain waits until the clients of execs and attaches have been told how those
// ended, for at most d.
func (c *calls) drain(d time.Duration) {
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	for {
		c.mu.Lock()
		left := len(c.sessions)
		c.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-c.fewer:
		case <-timeout.C:
			return
		}
	}
}

// command makes a call for an exec or attach. What is written to a client that
// has gone fails at once.
//
// When the Server stops, the library is given the error while the Runtime still
// ends the command: clients of SPDY take a connection that is closed without a
// status for success.
func (c *calls) command(ctx context.Context, out, errs io.WriteCloser, call func(ctx context.Context, out, errs io.WriteCloser) error) error {
	defer context.AfterFunc(ctx, func() { each(ctx, (*client).cut) })()
	c.track(ctx)
	limited, run, leave, err := c.enter(ctx)
	if err != nil {
		return err
	}
	var shut atomic.Bool
	guard := func(w io.WriteCloser) io.WriteCloser {
		if w == nil {
			return nil
		}
		return gate{w, &shut}
	}
	done := make(chan error, 1)
	go func() {
		defer leave()
		done <- call(limited, guard(out), guard(errs))
	}()
	select {
	case err = <-done:
		if err == nil && run.Err() != nil {
			err = errStopped // it may have ended for that
		}
	case <-run.Done():
		err = errStopped
	}
	shut.Store(true)
	if errors.Is(err, ErrSlow) {
		// It must not hold up the library with the status for as long as it likes.
		each(ctx, func(c *client) { _ = c.SetWriteDeadline(time.Now().Add(slowGrace)) })
	}
	return err
}

// Exec is of Runtime.
func (c *calls) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return c.command(ctx, out, errs, func(ctx context.Context, out, errs io.WriteCloser) error {
		return c.runtime.Exec(ctx, id, cmd, in, out, errs, tty, resize)
	})
}

// Attach is of Runtime.
func (c *calls) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return c.command(ctx, out, errs, func(ctx context.Context, out, errs io.WriteCloser) error {
		return c.runtime.Attach(ctx, id, in, out, errs, tty, resize)
	})
}

// PortForward is of Runtime. The library gives it no context of the client's:
// of that the Runtime sees the end of the stream.
func (c *calls) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	ctx, _, leave, err := c.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return c.runtime.PortForward(ctx, id, port, stream)
}
