// Package tracingtest is an OpenTelemetry collector for tests.
package tracingtest

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// A Collector receives spans over OTLP (gRPC).
type Collector struct {
	collector.UnimplementedTraceServiceServer
	Endpoint string // host and port, or unix:///PATH

	mu    sync.Mutex // guards following
	spans []Span
}

// A Span is a received span, with IDs in hexadecimal digits.
type Span struct {
	Service, Name       string
	TraceID, ID, Parent string // Parent is "" for the root
	Kind                tracepb.Span_SpanKind
	Failed              bool
	Description         string            // of the failure
	Attributes          map[string]string // values as text
	Text                string            // all of it, to search for what must not be there
}

// New starts a collector at an address like 127.0.0.1:0 or unix:///PATH, until the test ends.
func New(t testing.TB, address string) *Collector {
	t.Helper()
	network, listen := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		network, listen = "unix", path
	}
	l, err := net.Listen(network, listen)
	if err != nil {
		t.Fatal(err)
	}
	c := &Collector{Endpoint: address}
	if network == "tcp" {
		c.Endpoint = l.Addr().String()
	}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, c)
	go func() { _ = server.Serve(l) }() // until it is stopped
	t.Cleanup(server.Stop)
	return c
}

// Export implements OTLP's TraceService.
func (c *Collector) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range r.GetResourceSpans() {
		service := texts(resource.GetResource().GetAttributes())["service.name"]
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, Span{
					Service: service, Name: s.GetName(), Kind: s.GetKind(),
					TraceID: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
					Failed: s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR, Description: s.GetStatus().GetMessage(),
					Attributes: texts(s.GetAttributes()), Text: s.String(),
				})
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func texts(attributes []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range attributes {
		switch v := a.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[a.GetKey()] = v.StringValue
		default:
			out[a.GetKey()] = fmt.Sprint(a.GetValue())
		}
	}
	return out
}

// Spans returns what was received so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

// Wait returns the spans once ok is true for them, and fails the test after the timeout.
func (c *Collector) Wait(t testing.TB, timeout time.Duration, ok func([]Span) bool) []Span {
	t.Helper()
	for limit := time.Now().Add(timeout); ; time.Sleep(20 * time.Millisecond) {
		spans := c.Spans()
		if ok(spans) {
			return spans
		}
		if time.Now().After(limit) {
			for _, s := range spans {
				t.Logf("received: %s %s, trace %s, span %s in %s", s.Service, s.Name, s.TraceID, s.ID, s.Parent)
			}
			t.Fatalf("spans still missing after %v", timeout)
		}
	}
}
