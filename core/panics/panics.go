// Package panics converts a panic into an error of the function that panicked. A panic in a
// goroutine terminates the process; with this package only one call, or one pass of a
// background loop, fails.
package panics

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
)

// Try returns the error of f. If f panics, it logs the panic with its stack and
// returns an error of kind Internal.
func Try(log *slog.Logger, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic (a bug in berthd): this call, or this pass of a background loop, has failed",
				slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			err = fmt.Errorf("panic: %v: %w", p, errdefs.ErrInternal)
		}
	}()
	return f()
}

// Go runs f in a goroutine of its own. A panic in it is logged.
func Go(log *slog.Logger, f func()) {
	go func() {
		_ = Try(log, func() error { f(); return nil })
	}()
}

// A Group is an errgroup.Group in which a panic is the error of the function that
// panicked.
type Group struct {
	group *errgroup.Group
	log   *slog.Logger
}

// NewGroup returns a Group in which a failed function does not cancel the others.
func NewGroup(log *slog.Logger) *Group { return &Group{&errgroup.Group{}, log} }

// NewGroupWithContext returns a Group and a context that is cancelled when one of the
// group's functions fails or when Wait returns.
func NewGroupWithContext(ctx context.Context, log *slog.Logger) (*Group, context.Context) {
	g, ctx := errgroup.WithContext(ctx)
	return &Group{g, log}, ctx
}

// SetLimit limits how many functions run at a time, as errgroup.Group does.
func (g *Group) SetLimit(n int) { g.group.SetLimit(n) }

// Go runs f in a goroutine of its own.
func (g *Group) Go(f func() error) {
	g.group.Go(func() error { return Try(g.log, f) })
}

// Wait waits for all functions and returns the first error.
func (g *Group) Wait() error { return g.group.Wait() }
