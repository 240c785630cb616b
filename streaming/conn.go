package streaming

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxPending bounds the connections that have not shown a token. cri-streaming v0.37
	// has at most 1000 valid tokens at a time, so all clients with one fit.
	maxPending = 1024
	// lingerTimeout is the default of Server.LingerTimeout: how long a connection that was
	// closed here waits for its client to close it too, since the client last read something.
	lingerTimeout = 30 * time.Second
	// lingerMax bounds that for a client that reads a little at a time.
	lingerMax = 5 * time.Minute
	// lingerInterval is how often the progress of a lingering connection is checked.
	lingerInterval = time.Second
)

// A trackedConn cancels the context of its requests when the connection breaks or is
// closed, also after net/http has handed it over (hijack). Being closed is all that shows the
// end of a SPDY client that sends GOAWAY, as an API server does for a kubectl that was
// interrupted: the library reacts by closing its end. A client that has closed only its
// stdin, or its resize stream, is still connected.
type trackedConn struct {
	net.Conn

	outermost     net.Conn      // what net/http and the library have: this, or the *tls.Conn on it
	parent        *trackedConn  // the WebSocket client that this pipe was dialled for, or nil; see pipeListener
	lingerTimeout time.Duration // set before the connection is upgraded
	upgraded      atomic.Bool   // hijacked from net/http
	writeClosed   atomic.Bool
	cancel        context.CancelFunc // of the context of its requests

	closeOnce sync.Once

	mu     sync.Mutex // guards following
	closed bool
	hooks  []func() // to be called once it has been closed
}

func newTrackedConn(conn net.Conn, parent *trackedConn) *trackedConn {
	c := &trackedConn{Conn: conn, parent: parent, lingerTimeout: lingerTimeout, cancel: func() {}}
	c.outermost = c
	return c
}

// onClose calls hook once the connection has been closed.
func (c *trackedConn) onClose(hook func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		go hook()
		return
	}
	c.hooks = append(c.hooks, hook)
}

// Close cancels the context of the requests at once. An upgraded connection is closed in
// the background, first its sending half and the rest once the client has closed its own:
// the kernel answers data that arrives on a closed socket, such as a ping, with a reset, and
// the client would lose the output that it has not read yet, and the exit code.
func (c *trackedConn) Close() error {
	c.cancel()
	var err error
	c.closeOnce.Do(func() {
		if c.upgraded.Load() {
			go func() {
				c.linger()
				_ = c.closeConn()
			}()
			return
		}
		err = c.closeConn()
	})
	return err
}

// closeConn closes the connection and calls the hooks.
func (c *trackedConn) closeConn() error {
	err := c.Conn.Close()
	c.mu.Lock()
	c.closed = true
	hooks := c.hooks
	c.hooks = nil
	c.mu.Unlock()
	for _, hook := range hooks {
		hook()
	}
	return err
}

// closeNow closes the connection without waiting for the client.
func (c *trackedConn) closeNow() {
	c.cancel()
	_ = c.Conn.Close() // ends linger
	_ = c.Close()
}

