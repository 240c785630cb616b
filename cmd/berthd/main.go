// Command berthd lets a kubelet run its pods on a Docker Engine: it serves the
// Kubernetes Container Runtime Interface on a Unix socket and speaks to Docker.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"
)

// Exit codes.
const (
	exitStopped = 0 // was told to stop, and did
	exitFailed  = 1 // could not do its work
	exitMisused = 2 // was told what makes no sense
)

// gcPercent has garbage collected twice as often as Go does by itself: memory of the
// node is for pods, and berthd makes little garbage. GOGC says otherwise.
const gcPercent = 50

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	c := call{name: program(os.Args[0]), args: os.Args[1:], file: defaultConfigFile, out: os.Stdout}
	os.Exit(start(context.Background(), c, os.Stderr))
}

// start does what c asks for and returns the exit code. What went wrong is one
// line for the operator; all else that it writes to stderr is the log.
func start(ctx context.Context, c call, stderr io.Writer) int {
	version, commit = built()
	err := do(ctx, c, stderr)
	if err == nil {
		return exitStopped
	}
	fmt.Fprintf(stderr, "%s: %v\n", c.name, err)
	var misuse *usageError
	if errors.As(err, &misuse) {
		return exitMisused
	}
	return exitFailed
}

// do reads what the operator wants, listens and serves.
func do(ctx context.Context, c call, stderr io.Writer) error {
	// From here on a hang-up, which units send to reload, no longer ends us.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)

	cfg, done, err := parse(c)
	if err != nil || done {
		return err
	}
	if cfg.verb == verbDoctor {
		return doctor(ctx, cfg, c.out)
	}
	log, level := newLog(stderr, cfg)
	for _, w := range cfg.warnings {
		log.LogAttrs(ctx, slog.LevelWarn, "option without effect", w.attrs()...)
	}
	l, err := listen(cfg.Endpoint)
	if err != nil {
		return err
	}
	defer l.Close()

	var aside sync.WaitGroup
	defer aside.Wait()
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // whoever asks a second time does not want to wait
	aside.Go(func() { reload(ctx, hangups, c, cfg, level, log) })
	return run(ctx, cfg, l, log)
}
