package panics_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"berth/core/panics"
)

func TestTryReturnsPanicAsInternalErrorAndLogsStack(t *testing.T) {
	var out bytes.Buffer
	err := panics.Try(slog.New(slog.NewTextHandler(&out, nil)), func() error { panic("index out of range") })
	if !errdefs.IsInternal(err) || !strings.Contains(err.Error(), "index out of range") {
		t.Errorf("error %v", err)
	}
	if !strings.Contains(out.String(), "panics_test.go") {
		t.Errorf("the log has no stack: %s", out.String())
	}
	failed := errors.New("failed")
	if err := panics.Try(slog.New(slog.DiscardHandler), func() error { return failed }); !errors.Is(err, failed) || errdefs.IsInternal(err) {
		t.Errorf("error %v, want the one that was returned", err)
	}
}

func TestPanicOfOneFunctionCancelsGroup(t *testing.T) {
	g, ctx := panics.NewGroupWithContext(t.Context(), slog.New(slog.DiscardHandler))
	g.Go(func() error { <-ctx.Done(); return nil })
	g.Go(func() error { panic("broken") })
	if err := g.Wait(); !errdefs.IsInternal(err) {
		t.Errorf("error %v", err)
	}
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Error("the others were not cancelled")
	}
}

func TestGoRecoversPanic(t *testing.T) {
	done := make(chan struct{})
	panics.Go(slog.New(slog.DiscardHandler), func() { defer close(done); panic("broken") })
	<-done
}
