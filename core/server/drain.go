package server

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
)

// A drainListener is a listener that stops accepting some time before it is closed.
//
// GracefulStop of grpc-go v1.85 resets connections that have been accepted but have not
// received their SETTINGS frame. With Drain called first, every accepted connection
// receives its frame, and later clients wait in the backlog of the socket that systemd
// keeps for the next start of the daemon.
type drainListener struct {
	net.Listener
	draining     atomic.Bool
	acceptedLast sync.Once
	drained      chan struct{} // closed after the last Accept
	closeOnce    sync.Once
	closed       chan struct{}
	unwritten    atomic.Int64
	written      chan struct{} // receives after each first write, without blocking
}

func newDrainListener(l net.Listener) *drainListener {
	return &drainListener{Listener: l, drained: make(chan struct{}), closed: make(chan struct{}), written: make(chan struct{}, 1)}
}

// Accept returns the next connection. Once the listener drains it waits for Close.
func (d *drainListener) Accept() (net.Conn, error) {
	conn, err := d.Listener.Accept()
	if err != nil {
		if d.draining.Load() {
			d.acceptedLast.Do(func() { close(d.drained) })
			<-d.closed
		}
		return nil, err
	}
	d.unwritten.Add(1)
	return &trackedConn{Conn: conn, firstWrite: sync.OnceFunc(d.firstWriteDone)}, nil
}

func (d *drainListener) firstWriteDone() {
	d.unwritten.Add(-1)
	select {
	case d.written <- struct{}{}:
	default:
	}
}

// Drain stops accepting connections. It returns once every accepted connection has been
// written to or closed, or ctx has ended; the error is that of closing the socket.
func (d *drainListener) Drain(ctx context.Context) error {
	d.draining.Store(true)
	err := d.Listener.Close()
	select {
	case <-d.drained:
	case <-ctx.Done():
	}
	for d.unwritten.Load() > 0 && ctx.Err() == nil {
		select {
		case <-d.written:
		case <-ctx.Done():
		}
	}
	return err
}

// Close ends a waiting Accept. It can be called several times.
func (d *drainListener) Close() error {
	d.closeOnce.Do(func() { close(d.closed) })
	if d.draining.Load() {
		return nil // Drain has closed the listener
	}
	return d.Listener.Close()
}

// A trackedConn calls firstWrite after the first Write, or after Close without one.
type trackedConn struct {
	net.Conn
	firstWrite func()
}

// Write is net.Conn's.
func (g *trackedConn) Write(p []byte) (int, error) {
	defer g.firstWrite()
	return g.Conn.Write(p)
}

// Close is net.Conn's.
func (g *trackedConn) Close() error {
	defer g.firstWrite()
	return g.Conn.Close()
}
