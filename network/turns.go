package network

import (
	"context"
	"sync"
)

// turns lets operations on the same pod take turns.
type turns struct {
	mu    sync.Mutex // guards queue
	queue map[string]*turn
}

// A turn is an id that somebody works on or waits for.
type turn struct {
	busy  chan struct{} // holds one token while somebody has the turn
	users int
}

// take waits for the turn of id and returns how to give it back. It fails only
// with the error of ctx.
func (t *turns) take(ctx context.Context, id string) (done func(), err error) {
	t.mu.Lock()
	if t.queue == nil {
		t.queue = map[string]*turn{}
	}
	w := t.queue[id]
	if w == nil {
		w = &turn{busy: make(chan struct{}, 1)}
		t.queue[id] = w
	}
	w.users++
	t.mu.Unlock()

	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if w.users--; w.users == 0 {
			delete(t.queue, id)
		}
	}
	select {
	case w.busy <- struct{}{}:
		return func() { <-w.busy; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// recentSize is how many ids a recent remembers.
const recentSize = 1024

// recent is a set of the ids added last.
type recent struct {
	order [recentSize]string
	next  int
	set   map[string]int // id to place in order
}

func (r *recent) add(id string) {
	r.remove(id)
	if r.set == nil {
		r.set = map[string]int{}
	}
	delete(r.set, r.order[r.next])
	r.order[r.next], r.set[id] = id, r.next
	r.next = (r.next + 1) % recentSize
}

func (r *recent) remove(id string) {
	if place, ok := r.set[id]; ok {
		r.order[place] = ""
		delete(r.set, id)
	}
}

func (r *recent) has(id string) bool {
	_, ok := r.set[id]
	return ok
}