// Read implements net.Conn. It returns io.EOF after Close: the library logs every message
// that arrives on a connection it has closed.
func (c *trackedConn) Read(p []byte) (int, error) {
	if c.writeClosed.Load() {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	if err != nil && c.writeClosed.Load() {
		err = io.EOF
	}
	return n, err
}

// linger closes the sending half and returns when the client has closed its own, or reads
// nothing any more.
func (c *trackedConn) linger() {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.writeClosed.Store(true)
	_ = c.SetReadDeadline(time.Unix(1, 0)) // interrupts a blocked Read
	start := time.Now()
	lastProgress, queued := start, c.sendQueue()
	for buffer := make([]byte, 4096); ; {
		if c.SetReadDeadline(time.Now().Add(min(lingerInterval, c.lingerTimeout))) != nil {
			return
		}
		if _, err := c.Conn.Read(buffer); err != nil && !isTimeout(err) {
			return
		}
		if now := c.sendQueue(); now < queued {
			lastProgress, queued = time.Now(), now
		}
		if time.Since(lastProgress) > c.lingerTimeout || time.Since(start) > lingerMax {
			return
		}
	}
}

// sendQueue returns how many bytes the client has not acknowledged (tcp(7), SIOCOUTQ).
func (c *trackedConn) sendQueue() (n int) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		if control, err := raw.SyscallConn(); err == nil {
			_ = control.Control(func(fd uintptr) {
				// Not IoctlGetInt: the kernel writes an int of C, which is half of an int of Go.
				queued, _ := unix.IoctlGetUint32(int(fd), unix.SIOCOUTQ)
				n = int(queued)
			})
		}
	}
	return n
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// A pendingListener bounds the number of connections that have not shown a token. It closes
// the oldest to admit a new one: a client with a token shows it at once.
type pendingListener struct {
	net.Listener
	max int

	mu       sync.Mutex // guards following
	pending  list.List  // of *trackedConn, the oldest first
	elements map[*trackedConn]*list.Element
}

func newPendingListener(l net.Listener) *pendingListener {
	return &pendingListener{Listener: l, max: maxPending, elements: map[*trackedConn]*list.Element{}}
}

// Accept implements net.Listener. The connections are of type *trackedConn.
func (l *pendingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := newTrackedConn(conn, nil)
	l.mu.Lock()
	l.elements[c] = l.pending.PushBack(c)
	var oldest *trackedConn
	if l.pending.Len() > l.max {
		oldest, _ = l.pending.Front().Value.(*trackedConn)
	}
	l.mu.Unlock()
	c.onClose(func() { l.remove(c) })
	if oldest != nil {
		oldest.closeNow()
	}
	return c, nil
}

// remove stops counting a connection that has shown a token or has been closed.
func (l *pendingListener) remove(c *trackedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if element, ok := l.elements[c]; ok {
		l.pending.Remove(element)
		delete(l.elements, c)
	}
}

// connState is the ConnState hook of net/http.
func (l *pendingListener) connState(conn net.Conn, state http.ConnState) {
	if c := trackedConnOf(conn); c != nil && state == http.StateHijacked {
		c.upgraded.Store(true)
		l.remove(c)
	}
}

// trackedConnOf returns the trackedConn below a connection of net/http, or nil.
func trackedConnOf(conn net.Conn) *trackedConn {
	if tlsConn, ok := conn.(*tls.Conn); ok {
		conn = tlsConn.NetConn()
	}
	c, _ := conn.(*trackedConn)
	return c
}

type connKey struct{}

// connContext is the ConnContext hook of net/http. When ctx, which is that of the server,
// ends, the connection is closed: http.Server.Close does not close hijacked connections.
func (s *Server) connContext(ctx context.Context, conn net.Conn) context.Context {
	c := trackedConnOf(conn)
	if c == nil {
		return ctx
	}
	c.outermost = conn
	c.lingerTimeout = s.LingerTimeout
	connCtx, cancel := context.WithCancel(ctx)
	c.cancel = cancel
	stop := context.AfterFunc(ctx, c.closeNow)
	c.onClose(func() { stop() })
	return context.WithValue(connCtx, connKey{}, c)
}

// forEachConn calls do for the connection of a request, and for its parent.
func forEachConn(ctx context.Context, do func(*trackedConn)) {
	for c, _ := ctx.Value(connKey{}).(*trackedConn); c != nil; c = c.parent {
		do(c)
	}
}

// closeUpgraded closes an upgraded connection after its only request. cri-streaming v0.37
// leaves it open if the client has not created its streams in time.
func closeUpgraded(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*trackedConn); ok && c.upgraded.Load() {
		_ = c.outermost.Close() // nothing is written after it
	}
}
