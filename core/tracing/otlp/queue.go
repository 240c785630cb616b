package otlp

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Sizes in spans, the defaults of OpenTelemetry's batch processors.
const (
	queueSize = 2048
	batchSize = 512
)

// A queue holds spans that have ended until they are exported. It is a SpanProcessor of the
// SDK, which calls OnEnd in the goroutine of each span: OnEnd never waits.
type queue struct {
	export   func(context.Context, []sdktrace.ReadOnlySpan) error
	log      *slog.Logger
	exported prometheus.Counter
	dropped  prometheus.Counter

	spans     chan sdktrace.ReadOnlySpan
	batchFull chan struct{} // has a buffer of one; sent to when a batch is there
	lost      atomic.Int64  // dropped since the last log line

	// Used by run, and then by flush.
	batch      []sdktrace.ReadOnlySpan // that is being exported
	batchSince time.Time               // when its export was first tried
	failing    error                   // why the last export has failed
	reportedAt time.Time               // of the last log line
	reported   bool                    // a failure was logged, and no success since
}

func newQueue(export func(context.Context, []sdktrace.ReadOnlySpan) error, reg prometheus.Registerer, log *slog.Logger) *queue {
	total := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "berthd_trace_spans_total", Help: "Spans of traces, by result: exported to the collector, or dropped.",
	}, []string{"result"})
	return &queue{
		export: export, log: log, exported: total.WithLabelValues("exported"), dropped: total.WithLabelValues("dropped"),
		spans: make(chan sdktrace.ReadOnlySpan, queueSize), batchFull: make(chan struct{}, 1),
	}
}

// OnStart implements sdktrace.SpanProcessor.
func (q *queue) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd implements sdktrace.SpanProcessor: it adds a span to the queue, or drops it if the queue is full.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	if s.SpanKind() == trace.SpanKindServer {
		s = withoutDescription{s}
	}
	select {
	case q.spans <- s:
	default:
		q.drop(1)
	}
	if len(q.spans) >= batchSize {
		select {
		case q.batchFull <- struct{}{}:
		default:
		}
	}
}

// ForceFlush implements sdktrace.SpanProcessor. It does nothing, see Exporter.Flush.
func (q *queue) ForceFlush(context.Context) error { return nil }

// Shutdown implements sdktrace.SpanProcessor. It does nothing, see Exporter.Flush.
func (q *queue) Shutdown(context.Context) error { return nil }

// withoutDescription is the span of a CRI call without the error's text, in which Docker may
// quote the command line of a container. The log has it, with the ID of the trace.
type withoutDescription struct{ sdktrace.ReadOnlySpan }

// Status returns the status without its text.
func (s withoutDescription) Status() sdktrace.Status {
	return sdktrace.Status{Code: s.ReadOnlySpan.Status().Code}
}

// run exports until ctx ends.
func (q *queue) run(ctx context.Context) error {
	tick := time.NewTicker(exportInterval)
	defer tick.Stop()
	for {
		batchFull := q.batchFull
		if q.failing != nil {
			batchFull = nil // the next try is after exportInterval
		}
		select {
		case <-ctx.Done():
			return nil
		case <-batchFull:
		case <-tick.C:
		}
		if q.exportAll(ctx) {
			q.report()
		}
	}
}

// flush exports until ctx ends, and drops the rest.
func (q *queue) flush(ctx context.Context) {
	q.exportAll(ctx)
	left := len(q.batch) + len(q.spans)
	if left == 0 {
		return
	}
	q.drop(left)
	q.log.Warn("the last spans of traces are lost: the collector did not take them before the end of berthd", slog.Int("spans", left), slog.Any("err", q.failing))
}

// exportAll exports what is in the queue, up to the first failure. It reports whether there was anything.
func (q *queue) exportAll(ctx context.Context) (tried bool) {
	for ; ; tried = true {
		if len(q.batch) == 0 {
			q.batch, q.batchSince = q.take(), time.Now()
		}
		if len(q.batch) == 0 {
			return tried
		}
		exportCtx, cancel := context.WithTimeout(ctx, exportTimeout)
		err := q.export(exportCtx, q.batch)
		cancel()
		q.failing = err
		if err == nil {
			q.exported.Add(float64(len(q.batch)))
			q.batch = nil
			continue
		}
		if !isRetryable(err) || time.Since(q.batchSince) >= retryTimeout {
			q.drop(len(q.batch))
			q.batch = nil
		}
		return true
	}
}

// take removes up to a batch from the queue.
func (q *queue) take() (batch []sdktrace.ReadOnlySpan) {
	for len(batch) < batchSize {
		select {
		case s := <-q.spans:
			batch = append(batch, s)
		default:
			return batch
		}
	}
	return batch
}

func (q *queue) drop(n int) {
	q.dropped.Add(float64(n))
	q.lost.Add(int64(n))
}

// report logs failures and dropped spans, at most once per reportInterval, and when exports
// succeed again.
func (q *queue) report() {
	switch {
	case q.failing == nil && q.reported:
		q.reported = false
		q.log.Info("traces reach the collector again", slog.Int64("dropped", q.lost.Swap(0)))
	case time.Since(q.reportedAt) < reportInterval:
	case q.failing != nil:
		q.reportedAt, q.reported = time.Now(), true
		q.log.Warn("traces do not reach the collector; pods are not affected, spans are dropped", slog.Int64("dropped", q.lost.Swap(0)), slog.Any("err", q.failing))
	case q.lost.Load() > 0:
		q.reportedAt = time.Now()
		q.log.Warn("spans of traces dropped: the collector is too slow for them", slog.Int64("dropped", q.lost.Swap(0)))
	}
}

// isRetryable reports whether the collector may take the same spans later (OTLP
// specification 1.10, "Failures" of OTLP/gRPC).
func isRetryable(err error) bool {
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss:
		return true
	default:
		return false
	}
}
