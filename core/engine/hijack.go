package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
)

// Hijack makes a call that takes over its connection: an attach, or the start of
// an exec. It gives the call up when ctx ends, and after the time limit for calls
// that should be short, and closes its connection then. The Docker client looks at
// the context only until it has dialled (v28.5, client/hijack.go).
//
// Docker answers such a call before it does anything, so without an answer the
// error is of kind Unavailable, also if the deadline of ctx has passed.
func (c *Conn) Hijack(ctx context.Context, call func(context.Context) (types.HijackedResponse, error)) (types.HijackedResponse, error) {
	limit, cancel := c.Short(ctx)
	defer cancel()
	d := &dialled{}
	type result struct {
		streams types.HijackedResponse
		err     error
	}
	done := make(chan result, 1)
	go func() {
		streams, err := call(context.WithValue(limit, dialledKey{}, d))
		done <- result{streams, err}
	}()
	select {
	case r := <-done:
		if r.err == nil || limit.Err() == nil {
			return r.streams, r.err
		}
	case <-limit.Done():
		d.giveUp()
		go func() {
			if r := <-done; r.err == nil {
				r.streams.Close()
			}
		}()
	}
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return types.HijackedResponse{}, err
	}
	return types.HijackedResponse{}, fmt.Errorf("docker has not answered in time: %w", errdefs.ErrUnavailable)
}

type dialledKey struct{}

// dialled is the connection of a call that may be given up.
type dialled struct {
	mu      sync.Mutex // guards following
	conn    net.Conn
	givenUp bool
}

// giveUp closes the connection, now or as soon as there is one.
func (d *dialled) giveUp() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.givenUp = true
	if d.conn != nil {
		_ = d.conn.Close() // the call fails
	}
}

func (d *dialled) set(conn net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = conn
	if d.givenUp {
		_ = conn.Close()
	}
}

// A dialer is as in http.Transport.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// noting has Hijack know of the connections it asks for. With TLS the Docker client
// dials on its own (v28.5); such a call is left behind until Docker answers.
func (dial dialer) noting() dialer {
	if dial == nil {
		return nil
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if d, ok := ctx.Value(dialledKey{}).(*dialled); ok && err == nil {
			d.set(conn)
		}
		return conn, err
	}
}
