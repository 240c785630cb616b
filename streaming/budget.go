package streaming

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// A Budget is the memory that all sessions together may use for output that
// nobody has taken yet, in bytes.
type Budget struct{ free *semaphore.Weighted }

// NewBudget returns a Budget of n bytes.
func NewBudget(n int64) *Budget { return &Budget{semaphore.NewWeighted(n)} }

// Take takes n bytes if they are to be had at once.
func (b *Budget) Take(n int) bool { return b.free.TryAcquire(int64(n)) }

// Wait takes n bytes as soon as they are to be had, or returns the error of ctx.
func (b *Budget) Wait(ctx context.Context, n int) error { return b.free.Acquire(ctx, int64(n)) }

// Return gives n bytes back that were taken.
func (b *Budget) Return(n int) { b.free.Release(int64(n)) }
