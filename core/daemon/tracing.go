package daemon

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"berth/core/tracing/otlp"
)

// Tracing configures the export of traces.
type Tracing struct {
	Endpoint string // of a collector (OTLP over gRPC); "" means no traces
	// SamplesPerMillion is how many calls are traced that their caller does not trace.
	SamplesPerMillion int
}

// newExporter returns the exporter of traces and its provider, both nil without an endpoint.
func newExporter(cfg Config, registry prometheus.Registerer, log *slog.Logger) (*otlp.Exporter, trace.TracerProvider, error) {
	if cfg.Tracing.Endpoint == "" {
		return nil, nil, nil
	}
	e, err := otlp.New(otlp.Config{
		Endpoint: cfg.Tracing.Endpoint, SamplesPerMillion: cfg.Tracing.SamplesPerMillion, Version: cfg.Version, Metrics: registry,
	}, log)
	if err != nil {
		return nil, nil, err
	}
	return e, e.Provider(), nil
}

// flushTraces exports the last spans.
func (d *Daemon) flushTraces(ctx context.Context) {
	if err := d.traces.Flush(ctx); err != nil {
		d.log.Debug("connection to the collector of traces not closed", slog.Any("err", err))
	}
}
