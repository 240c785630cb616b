package resources

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestBusyCgroupIsRetriedForAWhile(t *testing.T) {
	busy := fmt.Errorf("set memory.limit_in_bytes: %w", syscall.EBUSY)
	other := errors.New("other")
	for name, tt := range map[string]struct {
		errs []error // of the calls; the last one repeats
		want error
		took time.Duration
	}{
		"applied":          {[]error{nil}, nil, 0},
		"busy, applied":    {[]error{busy, busy, nil}, nil, 2 * busyRetryInterval},
		"busy, then fails": {[]error{busy, other}, other, busyRetryInterval},
		"fails":            {[]error{other}, other, 0},
		"busy for ever":    {[]error{busy}, busy, busyTimeout + busyRetryInterval},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin, call := time.Now(), 0
				err := retryBusy(t.Context(), func() error {
					defer func() { call = min(call+1, len(tt.errs)-1) }()
					return tt.errs[call]
				})
				if took := time.Since(begin); !errors.Is(err, tt.want) || took != tt.took {
					t.Errorf("%v after %v, want %v after %v", err, took, tt.want, tt.took)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), busyRetryInterval/2)
		defer cancel()
		if err := retryBusy(ctx, func() error { return busy }); !errors.Is(err, busy) {
			t.Errorf("cancelled: %v", err)
		}
	})
}
