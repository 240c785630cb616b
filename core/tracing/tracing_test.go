package tracing_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"berth/core/tracing"
)

func newProvider() (*sdktrace.TracerProvider, *tracetest.SpanRecorder) {
	recorder := tracetest.NewSpanRecorder()
	return sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)), recorder
}

func TestStartWithoutProviderDoesNothing(t *testing.T) {
	ctx := t.Context()
	got, span := tracing.Start(ctx, "part", tracing.ContainerID("c"))
	span.End(errors.New("broken"))
	if got != ctx {
		t.Error("the context is another one")
	}
	if trace.SpanFromContext(got).SpanContext().IsValid() {
		t.Error("there is a span")
	}
	if n := testing.AllocsPerRun(100, func() {
		_, span := tracing.Start(ctx, "part")
		span.End(nil)
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func TestStartUsesProviderOfParent(t *testing.T) {
	provider, recorder := newProvider()
	other, otherRecorder := newProvider()
	ctx, call := provider.Tracer("x").Start(tracing.NewContext(t.Context(), other), "call")
	_, span := tracing.Start(ctx, "part", tracing.SandboxID("s"))
	span.End(nil)
	call.End()
	ended := recorder.Ended()
	if len(ended) != 2 || len(otherRecorder.Ended()) != 0 {
		t.Fatalf("%d and %d spans, want 2 and 0", len(ended), len(otherRecorder.Ended()))
	}
	if ended[0].Name() != "part" || ended[0].Parent().SpanID() != call.SpanContext().SpanID() {
		t.Errorf("span %s in %v", ended[0].Name(), ended[0].Parent())
	}
}

func TestStartInBackgroundBeginsTrace(t *testing.T) {
	provider, recorder := newProvider()
	_, span := tracing.Start(tracing.NewContext(t.Context(), provider), "part")
	span.End(nil)
	if ended := recorder.Ended(); len(ended) != 1 || ended[0].Parent().IsValid() {
		t.Errorf("spans %v, want one root", ended)
	}
}

func TestHijackedRequestCarriesTheSpanAndStartsNone(t *testing.T) {
	provider, recorder := newProvider()
	ctx, call := provider.Tracer("x").Start(t.Context(), "call")
	requestCtx, span := tracing.StartHijacked(ctx, "POST /exec/{id}/start")
	_, inner := trace.SpanFromContext(requestCtx).TracerProvider().Tracer("client").Start(requestCtx, "of the client")
	sent := inner.SpanContext()
	inner.End()
	span.End(nil)
	call.End()
	ended := recorder.Ended()
	if len(ended) != 2 || ended[0].SpanContext().SpanID() != sent.SpanID() || !sent.IsSampled() {
		t.Errorf("spans %v; the request carries %v", ended, sent)
	}
}

func TestErrorOfSpanIsBoundedText(t *testing.T) {
	provider, recorder := newProvider()
	_, span := tracing.Start(tracing.NewContext(context.WithoutCancel(t.Context()), provider), "part")
	span.End(errors.New("\xff" + strings.Repeat("ä", 5000)))
	status := recorder.Ended()[0].Status()
	if status.Code != codes.Error || len(status.Description) > 2100 || !utf8.ValidString(status.Description) {
		t.Errorf("status %v with %d bytes", status.Code, len(status.Description))
	}
}
