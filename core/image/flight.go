package image

import (
	"context"
	"log/slog"
	"sync"

	"berth/core/panics"
)

// flights are pieces of work under way that callers share, by key.
type flights struct {
	log *slog.Logger

	mu      sync.Mutex // guards running
	running map[string]*flight
}

// A flight goes on as long as a caller waits for it.
type flight struct {
	waiters int
	cancel  context.CancelFunc
	done    chan struct{}
	id      string // of an image, once done is closed, like err
	err     error
}

// do has work return the ID of an image. Calls with the same key at the same time share one
// work, whose context ends when all of them have gone. A caller waits no longer than its own ctx
// lasts.
func (all *flights) do(ctx context.Context, key string, work func(context.Context) (string, error)) (string, error) {
	f := all.join(ctx, key, work)
	select {
	case <-f.done:
		return f.id, f.err
	case <-ctx.Done():
		all.leave(f)
		return "", ctx.Err()
	}
}

// join returns the flight called key, which is begun if need be.
func (all *flights) join(ctx context.Context, key string, work func(context.Context) (string, error)) *flight {
	all.mu.Lock()
	defer all.mu.Unlock()
	if f, ok := all.running[key]; ok && f.waiters > 0 {
		f.waiters++
		return f
	}
	// It belongs to all who wait, and ends with the last of them.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{waiters: 1, cancel: cancel, done: make(chan struct{})}
	if all.running == nil {
		all.running = map[string]*flight{}
	}
	all.running[key] = f
	panics.Go(all.log, func() {
		defer cancel()
		f.err = panics.Try(all.log, func() (err error) {
			f.id, err = work(ctx)
			return err
		})
		all.mu.Lock()
		if all.running[key] == f {
			delete(all.running, key)
		}
		all.mu.Unlock()
		close(f.done)
	})
	return f
}

// leave removes one waiter from f and cancels it with the last.
func (all *flights) leave(f *flight) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.cancel()
	}
}
