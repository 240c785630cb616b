package kmutex_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"berth/core/kmutex"
)

func TestOneAtATimePerKey(t *testing.T) {
	var all kmutex.Mutex
	var wg sync.WaitGroup
	counts := map[string]*int{"a": new(int), "b": new(int)}
	for key, n := range counts {
		for range 50 {
			wg.Go(func() {
				done, err := all.Lock(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				defer done()
				*n++ // the race detector is the judge
			})
		}
	}
	wg.Wait()
	for key, n := range counts {
		if *n != 50 {
			t.Errorf("%s: %d turns, want 50", key, *n)
		}
	}
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	var all kmutex.Mutex
	done, err := all.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := all.Lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v, want canceled", err)
	}
	other, err := all.Lock(t.Context(), "b")
	if err != nil {
		t.Errorf("another key had to wait: %v", err)
	}
	other()
	done()
	again, err := all.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestTryDoesNotWait(t *testing.T) {
	var all kmutex.Mutex
	done, ok := all.TryLock("a")
	if !ok {
		t.Fatal("nobody has the turn")
	}
	if _, ok := all.TryLock("a"); ok {
		t.Error("two have the turn")
	}
	done()
	if done, ok := all.TryLock("a"); !ok {
		t.Error("the turn was not given back")
	} else {
		done()
	}
}
