package main

import (
	"context"
	"os/signal"
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
	warnOfIgnored(options.Warnings(), log)
	l, err := listen(options.Endpoint)
	if err != nil {
		return err
	}
	defer l.Close()
	debug := listenDebug(options.DebugSocketPath(), log)
	if debug != nil {
		defer debug.Close()
	}

	d, err := newDaemon(options.Config, debug, log)
	if err != nil {
		return err
	}
	var reloads sync.WaitGroup
	defer reloads.Wait()
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	reloads.Go(func() { newReloader(options, live{d, level}, log).run(ctx, p.hangups) })
	return d.Run(ctx, l)
}
