// Package otlp exports traces to an OpenTelemetry collector over OTLP (gRPC).
//
// Exporter is its type: Provider makes the spans, Run exports them, Flush exports the last
// ones. Spans wait in a bounded queue, so that neither a slow collector nor one that is
// away delays a call; what does not fit is dropped and counted.
//
// The SDK's own BatchSpanProcessor (v1.47) is not used: it counts what it drops in a field
// that cannot be read, and it ends in a goroutine of its own that may outlast its Shutdown.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.42.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// maxValue bounds the value of an attribute, in bytes: names come from outside.
	maxValue = 1 << 10
	// maxItems bounds the attributes, events and links of a span.
	maxItems = 64
)

// Config is what New needs.
type Config struct {
	// Endpoint is the host and port of the collector, or unix:///PATH of its socket.
	Endpoint string
	// SamplesPerMillion is how many of the calls are traced that come without a trace
	// context. Calls with one are traced if their caller has sampled them.
	SamplesPerMillion int
	// Version is that of berthd.
	Version string
	// Metrics registers the metric of exported and dropped spans, unless it is nil.
	Metrics prometheus.Registerer
}

// An Exporter exports traces.
type Exporter struct {
	queue    *queue
	provider *sdktrace.TracerProvider
	client   *otlptrace.Exporter
	conn     *grpc.ClientConn
}

// New returns an Exporter. It does not connect. Requests to Docker carry the trace context
// from now on, in the process as a whole: the client of docker/docker has no other way for
// those that take the connection over.
func New(cfg Config, log *slog.Logger) (*Exporter, error) {
	// Without TLS, as the kubelet's exporter.
	conn, err := grpc.NewClient(cfg.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("tracing endpoint %q: %w", cfg.Endpoint, err)
	}
	// With WithGRPCConn the exporter takes no address and no certificates from the environment.
	client := otlptrace.NewUnstarted(otlptracegrpc.NewClient(
		otlptracegrpc.WithGRPCConn(conn),
		otlptracegrpc.WithTimeout(exportTimeout),
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: false}), // queue does that
	))
	log = log.With(slog.String("tracing-endpoint", cfg.Endpoint))
	queue := newQueue(client.ExportSpans, cfg.Metrics, log)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSpanProcessor(queue),
		sdktrace.WithSampler(sampler(cfg.SamplesPerMillion)),
		sdktrace.WithResource(describe(cfg.Version, log)),
		sdktrace.WithRawSpanLimits(sdktrace.SpanLimits{
			AttributeValueLengthLimit: maxValue, AttributeCountLimit: maxItems, EventCountLimit: maxItems, LinkCountLimit: maxItems,
			AttributePerEventCountLimit: maxItems, AttributePerLinkCountLimit: maxItems,
		}),
	)
	return &Exporter{queue, provider, client, conn}, nil
}

// sampler decides as the kubelet does (k8s.io/component-base/tracing).
func sampler(perMillion int) sdktrace.Sampler {
	return sdktrace.ParentBased(sdktrace.TraceIDRatioBased(float64(perMillion) / 1e6))
}

// describe returns the attributes of this process, with those of OTEL_RESOURCE_ATTRIBUTES.
func describe(version string, log *slog.Logger) *resource.Resource {
	own := []attribute.KeyValue{semconv.ServiceName("berthd"), semconv.ServiceVersion(version)}
	host, err := os.Hostname()
	if err == nil {
		own = append(own, semconv.HostName(host), semconv.ServiceInstanceID(host))
	}
	merged, mergeErr := resource.Merge(resource.NewSchemaless(own...), resource.Environment())
	if err = errors.Join(err, mergeErr); err != nil {
		log.Warn("traces do not describe this node completely", slog.Any("err", err))
	}
	return merged
}

// Provider returns what makes the spans that are exported.
func (e *Exporter) Provider() trace.TracerProvider { return e.provider }

// Run exports spans until ctx ends, and returns nil then.
func (e *Exporter) Run(ctx context.Context) error {
	if err := e.client.Start(ctx); err != nil {
		return fmt.Errorf("exporter of traces: %w", err)
	}
	return e.queue.run(ctx)
}

// Flush exports the spans that Run has left, for at most flushTimeout, and disconnects. It
// must be called after Run has returned.
func (e *Exporter) Flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	e.queue.flush(ctx)
	return e.conn.Close()
}

// Times of the export.
const (
	// exportInterval is how long a span waits for others, and the pause after a failure.
	exportInterval = 5 * time.Second
	// exportTimeout bounds one export.
	exportTimeout = 10 * time.Second
	// retryTimeout is how long a batch is kept that the collector does not take.
	retryTimeout = time.Minute
	// flushTimeout bounds the export of the last spans, for which the end of the daemon waits.
	flushTimeout = time.Second
	// reportInterval is the least time between two log lines about failures.
	reportInterval = time.Minute
)
