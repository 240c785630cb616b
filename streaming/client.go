package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// A client is the connection of one. The context of its requests ends with it,
// also once it has been taken over from HTTP: when it breaks, for then net/http
// sees a read fail, and when it is closed. The second is all there is to see of
// a SPDY client that says goodbye, as an apiserver does for a kubectl that was
// interrupted: the library answers by closing its end. A client that has only
// closed its stdin has a connection, and so has one that has closed the
// stream of its terminal's sizes.
type client struct {
	net.Conn
	gone  context.CancelFunc
	outer *client // whom we have dialled ourselves for, see inside
}

// Close is of net.Conn.
func (c *client) Close() error {
	c.gone()
	return c.Conn.Close()
}

// clients is a listener whose connections are clients.
type clients struct{ net.Listener }

// Accept is of net.Listener.
func (l clients) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &client{Conn: conn, gone: func() {}}, nil
}

type clientKey struct{}

// of returns the context of a client, which ends with ctx as well. The client is
// cut then.
func of(ctx context.Context, conn net.Conn) context.Context {
	if over, ok := conn.(*tls.Conn); ok {
		conn = over.NetConn()
	}
	c, ok := conn.(*client)
	if !ok {
		return ctx
	}
	ctx, c.gone = context.WithCancel(ctx)
	context.AfterFunc(ctx, func() { _ = c.Conn.Close() }) // net/http forgets what was taken over
	return context.WithValue(ctx, clientKey{}, c)
}

// cut ends the connection that ctx is of.
func cut(ctx context.Context) {
	for c, _ := ctx.Value(clientKey{}).(*client); c != nil; c = c.outer {
		_ = c.Close() // it is not to be used any more
	}
}

// calls stands between the library and a Runtime, whose calls it ends: with
// their client, and with the Server.
type calls struct {
	runtime Runtime

	mu   sync.Mutex      // guards following
	run  context.Context //nolint:containedctx // of Run; nil before it and after
	open sync.WaitGroup
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

// join runs call, with a context that ends with the Server as well.
func (c *calls) join(ctx context.Context, call func(ctx context.Context) error) error {
	c.mu.Lock()
	run := c.run
	if run != nil {
		c.open.Add(1)
	}
	c.mu.Unlock()
	if run == nil {
		return errStopped
	}
	defer c.open.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(run, cancel)()
	return call(ctx)
}

var errStopped = errors.New("the server of streams has stopped")

// command is join for an exec or attach. What is written to a client that has
// gone fails at once. One that is given up is cut, for else whoever waits for it
// to take what it was sent, and the library with its last words, would do so
// for as long as it likes.
func (c *calls) command(ctx context.Context, call func(ctx context.Context) error) error {
	defer context.AfterFunc(ctx, func() { cut(ctx) })()
	err := c.join(ctx, call)
	if errors.Is(err, ErrSlow) {
		cut(ctx)
	}
	return err
}

// Exec is of Runtime.
func (c *calls) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return c.command(ctx, func(ctx context.Context) error { return c.runtime.Exec(ctx, id, cmd, in, out, errs, tty, resize) })
}

// Attach is of Runtime.
func (c *calls) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return c.command(ctx, func(ctx context.Context) error { return c.runtime.Attach(ctx, id, in, out, errs, tty, resize) })
}

// PortForward is of Runtime. The library gives it no context of the client's:
// of that the Runtime sees the end of the stream.
func (c *calls) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	return c.join(ctx, func(ctx context.Context) error { return c.runtime.PortForward(ctx, id, port, stream) })
}
