package kmutex_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"berth/core/kmutex"
)

func TestLockExcludesCallersWithTheSameKey(t *testing.T) {
	var mutex kmutex.Mutex
	var wg sync.WaitGroup
	counts := map[string]*int{"a": new(int), "b": new(int)}
	for key, n := range counts {
		for range 50 {
			wg.Go(func() {
				unlock, err := mutex.Lock(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				defer unlock()
				*n++ // the race detector fails the test if two callers have the lock
			})
		}
	}
	wg.Wait()
	for key, n := range counts {
		if *n != 50 {
			t.Errorf("%s: locked %d times, want 50", key, *n)
		}
	}
}

func TestLockReturnsWhenContextEnds(t *testing.T) {
	var mutex kmutex.Mutex
	unlock, err := mutex.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := mutex.Lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v, want canceled", err)
	}
	unlockOther, err := mutex.Lock(t.Context(), "b")
	if err != nil {
		t.Errorf("another key is locked: %v", err)
	}
	unlockOther()
	unlock()
	unlock() // has no effect
	unlock, err = mutex.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestTryLockDoesNotWait(t *testing.T) {
	var mutex kmutex.Mutex
	unlock, ok := mutex.TryLock("a")
	if !ok {
		t.Fatal("TryLock failed on a free lock")
	}
	if _, ok := mutex.TryLock("a"); ok {
		t.Error("two callers have the lock")
	}
	unlock()
	unlock, ok = mutex.TryLock("a")
	if !ok {
		t.Fatal("TryLock failed after unlock")
	}
	unlock()
}
