package singleflight

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
)

func TestCallRunsUntilItsLastCallerLeaves(t *testing.T) {
	group := Group[string]{Log: slog.New(slog.DiscardHandler)}
	var started, returned sync.WaitGroup
	release := make(chan struct{})
	count := 0
	started.Add(1)
	fn := func(ctx context.Context) (string, error) {
		count++
		started.Done()
		select {
		case <-release:
			return "value", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	a, b := group.join(t.Context(), "k", fn), group.join(t.Context(), "k", fn)
	started.Wait()
	group.leave(a)
	returned.Go(func() {
		<-b.done
		if b.value != "value" || b.err != nil || count != 1 {
			t.Errorf("got %q, %v from %d calls", b.value, b.err, count)
		}
	})
	close(release)
	returned.Wait()

	started.Add(1)
	release = make(chan struct{})
	c := group.join(t.Context(), "k", fn)
	started.Wait()
	group.leave(c) // the last caller
	<-c.done
	if !errors.Is(c.err, context.Canceled) {
		t.Errorf("err = %v, want canceled", c.err)
	}
}

func TestDoReturnsWhenItsContextEnds(t *testing.T) {
	group := Group[int]{Log: slog.New(slog.DiscardHandler)}
	started, release := make(chan struct{}), make(chan struct{})
	go group.Do(t.Context(), "k", func(context.Context) (int, error) { // the other caller is tested
		close(started)
		<-release
		return 5, nil
	})
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := group.Do(ctx, "k", nil); got != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("got %d, %v; want canceled", got, err)
	}
	close(release)
}

func TestPanicOfACallIsAnError(t *testing.T) {
	group := Group[int]{Log: slog.New(slog.DiscardHandler)}
	if _, err := group.Do(t.Context(), "k", func(context.Context) (int, error) { panic("x") }); err == nil {
		t.Error("no error")
	}
}
