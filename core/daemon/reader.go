package daemon

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"berth/core/cache"
	"berth/core/container"
	"berth/core/engine"
	"berth/core/panics"
	"berth/core/sandbox"
	"berth/core/server"
	"berth/network"
)

// A Reader has the calls of the CRI that list pods and containers, for a node whose daemon does not
// run. It reads Docker and files by the rules of the daemon, and changes nothing on the node. Records in
// the daemon's state directory are not read: the reason of an exit is Docker's alone.
type Reader struct {
	*server.Server
	engine *engine.Engine
	cache  *cache.Cache
	host   string
	log    *slog.Logger
}

// NewReader returns a Reader. Of cfg it uses DockerHost, RequestTimeout and Network. Run keeps it current.
func NewReader(cfg Config, log *slog.Logger) (*Reader, error) {
	docker, err := engine.New(engine.Config{Host: cfg.DockerHost, Timeout: cfg.RequestTimeout}, log)
	if err != nil {
		return nil, err
	}
	cfg.Network.Template, cfg.Network.Generated = nil, nil
	cni := network.New(cfg.Network, log)
	objects := cache.New(cache.Config{Network: cni, Logs: noLogs{}}, docker, log)
	return &Reader{
		Server: server.New(server.Services{
			Engine: docker, Cache: objects, Network: cni,
			Sandboxes:  sandbox.New(sandbox.Config{Docker: docker, Cache: objects, Network: cni, Log: log}),
			Containers: container.New(container.Config{Engine: docker, Cache: objects, Log: log}),
		}, server.Info{}, log),
		engine: docker, cache: objects, host: cmp.Or(cfg.DockerHost, os.Getenv("DOCKER_HOST"), "its default socket"), log: log,
	}, nil
}

// Host returns the address of Docker, for messages.
func (r *Reader) Host() string { return r.host }

// Run keeps the Reader current until ctx ends.
func (r *Reader) Run(ctx context.Context) error {
	g := panics.NewGroup(r.log)
	g.Go(func() error { return r.engine.Run(ctx) })
	g.Go(func() error { return r.cache.Run(ctx) })
	return g.Wait()
}

// Wait returns nil once all containers are known, or an error that says why they are not when ctx ends or
// Docker cannot be reached.
func (r *Reader) Wait(ctx context.Context) error {
	begin := time.Now()
	r.engine.WaitFirstDial(ctx)
	if ctx.Err() != nil {
		return fmt.Errorf("docker at %s has not answered within %v: %w", r.host, time.Since(begin).Round(time.Second), errdefs.ErrUnavailable)
	}
	for {
		err := r.cache.Ready(ctx)
		if _, down := r.engine.Conn(); err == nil || down != nil || ctx.Err() != nil {
			return err // otherwise the node has more containers than are inspected in that time
		}
	}
}

// noLogs is the cache.Logs of a Reader, which writes no logs.
type noLogs struct{}

// Observe does nothing.
func (noLogs) Observe(context.Context, *cache.Container) {}

// Discard does nothing.
func (noLogs) Discard(string) {}
