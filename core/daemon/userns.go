package daemon

import (
	"context"
	"log/slog"

	"berth/core/engine"
	"berth/core/userns"
)

// logUserNamespaces logs whether pods with the default runtime handler can have user namespaces, and why not: for the first
// connection to Docker, and for later ones, also after reloads, when the answer has changed. It returns when ctx ends.
func logUserNamespaces(ctx context.Context, docker *engine.Engine, support userns.Support, log *slog.Logger) error {
	logged, last := false, ""
	for ctx.Err() == nil { // WaitConn returns a connection that is there even if ctx has ended
		conn, err := docker.WaitConn(ctx)
		if err != nil {
			return nil //nolint:nilerr // ctx has ended
		}
		runtime, err := support.Runtime("", conn.Features)
		reason := ""
		if err != nil {
			reason = err.Error()
		}
		switch {
		case logged && reason == last:
		case err != nil:
			log.Info("pods cannot have user namespaces", slog.String("reason", reason))
		default:
			log.Info("pods can have user namespaces", slog.String("runtime", runtime))
		}
		logged, last = true, reason
		docker.WaitReplaced(ctx, conn, nil)
	}
	return nil
}
