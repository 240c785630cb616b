package main

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

// newRegistry returns a registry that tells what this is and how the process
// does; rooms add what they know.
func newRegistry() (*prometheus.Registry, error) {
	reg := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "berthd_build_info", Help: "What this was built from; always 1.",
		ConstLabels: prometheus.Labels{"version": version, "commit": commit, "goversion": runtime.Version()},
	})
	build.Set(1)
	return reg, errors.Join(reg.Register(build),
		reg.Register(collectors.NewGoCollector()), reg.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})))
}

// nobody has nothing to do.
type nobody struct{}

// Run returns at once.
func (nobody) Run(context.Context) error { return nil }

// observe opens what tells the operator's tools how we do, if that is wanted.
func observe(cfg Config, reg *prometheus.Registry, seen *cache.Cache, cri net.Addr, log *slog.Logger) (runner, error) {
	if cfg.MetricsAddr == "" {
		return nobody{}, nil
	}
	config := metrics.Config{
		Gatherer: reg, Profiles: cfg.Profiles,
		Healthy: func(ctx context.Context) error {
			if err := answers(ctx, cri); err != nil {
				return fmt.Errorf("the CRI is not served: %w", err)
			}
			// The Engine has answered within the last seconds, and we know all
			// that it runs.
			return seen.Ready(ctx)
		},
	}
	if !onLoopback(hostOf(cfg.MetricsAddr)) {
		log.Warn("metrics are told to anyone who reaches this address", slog.String("metrics-bind-addr", cfg.MetricsAddr))
	}
	return reopening("metrics (--metrics-bind-addr)", func() (*metrics.Server, error) {
		side, err := metrics.Listen(cfg.MetricsAddr, config, log)
		if err != nil {
			return nil, fmt.Errorf("metrics at %s (--metrics-bind-addr): %w", cfg.MetricsAddr, err)
		}
		return side, nil
	}, func(side *metrics.Server) { log.Info("metrics", slog.String("address", side.Addr().String())) }, log)
}

// hostOf returns the host of an address that may have a port.
func hostOf(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// answers returns nil if somebody serves at a socket, which a gRPC server shows
// by speaking first.
func answers(ctx context.Context, at net.Addr) error {
	conn, err := new(net.Dialer).DialContext(ctx, at.Network(), at.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if limit, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(limit); err != nil {
			return err
		}
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}
