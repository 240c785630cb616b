package streaming

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// A Budget bounds the memory, in bytes, that all sessions together use for output that
// their clients have not read yet.
type Budget struct{ sem *semaphore.Weighted }

// NewBudget returns a Budget of n bytes.
func NewBudget(n int64) *Budget { return &Budget{semaphore.NewWeighted(n)} }

// TryAcquire takes n bytes, without blocking, and reports whether there were enough.
func (b *Budget) TryAcquire(n int) bool { return b.sem.TryAcquire(int64(n)) }

// Acquire waits for n bytes and takes them, or returns the error of ctx.
func (b *Budget) Acquire(ctx context.Context, n int) error { return b.sem.Acquire(ctx, int64(n)) }

// Release returns n bytes.
func (b *Budget) Release(n int) { b.sem.Release(int64(n)) }
