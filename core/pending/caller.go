package pending

import (
	"context"
	"sync/atomic"
	"time"
)

// clockSkew: a context that was cancelled less than this before its deadline counts as timed out. The
// clock of the caller started first, so its cancellation may arrive before our deadline.
const clockSkew = time.Second

// A Caller tells whether the caller of an RPC still waits for the result, and if not, why.
type Caller struct {
	ctx  context.Context //nolint:containedctx // it is the subject
	left atomic.Pointer[time.Time]
}

// WatchCaller observes the context of an RPC until stop is called.
func WatchCaller(ctx context.Context) (c *Caller, stop func() bool) {
	c = &Caller{ctx: ctx}
	return c, context.AfterFunc(ctx, func() {
		now := time.Now()
		c.left.Store(&now)
	})
}

// TimedOut reports whether the deadline of the caller has expired. It will retry then; a caller that
// cancelled for another reason may not.
func (c *Caller) TimedOut() bool {
	left := time.Now()
	if at := c.left.Load(); at != nil {
		left = *at
	}
	deadline, limited := c.ctx.Deadline()
	return c.ctx.Err() != nil && limited && left.After(deadline.Add(-clockSkew))
}

// Canceled returns the error of the context if the caller has left and is not expected to retry.
func (c *Caller) Canceled() error {
	if c.TimedOut() {
		return nil
	}
	return c.ctx.Err()
}
