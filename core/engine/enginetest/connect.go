package enginetest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"berth/core/engine"
)

// Patience is how long tests wait for what happens in its own time.
const Patience = 10 * time.Second

// Connect returns the way to e as rooms know it, connected. It is kept so until
// t ends.
func (e *Engine) Connect(t testing.TB) *engine.Engine {
	t.Helper()
	docker, err := engine.New(engine.Config{Host: e.Host}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	Background(t, docker.Run)
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	if _, err := docker.WaitConn(ctx); err != nil {
		t.Fatal(err)
	}
	return docker
}

// Background lets run run until t ends, and sees that it ends then.
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
		case <-time.After(Patience):
			t.Error("what runs in the background does not end with its context")
		}
	})
}

// untilTimeout is how long Until waits. It costs nothing where the condition holds, and
// a busy machine may need longer than Patience.
const untilTimeout = 3 * Patience

// Until waits for cond to hold, and fails t with what if it does not.
func Until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for limit := time.Now().Add(untilTimeout); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal(what)
		}
	}
}
