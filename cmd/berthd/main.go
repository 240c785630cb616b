// Command berthd lets a kubelet run its pods on a Docker Engine: it serves the
// Kubernetes Container Runtime Interface on a Unix socket and speaks to Docker.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Exit codes.
const (
	exitFailed  = 1 // could not do its work
	exitMisused = 2 // was told what makes no sense
)

func main() {
	err := start(context.Background(), os.Args)
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", program(os.Args[0]), err)
	var misuse *usageError
	if errors.As(err, &misuse) {
		os.Exit(exitMisused)
	}
	os.Exit(exitFailed)
}

// start reads what the operator wants, listens and serves.
func start(ctx context.Context, args []string) error {
	cfg, done, err := parse(args[0], args[1:], os.Stdout)
	if err != nil || done {
		return err
	}
	// A reload is a restart, which pods do not notice; the signal itself must
	// not end the daemon, for units have it as ExecReload.
	signal.Ignore(unix.SIGHUP)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	log := newLog(os.Stderr, cfg)
	for _, w := range cfg.warnings {
		log.Warn("a flag that does nothing", slog.String("why", w))
	}
	l, err := listen(cfg.Endpoint)
	if err != nil {
		return err
	}
	return run(ctx, cfg, l, log)
}
