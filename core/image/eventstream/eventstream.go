// Package eventstream keeps something current over one connection to the Engine after the other.
package eventstream

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"berth/core/engine"
	"berth/core/panics"
)

// retryInterval is the pause after an error, unless the connection is replaced earlier.
const retryInterval = 5 * time.Second

// Errors of the function that Run calls. ErrEnded is no warning, and after ErrReplaced there is neither a message nor a pause.
var (
	ErrEnded    = errors.New("the event stream ended")
	ErrReplaced = errors.New("the connection to docker has been replaced")
)

// Run calls follow with the current connection, again and again until ctx ends, and returns nil then. follow returns when its event
// stream breaks or it fails; failed logs the error. log is for panics.
func Run(ctx context.Context, docker *engine.Engine, log *slog.Logger, failed func(slog.Level, error), follow func(context.Context, *engine.Conn) error) error {
	for {
		conn, err := docker.WaitConn(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		err = panics.Try(log, func() error { return follow(ctx, conn) })
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrReplaced) {
			continue
		}
		level := slog.LevelWarn
		if engine.IsUnavailable(err) || errors.Is(err, ErrEnded) { // core/cache logs it
			level = slog.LevelDebug
		}
		failed(level, err)
		bounded, cancel := context.WithTimeout(ctx, retryInterval)
		docker.WaitReplaced(bounded, conn, nil)
		cancel()
	}
}
