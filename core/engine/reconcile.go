package engine

import (
	"context"
	"log/slog"
	"time"

	"berth/core/panics"
)

const (
	// reconcileInterval is how often a function of ReconcileLoop that has succeeded is
	// called again during one connection: somebody else may have changed what it sets up.
	reconcileInterval = 15 * time.Minute
	// The pause after a failure begins with reconcileBackoffMin and doubles up to
	// reconcileBackoffMax: some functions wait for a pod, as of a network plugin.
	reconcileBackoffMin = time.Second
	reconcileBackoffMax = time.Minute
)

// ReconcileConfig is what ReconcileLoop needs besides its function.
type ReconcileConfig struct {
	Name  string                      // of the loop, for the log
	Ready func(context.Context) error // the function is called only when Ready returns nil
	Wake  <-chan struct{}             // an element triggers a call; may be nil
}

// ReconcileLoop calls reconcile once for every connection to the Engine, repeats it with
// growing pauses until it succeeds, and after that every 15 minutes and when there is
// something in cfg.Wake. It returns nil when ctx ends.
func (e *Engine) ReconcileLoop(ctx context.Context, cfg ReconcileConfig, reconcile func(context.Context, *Conn) error) error {
	backoff, last := reconcileBackoffMin, (*Conn)(nil)
	for {
		conn, err := e.WaitConn(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		if err = cfg.Ready(ctx); err == nil {
			err = panics.Try(e.log, func() error { return reconcile(ctx, conn) })
		}
		if err == nil || conn != last {
			backoff, last = reconcileBackoffMin, conn
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			e.waitReplacedFor(ctx, conn, reconcileInterval, cfg.Wake)
		default:
			e.log.Warn("reconciliation with docker failed, will retry", slog.String("of", cfg.Name), slog.Any("err", err))
			e.waitReplacedFor(ctx, conn, backoff, nil)
			backoff = min(2*backoff, reconcileBackoffMax)
		}
	}
}

// waitReplacedFor is WaitReplaced for at most d.
func (e *Engine) waitReplacedFor(ctx context.Context, conn *Conn, d time.Duration, wake <-chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	e.WaitReplaced(ctx, conn, wake)
}
