package pending_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth/core/kmutex"
	"berth/core/pending"
)

// A fixture is a Store of objects that are described by a string.
type fixture struct {
	*pending.Store[string]
	locks kmutex.Mutex

	mu      sync.Mutex // guards following
	removed map[string]string
	fail    error // of the next removals
}

func newFixture() *fixture {
	f := &fixture{removed: map[string]string{}}
	f.Store = pending.New(pending.Config[string]{
		Kind: "pod", Lock: f.locks.Lock, Log: slog.New(slog.DiscardHandler),
		Remove: func(_ context.Context, id, object string) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.fail == nil {
				f.removed[id] = object
			}
			return f.fail
		},
	})
	return f
}

// removals returns what has been removed so far.
func (f *fixture) removals() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.removed)
}

func TestTakeReturnsAnObjectOnce(t *testing.T) {
	f := newFixture()
	f.Put("web", "id1", "request")
	if _, _, ok := f.Take("other"); ok {
		t.Error("another key has an object")
	}
	if id, object, ok := f.Take("web"); !ok || id != "id1" || object != "request" {
		t.Errorf("Take: %q, %q, %v", id, object, ok)
	}
	if id, _, ok := f.Take("web"); ok {
		t.Errorf("taken twice: %s", id)
	}
	f.Expire(t.Context(), time.Now().Add(time.Hour))
	if removed := f.removals(); len(removed) > 0 {
		t.Errorf("an object that was taken is removed: %v", removed)
	}
}

func TestRunRemovesUnclaimedObjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		f.Put("old", "id1", "first")
		time.Sleep(pending.TTL - time.Second)
		f.Put("young", "id2", "second")
		synctest.Wait()
		if removed := f.removals(); len(removed) > 0 {
			t.Errorf("removed before the TTL: %v", removed)
		}
		time.Sleep(pending.TTL/10 + time.Second)
		synctest.Wait()
		if removed := f.removals(); len(removed) != 1 || removed["id1"] != "first" {
			t.Errorf("removed %v, want the older one alone", removed)
		}
		if _, _, ok := f.Take("old"); ok {
			t.Error("a removed object can be taken")
		}
		if _, _, ok := f.Take("young"); !ok {
			t.Error("the younger object is gone")
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestExpireRetriesAFailedRemoval(t *testing.T) {
	f := newFixture()
	f.Put("web", "id1", "request")
	f.fail = errors.New("docker is unavailable")
	f.Expire(t.Context(), time.Now().Add(time.Minute))
	f.fail = nil
	f.Expire(t.Context(), time.Now().Add(-time.Minute))
	if removed := f.removals(); len(removed) > 0 {
		t.Errorf("removed %v, which is younger than the cutoff", removed)
	}
	f.Expire(t.Context(), time.Now().Add(time.Minute))
	if removed := f.removals(); len(removed) != 1 {
		t.Errorf("removed %v, want the object whose removal had failed", removed)
	}
}

// A retry that holds the lock of the key while an object expires gets the object.
func TestExpireLeavesAnObjectThatIsTakenMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.Put("web", "id1", "first")
		unlock, err := f.locks.Lock(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { f.Expire(t.Context(), time.Now().Add(time.Minute)); close(done) }()
		synctest.Wait()
		if _, _, ok := f.Take("web"); !ok {
			t.Error("the object is gone before its removal has the lock")
		}
		f.Put("web", "id2", "second")
		unlock()
		<-done
		if removed := f.removals(); len(removed) > 0 {
			t.Errorf("removed %v", removed)
		}
		if id, _, ok := f.Take("web"); !ok || id != "id2" {
			t.Errorf("Take: %q, %v, want the later object", id, ok)
		}
	})
}

func TestCallerDistinguishesDeadlineFromCancellation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, tt := range map[string]struct {
			deadline, cancelAfter time.Duration // 0 for none
			timedOut              bool
			err                   error
		}{
			"waits":                         {time.Minute, 0, false, nil},
			"waits without a deadline":      {0, 0, false, nil},
			"deadline expired":              {time.Second, 0, true, nil},
			"cancelled just before it":      {10 * time.Second, 9500 * time.Millisecond, true, nil},
			"cancelled long before it":      {time.Minute, 5 * time.Second, false, context.Canceled},
			"cancelled, without a deadline": {0, 5 * time.Second, false, context.Canceled},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			end := func() {}
			if tt.deadline > 0 {
				ctx, end = context.WithTimeout(ctx, tt.deadline)
			}
			c, stop := pending.WatchCaller(ctx)
			if tt.cancelAfter > 0 {
				time.AfterFunc(tt.cancelAfter, cancel)
			}
			time.Sleep(20 * time.Second) // what was asked for is made, later than the caller left
			synctest.Wait()
			if got := c.TimedOut(); got != tt.timedOut {
				t.Errorf("%s: TimedOut %v, want %v", name, got, tt.timedOut)
			}
			if err := c.Canceled(); !errors.Is(err, tt.err) {
				t.Errorf("%s: Canceled: %v, want %v", name, err, tt.err)
			}
			stop()
			end()
			cancel()
		}
	})
}
