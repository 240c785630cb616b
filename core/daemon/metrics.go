package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"berth/core/cache"
	"berth/core/metrics"
)

// newRegistry returns the registry of cfg, or a new one with the metrics of the build and of the
// process. Services register their own.
func newRegistry(cfg Config) (*prometheus.Registry, error) {
	if cfg.Registry != nil {
		return cfg.Registry, nil
	}
	registry := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "berthd_build_info", Help: "The version that runs; always 1.",
		ConstLabels: prometheus.Labels{"version": cfg.Version, "commit": cfg.Commit, "goversion": runtime.Version()},
	})
	build.Set(1)
	return registry, errors.Join(registry.Register(build),
		registry.Register(collectors.NewGoCollector()), registry.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})))
}

// noServer is the server of metrics that are not served.
type noServer struct{}

// Run returns at once.
func (noServer) Run(context.Context) error { return nil }

// listenMetrics opens the server of metrics, if there is an address for it. cri is the address of
// the CRI, which the health check connects to.
func listenMetrics(cfg Metrics, registry *prometheus.Registry, objects *cache.Cache, cri net.Addr, log *slog.Logger) (runner, error) {
	if cfg.Addr == "" {
		return noServer{}, nil
	}
	config := metrics.Config{
		Gatherer: registry, EnablePprof: cfg.Profiles,
		CheckHealth: func(ctx context.Context) error {
			if err := checkServing(ctx, cri); err != nil {
				return fmt.Errorf("the CRI is not served: %w", err)
			}
			// Ready if Docker has responded within the last seconds and the cache is in sync.
			return objects.Ready(ctx)
		},
	}
	return newReopener("metrics (--metrics-bind-addr)", func() (*metrics.Server, error) {
		s, err := metrics.Listen(cfg.Addr, config, log)
		if err != nil {
			return nil, fmt.Errorf("metrics at %s (--metrics-bind-addr): %w", cfg.Addr, err)
		}
		return s, nil
	}, func(s *metrics.Server) { log.Info("serving metrics", slog.String("address", s.Addr().String())) }, log)
}

// checkServing returns nil if a gRPC server is at addr: it sends its SETTINGS frame first.
func checkServing(ctx context.Context, addr net.Addr) error {
	conn, err := new(net.Dialer).DialContext(ctx, addr.Network(), addr.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}
