package daemon

import (
	"context"
	"log/slog"

	"berth/core/engine"
	"berth/core/podpolicy"
)

// warnOfLimitations logs which options have no effect with the Engine, for each new connection
// those that it has not logged yet. It returns when ctx ends.
func warnOfLimitations(ctx context.Context, docker *engine.Engine, policy podpolicy.Policy, log *slog.Logger) error {
	logged := map[podpolicy.Limitation]bool{}
	for ctx.Err() == nil { // WaitConn returns a connection that is there even if ctx has ended
		conn, err := docker.WaitConn(ctx)
		if err != nil {
			return nil //nolint:nilerr // ctx has ended
		}
		for _, l := range policy.Limitations(conn.Features) {
			if !logged[l] {
				logged[l] = true
				log.Warn("an option has no effect with this docker", slog.String("option", l.Option), slog.String("reason", l.Reason), slog.String("fix", l.Fix))
			}
		}
		docker.WaitReplaced(ctx, conn, nil)
	}
	return nil
}
