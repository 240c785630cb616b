// Package sleep has the one helper that waits for a duration or the end of a context.
package sleep

import (
	"context"
	"time"
)

// WithContext returns nil after d, or the error of ctx as soon as ctx ends.
func WithContext(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
