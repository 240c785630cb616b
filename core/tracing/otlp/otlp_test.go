package otlp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	otelcodes "go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth/core/tracing/tracingtest"
)

var discard = slog.New(slog.DiscardHandler)

// counts returns the values of berthd_trace_spans_total.
func counts(t *testing.T, reg *prometheus.Registry) map[string]int {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			out[m.GetLabel()[0].GetValue()] = int(m.GetCounter().GetValue())
		}
	}
	return out
}

// sampled returns an ended span that is sampled.
func sampled(name string) tracetest.SpanStub {
	return tracetest.SpanStub{Name: name, SpanContext: trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled,
	})}
}

// A fakeCollector takes spans, or fails as err says.
type fakeCollector struct {
	mu    sync.Mutex
	err   error
	names []string
	calls int
}

func (c *fakeCollector) export(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if c.err != nil {
		return c.err
	}
	for _, s := range spans {
		c.names = append(c.names, s.Name())
	}
	return nil
}

func (c *fakeCollector) set(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

func (c *fakeCollector) taken() (spans, calls int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.names), c.calls
}

// inBubble runs a queue with a fakeCollector and fake time. What it logs is in the buffer.
func inBubble(t *testing.T, test func(q *queue, c *fakeCollector, reg *prometheus.Registry, log *bytes.Buffer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c, reg, log := &fakeCollector{}, prometheus.NewRegistry(), &bytes.Buffer{}
		q := newQueue(c.export, reg, slog.New(slog.NewTextHandler(log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- q.run(ctx) }()
		test(q, c, reg, log)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestSpansAreExportedInBatches(t *testing.T) {
	inBubble(t, func(q *queue, c *fakeCollector, reg *prometheus.Registry, _ *bytes.Buffer) {
		q.OnEnd(sampled("a").Snapshot())
		q.OnEnd(tracetest.SpanStub{Name: "not sampled"}.Snapshot())
		synctest.Wait()
		if n, _ := c.taken(); n != 0 {
			t.Errorf("%d spans at once, want none before the interval", n)
		}
		time.Sleep(exportInterval + time.Second)
		synctest.Wait()
		if n, _ := c.taken(); n != 1 {
			t.Errorf("%d spans after the interval, want 1", n)
		}
		for range batchSize {
			q.OnEnd(sampled("b").Snapshot())
		}
		synctest.Wait()
		if n, _ := c.taken(); n != 1+batchSize {
			t.Errorf("%d spans, want a full batch at once", n)
		}
		if got := counts(t, reg); got["exported"] != 1+batchSize || got["dropped"] != 0 {
			t.Errorf("counted %v", got)
		}
	})
}

func TestFullQueueDropsAndCounts(t *testing.T) {
	inBubble(t, func(q *queue, c *fakeCollector, reg *prometheus.Registry, log *bytes.Buffer) {
		c.set(status.Error(codes.Unavailable, "connection refused"))
		for range queueSize * 2 {
			q.OnEnd(sampled("a").Snapshot()) // never waits
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := counts(t, reg); got["exported"] != 0 || got["dropped"] < queueSize-batchSize {
			t.Errorf("counted %v", got)
		}
		lines := strings.Count(log.String(), "traces do not reach the collector")
		if lines == 0 || lines > 11 {
			t.Errorf("%d lines in ten minutes, want one per minute:\n%s", lines, log)
		}
		time.Sleep(10 * time.Minute) // without spans
		if n := strings.Count(log.String(), "\n"); n != lines {
			t.Errorf("%d lines more while nothing was exported", n-lines)
		}
		c.set(nil)
		q.OnEnd(sampled("a").Snapshot())
		time.Sleep(exportInterval + time.Second)
		synctest.Wait()
		if !strings.Contains(log.String(), "traces reach the collector again") {
			t.Errorf("no line about the end of the failure:\n%s", log)
		}
	})
}

func TestBatchIsKeptForAMinute(t *testing.T) {
	inBubble(t, func(q *queue, c *fakeCollector, reg *prometheus.Registry, _ *bytes.Buffer) {
		c.set(status.Error(codes.Unavailable, "starting"))
		q.OnEnd(sampled("a").Snapshot())
		time.Sleep(retryTimeout / 2)
		c.set(nil)
		time.Sleep(exportInterval + time.Second)
		synctest.Wait()
		if got := counts(t, reg); got["exported"] != 1 {
			t.Errorf("counted %v, want it exported after a short outage", got)
		}
	})
}

func TestRejectedBatchIsNotRetried(t *testing.T) {
	inBubble(t, func(q *queue, c *fakeCollector, reg *prometheus.Registry, _ *bytes.Buffer) {
		c.set(status.Error(codes.Unimplemented, "unknown service"))
		q.OnEnd(sampled("a").Snapshot())
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, calls := c.taken(); calls != 1 || counts(t, reg)["dropped"] != 1 {
			t.Errorf("%d exports, counted %v", calls, counts(t, reg))
		}
	})
}

func TestServerSpanHasNoErrorText(t *testing.T) {
	var got sdktrace.Status
	q := newQueue(func(_ context.Context, spans []sdktrace.ReadOnlySpan) error { got = spans[0].Status(); return nil }, nil, discard)
	s := sampled("runtime.v1.RuntimeService/StartContainer")
	s.SpanKind, s.Status = trace.SpanKindServer, sdktrace.Status{Code: otelcodes.Error, Description: `exec: "secret command"`}
	q.OnEnd(s.Snapshot())
	q.flush(t.Context())
	if got.Code != otelcodes.Error || got.Description != "" {
		t.Errorf("status %v, want an error without text", got)
	}
}

func TestEndpointsOfExporter(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "unix://" + filepath.Join(t.TempDir(), "c.sock")} {
		collector := tracingtest.New(t, address)
		e, err := New(Config{Endpoint: collector.Endpoint, SamplesPerMillion: 1_000_000, Version: "1.2.3"}, discard)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- e.Run(ctx) }()
		_, span := e.Provider().Tracer("t").Start(ctx, "work")
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		span.End() // as the last calls do
		if err := e.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		spans := collector.Spans()
		if len(spans) != 1 || spans[0].Name != "work" || spans[0].Service != "berthd" {
			t.Errorf("%s received %v", address, spans)
		}
	}
}

func TestGarbageEndpointIsAnError(t *testing.T) {
	if _, err := New(Config{Endpoint: "%zz\x00:1"}, discard); err == nil || !strings.Contains(err.Error(), "tracing endpoint") {
		t.Errorf("error %v", err)
	}
}

func TestSamplerFollowsTheCaller(t *testing.T) {
	for _, c := range []struct {
		rate    int
		parent  trace.TraceFlags
		hasCall bool
		want    bool
	}{
		{0, trace.FlagsSampled, true, true},
		{0, 0, true, false},
		{0, 0, false, false},
		{1_000_000, 0, true, false},
		{1_000_000, 0, false, true},
	} {
		provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler(c.rate)))
		ctx := t.Context()
		if c.hasCall {
			ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: c.parent}))
		}
		if _, span := provider.Tracer("t").Start(ctx, "x"); span.SpanContext().IsSampled() != c.want {
			t.Errorf("%+v: sampled %v", c, !c.want)
		}
	}
}

// A collector that is away or hangs delays the end of the daemon by no more than flushTimeout.
func TestFlushIsShort(t *testing.T) {
	hanging, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer hanging.Close()
	garbage, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer garbage.Close()
	go func() {
		for {
			conn, err := garbage.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
				conn.Close()
			}
		}
	}()
	for name, endpoint := range map[string]string{"away": "127.0.0.1:1", "hangs": hanging.Addr().String(), "no collector": garbage.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			e, err := New(Config{Endpoint: endpoint, SamplesPerMillion: 1_000_000, Metrics: reg}, discard)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- e.Run(ctx) }()
			for range batchSize { // has Run export at once
				_, span := e.Provider().Tracer("t").Start(ctx, "work")
				span.End()
			}
			cancel()
			start := time.Now()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if err := e.Flush(t.Context()); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took > flushTimeout+2*time.Second {
				t.Errorf("took %v", took)
			}
			if got := counts(t, reg); got["dropped"] != batchSize {
				t.Errorf("counted %v, want all dropped", got)
			}
		})
	}
}
