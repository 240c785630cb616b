package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/streaming"
)

// reopenInterval is how often an address that is taken is tried.
const reopenInterval = 5 * time.Second

// A runner works until ctx ends.
type runner interface {
	Run(ctx context.Context) error
}

// A reopener keeps a server for which pods must not wait: where its address is taken,
// by a process that bound it while we were restarted, it is tried again and again while the
// rest of the daemon does its work.
type reopener[S runner] struct {
	what     string // is served, for the log
	open     func() (S, error)
	opened   func(S) // called once it is open
	interval time.Duration
	log      *slog.Logger

	mu     sync.Mutex // guards following
	server S
	closed error // why there is no server, nil once there is one
}

// reopening returns a reopener that has tried once. The error is one that no time will
// mend.
func reopening[S runner](what string, open func() (S, error), opened func(S), log *slog.Logger) (*reopener[S], error) {
	r := &reopener[S]{what: what, open: open, opened: opened, interval: reopenInterval, log: log}
	if err := r.try(); err != nil && !taken(err) {
		return nil, err
	}
	if r.closed != nil {
		log.Error("an address is taken and what it is for is not served; trying again", slog.String("what", what), slog.Any("err", r.closed))
	}
	return r, nil
}

// taken reports whether err says that an address cannot be had now: another process has
// it, or the node does not have it yet.
func taken(err error) bool {
	return errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// try opens the server.
func (r *reopener[S]) try() error {
	server, err := r.open()
	r.mu.Lock()
	r.server, r.closed = server, err
	r.mu.Unlock()
	if err == nil {
		r.opened(server)
	}
	return err
}

// use returns the server. While there is none the error is of kind Unavailable.
func (r *reopener[S]) use() (S, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed != nil {
		return r.server, fmt.Errorf("%s: %w, trying again: %w", r.what, errdefs.ErrUnavailable, r.closed)
	}
	return r.server, nil
}

// Run serves until ctx ends, as soon as the address is to be had.
func (r *reopener[S]) Run(ctx context.Context) error {
	tick := time.NewTicker(r.interval)
	defer tick.Stop()
	for {
		if server, err := r.use(); err == nil {
			return server.Run(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		// Nothing stands in the way that has not done so at the start: it is tried
		// again whatever the error.
		if r.try() == nil {
			r.log.Info("an address that was taken is ours", slog.String("what", r.what))
		}
	}
}

// streams prepare exec, attach and port-forward where they are served.
type streams struct{ *reopener[*streaming.Server] }

func (s streams) Exec(r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	server, err := s.use()
	if err != nil {
		return nil, err
	}
	return server.Exec(r)
}

func (s streams) Attach(r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	server, err := s.use()
	if err != nil {
		return nil, err
	}
	return server.Attach(r)
}

func (s streams) PortForward(r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	server, err := s.use()
	if err != nil {
		return nil, err
	}
	return server.PortForward(r)
}

// serveStreams opens what serves exec, attach and port-forward.
func serveStreams(cfg Config, runtime streaming.Runtime, log *slog.Logger) (streams, error) {
	if cfg.StreamingTLS == (streaming.KeyPair{}) && cfg.StreamingAddr != "" && !onLoopback(hostOf(cfg.StreamingAddr)) {
		log.Warn("exec, attach and port-forward are served over the network without TLS: anyone who is on the way reads and writes along; set streaming-tls-cert-file and streaming-tls-private-key-file, or leave streaming-bind-addr empty",
			slog.String("streaming-bind-addr", cfg.StreamingAddr))
	}
	r, err := reopening("exec, attach and port-forward (--streaming-bind-addr)", func() (*streaming.Server, error) {
		s, err := streaming.Listen(cfg.StreamingAddr, cfg.StreamingTLS, runtime)
		if err == nil {
			s.ErrorLog = log
		}
		return s, err
	}, func(s *streaming.Server) { log.Info("streams are served", slog.String("streams", s.URL())) }, log)
	return streams{r}, err
}
