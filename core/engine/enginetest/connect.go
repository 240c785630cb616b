package enginetest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"berth/core/engine"
)

// WaitTimeout is how long tests wait for asynchronous results.
const WaitTimeout = 10 * time.Second

// Connect returns an engine.Engine that is connected to e, until t ends.
func (e *Engine) Connect(t testing.TB) *engine.Engine {
	t.Helper()
	docker, err := engine.New(engine.Config{Host: e.Host}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	Background(t, docker.Run)
	ctx, cancel := context.WithTimeout(t.Context(), WaitTimeout)
	defer cancel()
	if _, err := docker.WaitConn(ctx); err != nil {
		t.Fatal(err)
	}
	return docker
}

// Background runs run until t ends, and fails t if it does not return then.
func Background(t testing.TB, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("in the background: %v", err)
			}
		case <-time.After(WaitTimeout):
			t.Error("what runs in the background does not end with its context")
		}
	})
}

// untilTimeout is how long Until waits. A long timeout costs nothing if the condition becomes
// true, and a busy machine may need longer than Patience.
const untilTimeout = 3 * WaitTimeout

// Until waits until cond is true, and fails t with the message what if it does not become so.
func Until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for limit := time.Now().Add(untilTimeout); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal(what)
		}
	}
}
