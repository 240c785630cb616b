package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// reopenInterval is how often listening is retried on an address that is in use.
const reopenInterval = 5 * time.Second

// A runner works until ctx ends.
type runner interface {
	Run(ctx context.Context) error
}

// A reopener keeps a server that pods do not depend on. If its address is in use, for example
// by a process that bound it during a restart of berthd, listening is retried while the rest of
// the daemon works.
type reopener[S runner] struct {
	name     string // for the log
	open     func() (S, error)
	opened   func(S) // called once it is open
	interval time.Duration
	log      *slog.Logger

	mu     sync.Mutex // guards following
	server S
	err    error // why there is no server, nil once there is one
}

// newReopener returns a reopener that has tried once. It fails if the error is one that does not
// go away by itself.
func newReopener[S runner](name string, open func() (S, error), opened func(S), log *slog.Logger) (*reopener[S], error) {
	r := &reopener[S]{name: name, open: open, opened: opened, interval: reopenInterval, log: log}
	if err := r.try(); err != nil && !addressUnavailable(err) {
		return nil, err
	}
	if r.err != nil {
		log.Error("cannot listen: address in use; retrying", slog.String("server", name), slog.Duration("interval", r.interval), slog.Any("err", r.err))
	}
	return r, nil
}

// addressUnavailable reports whether err says that another process uses the address, or that the
// node does not have it yet.
func addressUnavailable(err error) bool {
	return errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// try opens the server.
func (r *reopener[S]) try() error {
	server, err := r.open()
	r.mu.Lock()
	r.server, r.err = server, err
	r.mu.Unlock()
	if err == nil {
		r.opened(server)
	}
	return err
}

// get returns the server. While there is none the error is of kind Unavailable.
func (r *reopener[S]) get() (S, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.server, fmt.Errorf("%s: %w, retrying: %w", r.name, errdefs.ErrUnavailable, r.err)
	}
	return r.server, nil
}

// Run serves until ctx ends, once the address can be bound.
func (r *reopener[S]) Run(ctx context.Context) error {
	tick := time.NewTicker(r.interval)
	defer tick.Stop()
	for {
		if server, err := r.get(); err == nil {
			return server.Run(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		// The configuration was checked by the first try, so every error is retried.
		if r.try() == nil {
			r.log.Info("listening; the address is free again", slog.String("server", r.name))
		}
	}
}
