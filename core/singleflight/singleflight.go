// Package singleflight lets concurrent callers share one call of a function. Unlike
// golang.org/x/sync/singleflight, a caller waits no longer than its own context lasts, and
// the shared call is cancelled once all its callers have gone.
package singleflight

import (
	"context"
	"log/slog"
	"sync"

	"berth/core/panics"
)

// A Group shares calls by key. Its methods may be called concurrently.
type Group[T any] struct {
	Log *slog.Logger // gets panics; must be set

	mu    sync.Mutex // guards calls and the callers of each
	calls map[string]*call[T]
}

// A call runs as long as a caller waits for it.
type call[T any] struct {
	callers int
	cancel  context.CancelFunc

	done  chan struct{} // closed once value and err are set
	value T
	err   error
}

// Do calls fn and returns its results. If a call with the same key is running, Do waits for
// that one instead. The context of fn has the values of the first caller's ctx, but not its
// deadline; it is cancelled when no caller is left.
//
// Do returns the error of ctx as soon as ctx is done.
func (g *Group[T]) Do(ctx context.Context, key string, fn func(context.Context) (T, error)) (T, error) {
	c := g.join(ctx, key, fn)
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		g.leave(c)
		var zero T
		return zero, ctx.Err()
	}
}

// join adds a caller to the call with the key, which it starts if there is none.
func (g *Group[T]) join(ctx context.Context, key string, fn func(context.Context) (T, error)) *call[T] {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c, ok := g.calls[key]; ok && c.callers > 0 {
		c.callers++
		return c
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &call[T]{callers: 1, cancel: cancel, done: make(chan struct{})}
	if g.calls == nil {
		g.calls = map[string]*call[T]{}
	}
	g.calls[key] = c
	panics.Go(g.Log, func() {
		defer cancel()
		c.err = panics.Try(g.Log, func() (err error) {
			c.value, err = fn(ctx)
			return err
		})
		g.mu.Lock()
		if g.calls[key] == c {
			delete(g.calls, key)
		}
		g.mu.Unlock()
		close(c.done)
	})
	return c
}

// leave removes a caller from c, and cancels c with the last one.
func (g *Group[T]) leave(c *call[T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.callers--; c.callers == 0 {
		c.cancel()
	}
}
