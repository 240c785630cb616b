package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"reflect"
)

// reload reads the configuration again at each hang-up until ctx ends. Only the
// log level is taken over: all else is for a restart, which pods do not notice.
func reload(ctx context.Context, hangups <-chan os.Signal, c call, cfg Config, level *slog.LevelVar, log *slog.Logger) {
	c.out = io.Discard
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		read, _, err := parse(c)
		if err != nil {
			log.Error("the configuration is wrong now, nothing is changed", slog.Any("err", err))
			continue
		}
		level.Set(levels[read.LogLevel])
		cfg.LogLevel = read.LogLevel
		log.Info("configuration read again",
			slog.String("log-level", cfg.LogLevel), slog.Bool("restart-for-the-rest", !reflect.DeepEqual(read, cfg)))
	}
}
