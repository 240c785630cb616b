package image_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"berth/core/engine/enginetest"
	"berth/core/image"
	"berth/core/image/pullprogress"
	"berth/core/image/verify"
)

// TestErrorSaysHowFarAPullWas: callers that share a pull see one, and each gets its state when its time is over.
func TestErrorSaysHowFarAPullWas(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	tracker := pullprogress.New(nil, slog.New(slog.DiscardHandler))
	images := newService(t, e, image.Config{PullProgressTimeout: time.Minute, Progress: tracker})
	e.Registry("r.test/a:1", enginetest.Remote{Image: enginetest.Image{Size: 100 << 20}, Stall: "Downloading"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all errgroup.Group
	for range 3 {
		all.Go(func() error {
			_, err := images.Pull(pullprogress.WithPod(ctx, "ns", "web"), "r.test/a:1", "", nil, verify.Pod{})
			if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), `pull image "r.test/a:1": context canceled: 0 of 1 layers, 50 of 100 MiB after `) {
				t.Errorf("%v", err)
			}
			return nil
		})
	}
	enginetest.Until(t, "no progress of one pull for three callers", func() bool {
		list := tracker.List().Pulls
		return len(list) == 1 && list[0].Callers == 3 && list[0].Bytes == 50<<20 && len(list[0].Pods) == 1
	})
	cancel()
	_ = all.Wait()
	if list := tracker.List().Pulls; len(list) != 0 {
		t.Errorf("ended, but listed: %+v", list)
	}
}

func TestStalledPullSaysHowFarItWas(t *testing.T) {
	t.Parallel()
	images, e := newServiceAndEngine(t, "")
	e.Registry("r.test/a:1", enginetest.Remote{Image: enginetest.Image{Size: 100 << 20}, Stall: "Downloading"})
	if _, err := images.Pull(t.Context(), "r.test/a:1", "", nil, verify.Pod{}); err == nil || !strings.Contains(err.Error(), "no progress for 1s: 0 of 1 layers, 50 of 100 MiB after ") {
		t.Errorf("%v", err)
	}
}
