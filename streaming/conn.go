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
	// maxPending bounds the connections that have not shown a token. The library
	// hands out at most 1000 tokens at a time, so there is room for all clients
	// that have one.
	maxPending = 1024
	// lingerTimeout is how long a connection that has been closed here waits for
	// its client to close it too, from when the client last took something.
	lingerTimeout = 30 * time.Second
	// lingerMax bounds that for a client that takes little at a time.
	lingerMax = 5 * time.Minute
	// lingerInterval is how often a lingering connection is looked at.
	lingerInterval = time.Second
)

// A client is the connection of a client. The context of its requests ends with
// it, also once the connection has been taken over from HTTP: when it breaks, for
// then net/http sees a read fail, and when it is closed. The second is all there
// is to see of a SPDY client that sends GOAWAY, as an apiserver does for a kubectl
// that was interrupted: the library answers by closing its end. A client that has
// only closed its stdin still has a connection, and so does one that has closed
// the stream of its terminal's sizes.
type client struct {
	net.Conn

	whole    net.Conn    // what net/http and the library have: a *tls.Conn on top of this, or this
	outer    *client     // the client on whose behalf this connection was dialled, see inside
	upgraded atomic.Bool // whether it has been taken over from HTTP
	over     atomic.Bool // whether the sending half is closed
	gone     context.CancelFunc

	closing sync.Once

	mu     sync.Mutex // guards following
	closed bool
	hooks  []func() // to be called when it has been closed
}

func newClient(conn net.Conn, outer *client) *client {
	c := &client{Conn: conn, outer: outer, gone: func() {}}
	c.whole = c
	return c
}

// onClosed calls do once the connection has been closed.
func (c *client) onClosed(do func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		go do()
		return
	}
	c.hooks = append(c.hooks, do)
}

// Close ends the requests of the client at once. What it has been sent stays in
// the socket until it has been read: a socket that is closed while it holds
// something answers whatever still comes from the client, such as a ping, with a
// reset, and the rest of the output is lost together with the exit code. So only
// the sending half is closed, and the whole once the client has closed its own.
func (c *client) Close() error {
	c.gone()
	var err error
	c.closing.Do(func() {
		if c.upgraded.Load() {
			go func() {
				c.linger()
				_ = c.end()
			}()
			return
		}
		err = c.end()
	})
	return err
}

// end closes the whole connection.
func (c *client) end() error {
	err := c.Conn.Close()
	c.mu.Lock()
	c.closed = true
	hooks := c.hooks
	c.hooks = nil
	c.mu.Unlock()
	for _, do := range hooks {
		do()
	}
	return err
}

// Read is of net.Conn. What comes after Close is for nobody, and the library would
// log each message of it.
func (c *client) Read(p []byte) (int, error) {
	if c.over.Load() {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	if err != nil && c.over.Load() {
		err = io.EOF
	}
	return n, err
}

// cut closes the connection without waiting for the client.
func (c *client) cut() {
	c.gone()
	_ = c.Conn.Close() // a Close that lingers ends with this
	_ = c.Close()
}

// linger closes the sending half and returns when the client has closed its own,
// or takes nothing any more.
func (c *client) linger() {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.over.Store(true)
	_ = c.SetReadDeadline(time.Unix(1, 0)) // for a Read that waits
	begun := time.Now()
	progress, queued := begun, c.queued()
	for buffer := make([]byte, 4096); ; {
		if c.SetReadDeadline(time.Now().Add(lingerInterval)) != nil {
			return
		}
		if _, err := c.Conn.Read(buffer); err != nil && !isTimeout(err) {
			return
		}
		if now := c.queued(); now < queued {
			progress, queued = time.Now(), now
		}
		if time.Since(progress) > lingerTimeout || time.Since(begun) > lingerMax {
			return
		}
	}
}

// queued returns how much the client has not acknowledged, in bytes.
func (c *client) queued() (n int) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		if control, err := raw.SyscallConn(); err == nil {
			_ = control.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		}
	}
	return n
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// clients is a listener whose connections are clients. Those that have not shown a
// token are kept to a number: the oldest goes when one too many comes, for one
// with a token shows it at once.
type clients struct {
	net.Listener
	max int

	mu      sync.Mutex // guards following
	pending list.List  // of *client, the oldest first
	at      map[*client]*list.Element
}

func newClients(l net.Listener) *clients {
	return &clients{Listener: l, max: maxPending, at: map[*client]*list.Element{}}
}

// Accept is of net.Listener.
func (l *clients) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := newClient(conn, nil)
	l.mu.Lock()
	l.at[c] = l.pending.PushBack(c)
	var surplus *client
	if l.pending.Len() > l.max {
		surplus, _ = l.pending.Front().Value.(*client)
	}
	l.mu.Unlock()
	c.onClosed(func() { l.remove(c) })
	if surplus != nil {
		surplus.cut()
	}
	return c, nil
}

// remove stops counting a connection, because it has shown a token or been closed.
func (l *clients) remove(c *client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.at[c]; ok {
		l.pending.Remove(at)
		delete(l.at, c)
	}
}

// changed is the hook of net/http for the state of a connection.
func (l *clients) changed(conn net.Conn, state http.ConnState) {
	if c := clientOf(conn); c != nil && state == http.StateHijacked {
		c.upgraded.Store(true)
		l.remove(c)
	}
}

// clientOf returns the client that conn, of net/http, is of; nil if of none.
func clientOf(conn net.Conn) *client {
	if over, ok := conn.(*tls.Conn); ok {
		conn = over.NetConn()
	}
	c, _ := conn.(*client)
	return c
}

type clientKey struct{}

// of returns the context of a client. When ctx, which is the server's, ends, the
// client is cut: net/http forgets connections that were taken over.
func of(ctx context.Context, conn net.Conn) context.Context {
	c := clientOf(conn)
	if c == nil {
		return ctx
	}
	c.whole = conn
	own, gone := context.WithCancel(ctx)
	c.gone = gone
	unwatch := context.AfterFunc(ctx, c.cut)
	c.onClosed(func() { unwatch() })
	return context.WithValue(own, clientKey{}, c)
}

// each calls do for the client of a request, and for the one on whose behalf
// that was dialled.
func each(ctx context.Context, do func(*client)) {
	for c, _ := ctx.Value(clientKey{}).(*client); c != nil; c = c.outer {
		do(c)
	}
}

// finish closes a connection whose only request is over. The library leaves it
// open if the client has not created its streams in time (cri-streaming v0.37).
func finish(ctx context.Context) {
	if c, ok := ctx.Value(clientKey{}).(*client); ok && c.upgraded.Load() {
		_ = c.whole.Close() // it is not to be used any more
	}
}

// A gate passes writes on until it is shut.
type gate struct {
	io.WriteCloser
	shut *atomic.Bool
}

// Write is of io.Writer.
func (g gate) Write(p []byte) (int, error) {
	if g.shut.Load() {
		return 0, errStopped
	}
	return g.WriteCloser.Write(p)
}
