// Package kmutex lets calls about the same thing take turns, while calls about
// different things go on side by side.
package kmutex

import (
	"context"
	"sync"
)

// Mutex are taken by key. The zero Turns is ready to use.
type Mutex struct {
	mu    sync.Mutex // guards queue
	queue map[string]*turn
}

// A turn is a key that somebody has or waits for.
type turn struct {
	free  chan struct{} // holds one token while nobody has the turn
	users int
}

// Lock waits for the turn of key and returns how to give it back. It fails
// only with the error of ctx.
func (t *Mutex) Lock(ctx context.Context, key string) (done func(), err error) {
	w := t.join(key)
	select {
	case <-w.free:
		return t.has(key, w), nil
	case <-ctx.Done():
		t.leave(key, w)
		return nil, ctx.Err()
	}
}

// TryLock is Take for those who do not wait: it fails where somebody has the turn.
func (t *Mutex) TryLock(key string) (done func(), ok bool) {
	w := t.join(key)
	select {
	case <-w.free:
		return t.has(key, w), true
	default:
		t.leave(key, w)
		return nil, false
	}
}

// has returns how the turn of key is given back.
func (t *Mutex) has(key string, w *turn) (done func()) {
	return sync.OnceFunc(func() { w.free <- struct{}{}; t.leave(key, w) })
}

// join makes the caller one of those who have or wait for the turn of key.
func (t *Mutex) join(key string) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.queue == nil {
		t.queue = map[string]*turn{}
	}
	w := t.queue[key]
	if w == nil {
		w = &turn{free: make(chan struct{}, 1)}
		w.free <- struct{}{}
		t.queue[key] = w
	}
	w.users++
	return w
}

// leave drops the key once nobody has or waits for it.
func (t *Mutex) leave(key string, w *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.users--; w.users == 0 {
		delete(t.queue, key)
	}
}
