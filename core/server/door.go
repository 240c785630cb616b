package server

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
)

// A door is a listener that can be shut some time before it is closed.
//
// gRPC's GracefulStop hangs up on whoever was let in and has not been greeted yet
// (v1.85), who then sees a reset connection. Behind a shut door everybody is
// greeted, and whoever comes later waits outside, in the socket that systemd keeps
// for our next life.
type door struct {
	net.Listener
	shut      atomic.Bool
	last      sync.Once
	empty     chan struct{} // closed when nobody will be let in any more
	closing   sync.Once
	closed    chan struct{}
	ungreeted atomic.Int64
	greeting  chan struct{} // told, if it has room, of each who is greeted
}

func newDoor(l net.Listener) *door {
	return &door{Listener: l, empty: make(chan struct{}), closed: make(chan struct{}), greeting: make(chan struct{}, 1)}
}

// Accept lets somebody in. Once the door is shut it waits for it to be closed.
func (d *door) Accept() (net.Conn, error) {
	conn, err := d.Listener.Accept()
	if err != nil {
		if d.shut.Load() {
			d.last.Do(func() { close(d.empty) })
			<-d.closed
		}
		return nil, err
	}
	d.ungreeted.Add(1)
	return &guest{Conn: conn, greeted: sync.OnceFunc(d.greeted)}, nil
}

func (d *door) greeted() {
	d.ungreeted.Add(-1)
	select {
	case d.greeting <- struct{}{}:
	default:
	}
}

// Shut lets nobody in any more and returns when all who are in have been greeted,
// or ctx has ended.
func (d *door) Shut(ctx context.Context) error {
	d.shut.Store(true)
	err := d.Listener.Close()
	select {
	case <-d.empty:
	case <-ctx.Done():
	}
	for d.ungreeted.Load() > 0 && ctx.Err() == nil {
		select {
		case <-d.greeting:
		case <-ctx.Done():
		}
	}
	return err
}

// Close lets go of who waits in Accept.
func (d *door) Close() error {
	d.closing.Do(func() { close(d.closed) })
	if d.shut.Load() {
		return nil // Shut has closed the listener
	}
	return d.Listener.Close()
}

// A guest is greeted with the first that is written to him.
type guest struct {
	net.Conn
	greeted func()
}

// Write writes to the guest.
func (g *guest) Write(p []byte) (int, error) {
	defer g.greeted()
	return g.Conn.Write(p)
}

// Close sees the guest out.
func (g *guest) Close() error {
	defer g.greeted()
	return g.Conn.Close()
}
