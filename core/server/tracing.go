package server

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/tracing"
)

// traceParent is the header with the caller's trace context (W3C Trace Context).
const traceParent = "traceparent"

// traceOptions returns the options that begin a span for each call, none if calls are not traced.
func traceOptions(provider trace.TracerProvider) []grpc.ServerOption {
	if provider == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(provider), otelgrpc.WithPropagators(propagation.TraceContext{}),
	))}
}

// annotateSpan adds what a request is about to the span of the call. It takes IDs and names
// from the request, and nothing that may be a secret.
func annotateSpan(ctx context.Context, req any) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	var attributes []attribute.KeyValue
	pod := func(config *runtimeapi.PodSandboxConfig) {
		if m := config.GetMetadata(); m != nil {
			attributes = append(attributes, tracing.Pod(m.GetNamespace(), m.GetName(), m.GetUid())...)
		}
	}
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		pod(r.GetConfig())
	case *runtimeapi.RestorePodRequest:
		pod(r.GetConfig())
	case *runtimeapi.CreateContainerRequest:
		pod(r.GetSandboxConfig())
		attributes = append(attributes, tracing.SandboxID(r.GetPodSandboxId()),
			tracing.ContainerName(r.GetConfig().GetMetadata().GetName()), tracing.Image(r.GetConfig().GetImage().GetImage()))
	case *runtimeapi.PullImageRequest:
		pod(r.GetSandboxConfig())
		attributes = append(attributes, tracing.Image(r.GetImage().GetImage()))
	case interface{ GetImage() *runtimeapi.ImageSpec }:
		attributes = append(attributes, tracing.Image(r.GetImage().GetImage()))
	case interface{ GetContainerId() string }:
		attributes = append(attributes, tracing.ContainerID(r.GetContainerId()))
	case interface{ GetPodSandboxId() string }:
		attributes = append(attributes, tracing.SandboxID(r.GetPodSandboxId()))
	}
	span.SetAttributes(attributes...)
}

// annotateResult adds the ID of what a call has created to its span.
func annotateResult(ctx context.Context, resp any) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	switch r := resp.(type) {
	case *runtimeapi.RunPodSandboxResponse:
		span.SetAttributes(tracing.SandboxID(r.GetPodSandboxId()))
	case *runtimeapi.RestorePodResponse:
		span.SetAttributes(tracing.SandboxID(r.GetPodSandboxId()))
	case *runtimeapi.CreateContainerResponse:
		span.SetAttributes(tracing.ContainerID(r.GetContainerId()))
	}
}

// traceAttr returns the ID of the trace that a call belongs to: that of the caller, whether
// or not it has sampled the call and traces are on here, or one that begins here and is sampled.
func traceAttr(ctx context.Context) slog.Attr {
	found := trace.SpanContextFromContext(ctx)
	if !found.IsSampled() {
		header := metadata.ValueFromIncomingContext(ctx, traceParent)
		if len(header) == 0 {
			return slog.Attr{}
		}
		// Without the span of ctx, which Extract would keep if the header is not valid.
		ctx = propagation.TraceContext{}.Extract(trace.ContextWithSpan(ctx, nil), propagation.MapCarrier{traceParent: header[0]})
		if found = trace.SpanContextFromContext(ctx); !found.IsValid() {
			return slog.Attr{}
		}
	}
	return slog.String("trace_id", found.TraceID().String())
}
