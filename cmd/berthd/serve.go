package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth/cmd/berthd/internal/config"
)

// serve loads the configuration, listens and runs the daemon until SIGINT or SIGTERM.
func (p *program) serve(cmd *cobra.Command, options *config.Options) error {
	if err := options.Load(); err != nil {
		return err
	}
	log, level := newLog(p.stderr, options.Config)
	for _, w := range options.Warnings() {
		log.Warn("option without effect", slog.String("option", w.Option), slog.String("given", w.Source), slog.String("why", w.Reason))
	}
	l, err := listen(options.Endpoint)
	if err != nil {
		return err
	}
	defer l.Close()

	var reloads sync.WaitGroup
	defer reloads.Wait()
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	reloads.Go(func() { reload(ctx, p.hangups, options, level, log) })
	return run(ctx, options.Config, l, log)
}

// reload reads the configuration again at each SIGHUP until ctx ends. Only the log level is
// applied: the rest takes a restart, which does not affect running pods.
func reload(ctx context.Context, hangups <-chan os.Signal, options *config.Options, level *slog.LevelVar, log *slog.Logger) {
	applied := options.Config
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		next, err := options.Reload()
		if err != nil {
			log.Error("the configuration is wrong now, nothing is changed", slog.Any("err", err))
			continue
		}
		level.Set(next.SlogLevel())
		applied.LogLevel = next.LogLevel
		needsRestart := !reflect.DeepEqual(next.Config, applied) || !slices.Equal(next.Warnings(), options.Warnings())
		log.Info("configuration read again", slog.String("log-level", next.LogLevel), slog.Bool("restart-for-the-rest", needsRestart))
	}
}
