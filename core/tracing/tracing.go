// Package tracing starts OpenTelemetry spans for parts of a call, such as a CNI plugin or a
// pull.
//
// It uses the OpenTelemetry API only; core/tracing/otlp has the SDK and the exporter. The
// provider of a span is that of its parent in the context. Without a parent it is the one
// of NewContext, and without that, as when traces are off, there is no span.
//
// Spans have no secrets in them: no credentials, command lines or environment of containers.
package tracing

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.42.0"
	"go.opentelemetry.io/otel/trace"
)

// scope is the instrumentation scope of berth's own spans.
const scope = "berth"

// maxDescription bounds the error of a span, in bytes.
const maxDescription = 2 << 10

type providerKey struct{}

// NewContext returns a context in which Start begins new traces with the provider. It is for
// background loops, which have no caller.
func NewContext(ctx context.Context, provider trace.TracerProvider) context.Context {
	return context.WithValue(ctx, providerKey{}, provider)
}

// provider returns the provider for spans in ctx, nil if there are none.
func provider(ctx context.Context) trace.TracerProvider {
	if parent := trace.SpanFromContext(ctx); parent.SpanContext().IsValid() {
		return parent.TracerProvider()
	}
	p, _ := ctx.Value(providerKey{}).(trace.TracerProvider)
	return p
}

// A Span is a part of a call that is being traced. The zero Span does nothing.
type Span struct{ span trace.Span }

// Start begins a span and returns it with the context of what belongs to it. The caller must
// call End.
func Start(ctx context.Context, name string, attributes ...attribute.KeyValue) (context.Context, Span) {
	p := provider(ctx)
	if p == nil {
		return ctx, Span{}
	}
	ctx, span := p.Tracer(scope).Start(ctx, name, trace.WithAttributes(attributes...))
	return ctx, Span{span}
}

// StartHijacked begins a span for a request to Docker that takes the connection over. Its
// context is for that request only.
//
// The instrumentation in docker/docker/client (v28.5) begins a span for such a request as
// well, sends its ID to Docker and never ends it, so it would be missing in the trace. In
// the returned context that instrumentation has no provider, and it sends the ID of this span.
func StartHijacked(ctx context.Context, name string, attributes ...attribute.KeyValue) (context.Context, Span) {
	p := provider(ctx)
	if p == nil {
		return ctx, Span{}
	}
	ctx, span := p.Tracer(scope).Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attributes...))
	return trace.ContextWithSpanContext(ctx, span.SpanContext()), Span{span}
}

// End ends the span, as failed if err is not nil.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	if err != nil && s.span.IsRecording() {
		text := err.Error()
		if len(text) > maxDescription {
			text = text[:maxDescription] + "..."
		}
		s.span.SetStatus(codes.Error, strings.ToValidUTF8(text, "\ufffd"))
	}
	s.span.End()
}

// SandboxID is the attribute for the ID of a sandbox, with containerd's name for it.
func SandboxID(id string) attribute.KeyValue { return attribute.String("sandbox.id", id) }

// ContainerID is the attribute for the ID of a container.
func ContainerID(id string) attribute.KeyValue { return semconv.ContainerID(id) }

// ContainerName is the attribute for the name of a container in its pod.
func ContainerName(name string) attribute.KeyValue { return semconv.K8SContainerName(name) }

// Image is the attribute for the reference of an image.
func Image(ref string) attribute.KeyValue { return semconv.ContainerImageName(ref) }

// Pod returns the attributes for a pod.
func Pod(namespace, name, uid string) []attribute.KeyValue {
	return []attribute.KeyValue{semconv.K8SNamespaceName(namespace), semconv.K8SPodName(name), semconv.K8SPodUID(uid)}
}
