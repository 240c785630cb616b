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
	// stopGrace is how long a Server that stops waits for its clients to read their output
	// and the status. The kubelet has no runtime meanwhile, so it is short; most clients
	// take some milliseconds.
	stopGrace = 5 * time.Second
	// slowClientGrace is how long a client whose call has ended with ErrSlow may take to read that.
	slowClientGrace = 5 * time.Second
)

// errStopped is what clients get when the server stops.
var errStopped = errors.New("berthd is shutting down")

// sessions is the Runtime that the library calls. It passes calls on to another Runtime and
// ends them with their client, and with the Server.
type sessions struct {
	runtime Runtime

	mu     sync.Mutex      // guards following
	runCtx context.Context //nolint:containedctx // of Run; nil before it and after
	calls  sync.WaitGroup  // of the other Runtime
	conns  map[*trackedConn]bool
	closed chan struct{} // has an element if conns has lost one
}

func newSessions(runtime Runtime) *sessions {
	return &sessions{runtime: runtime, conns: map[*trackedConn]bool{}, closed: make(chan struct{}, 1)}
}

// begin admits calls until ctx ends. wait refuses all further calls and waits for those in
// progress.
func (s *sessions) begin(ctx context.Context) (wait func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runCtx = ctx
	return func() {
		s.mu.Lock()
		s.runCtx = nil
		s.mu.Unlock()
		s.calls.Wait()
	}
}

// enter admits a call. It returns a context for it that also ends with the Server, the
// context of the Server, and what must be called after the call.
func (s *sessions) enter(ctx context.Context) (callCtx, runCtx context.Context, leave func(), err error) {
	s.mu.Lock()
	runCtx = s.runCtx
	if runCtx == nil || runCtx.Err() != nil {
		s.mu.Unlock()
		return nil, nil, nil, errStopped
	}
	s.calls.Add(1)
	s.mu.Unlock()
	callCtx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(runCtx, func() { cancel(errStopped) })
	return callCtx, runCtx, func() { stop(); cancel(nil); s.calls.Done() }, nil
}

// track counts the connection of an exec or attach until it is closed.
func (s *sessions) track(ctx context.Context) {
	forEachConn(ctx, func(conn *trackedConn) {
		if conn.parent != nil {
			return // of a WebSocket session only the connection of the client counts
		}
		s.mu.Lock()
		s.conns[conn] = true
		s.mu.Unlock()
		conn.onClose(func() {
			s.mu.Lock()
			delete(s.conns, conn)
			s.mu.Unlock()
			select {
			case s.closed <- struct{}{}:
			default:
			}
		})
	})
}

// drain waits, for at most timeout, until the clients of all execs and attaches have read
// their status and closed their connections.
func (s *sessions) drain(timeout time.Duration) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		s.mu.Lock()
		left := len(s.conns)
		s.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-s.closed:
		case <-timer.C:
			return
		}
	}
}

// runCommand makes a call of an exec or attach. Writes to a client that has gone fail at once.
//
// When the Server stops, runCommand returns an error to the library while the Runtime is
// still ending the command: SPDY clients take a connection that is closed without a status
// for success.
func (s *sessions) runCommand(ctx context.Context, out, errs io.WriteCloser, call func(ctx context.Context, out, errs io.WriteCloser) error) error {
	defer context.AfterFunc(ctx, func() { forEachConn(ctx, (*trackedConn).closeNow) })()
	s.track(ctx)
	callCtx, runCtx, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	var shut atomic.Bool
	guard := func(w io.WriteCloser) io.WriteCloser {
		if w == nil {
			return nil
		}
		return gatedWriter{w, &shut}
	}
	done := make(chan error, 1)
	go func() {
		defer leave()
		done <- call(callCtx, guard(out), guard(errs))
	}()
	select {
	case err = <-done:
		if err == nil && runCtx.Err() != nil {
			err = errStopped // the command may have ended because the server stops
		}
	case <-runCtx.Done():
		err = errStopped
	}
	shut.Store(true)
	if errors.Is(err, ErrSlow) {
		// The library writes the status next, which a slow client could block forever.
		forEachConn(ctx, func(conn *trackedConn) { _ = conn.SetWriteDeadline(time.Now().Add(slowClientGrace)) })
	}
	return err
}

// A gatedWriter passes writes on until it is shut.
type gatedWriter struct {
	io.WriteCloser
	shut *atomic.Bool
}

// Write implements io.Writer.
func (w gatedWriter) Write(p []byte) (int, error) {
	if w.shut.Load() {
		return 0, errStopped
	}
	return w.WriteCloser.Write(p)
}

// Exec implements Runtime.
func (s *sessions) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return s.runCommand(ctx, out, errs, func(ctx context.Context, out, errs io.WriteCloser) error {
		return s.runtime.Exec(ctx, id, cmd, in, out, errs, tty, resize)
	})
}

// Attach implements Runtime.
func (s *sessions) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return s.runCommand(ctx, out, errs, func(ctx context.Context, out, errs io.WriteCloser) error {
		return s.runtime.Attach(ctx, id, in, out, errs, tty, resize)
	})
}

// PortForward implements Runtime. The library's ctx does not end with the client: the
// Runtime sees the end of the stream instead.
func (s *sessions) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	ctx, _, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return s.runtime.PortForward(ctx, id, port, stream)
}
