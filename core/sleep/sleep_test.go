package sleep

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestWithContextReturnsAfterTheDurationOrWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if err := WithContext(t.Context(), time.Minute); err != nil || time.Since(start) != time.Minute {
			t.Errorf("slept: %v after %v, want nil after a minute", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if err := WithContext(ctx, time.Minute); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("context ended: %v after %v, want DeadlineExceeded after a second", err, time.Since(start))
		}
	})
}
