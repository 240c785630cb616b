package server

import (
	"context"
	"errors"
	"log/slog"
	"path"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/changes"
	"berth/core/engine"
	"berth/core/panics"
	"berth/core/shorten"
)

// newCallDuration returns the histogram of call durations, registered with reg unless
// reg is nil.
func newCallDuration(reg prometheus.Registerer) *prometheus.HistogramVec {
	return promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "berthd_call_duration_seconds",
		Help:    "Time that calls of the CRI took, by method and gRPC code.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120},
	}, []string{"method", "code"})
}

// intercept is the interceptor of unary calls. It writes one log line per call, observes
// the duration, recovers panics, translates the error to a gRPC status and limits the
// size of the response.
func intercept(log *slog.Logger, duration *prometheus.HistogramVec) grpc.UnaryServerInterceptor {
	limiter := &sizeLimiter{limit: maxResponse, log: log}
	return func(ctx context.Context, req any, call *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		start := time.Now()
		annotateSpan(ctx, req)
		var resp any
		err := panics.Try(log, func() (err error) {
			resp, err = next(ctx, req)
			return err
		})
		err = toGRPCError(ctx, err)
		took, method := time.Since(start), path.Base(call.FullMethod)
		duration.WithLabelValues(method, status.Code(err).String()).Observe(took.Seconds())
		log.LogAttrs(ctx, logLevel(method, err), "CRI request", slog.String("call", method),
			requestAttr(req), slog.Duration("took", took), traceAttr(ctx), errAttr(err))
		if err != nil {
			return nil, err
		}
		annotateResult(ctx, resp)
		return limiter.limitSize(method, resp), nil
	}
}

// interceptStream is the interceptor of streaming calls; it does what intercept does.
func interceptStream(log *slog.Logger, duration *prometheus.HistogramVec) grpc.StreamServerInterceptor {
	limiter := &sizeLimiter{limit: maxResponse, log: log}
	return func(srv any, stream grpc.ServerStream, call *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		start, method := time.Now(), path.Base(call.FullMethod)
		err := toGRPCError(stream.Context(), panics.Try(log, func() error { return next(srv, limitedStream{stream, method, limiter}) }))
		took := time.Since(start)
		duration.WithLabelValues(method, status.Code(err).String()).Observe(took.Seconds())
		log.LogAttrs(stream.Context(), logLevel(method, err), "CRI request", slog.String("call", method),
			slog.Duration("took", took), traceAttr(stream.Context()), errAttr(err))
		return err
	}
}

// errorCodes maps kinds of errors to gRPC codes; the first match counts. The Docker
// client and berth's packages use the kinds of containerd/errdefs.
//
// DeadlineExceeded is returned only for a command that ran longer than its timeout and
// for a call whose own deadline has passed: the kubelet treats it as a failed probe and
// restarts the container. A Docker that does not respond, and every other timeout of
// berth, is Unavailable, even if the error is a context.DeadlineExceeded as well.
//
// errgrpc.ToGRPC of errdefs v1.0.0 cannot be used: it unwraps the Docker client's errors
// before it checks their kind, and returns codes.Unknown for them.
var errorCodes = []struct {
	is   func(error) bool
	code codes.Code
}{
	{func(err error) bool { return errors.Is(err, engine.ErrCommandTimeout) }, codes.DeadlineExceeded},
	{engine.OutcomeUnknown, codes.Unavailable},
	{func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }, codes.Unavailable},
	{func(err error) bool { return errors.Is(err, context.Canceled) }, codes.Canceled},
	{errdefs.IsNotFound, codes.NotFound},
	{errdefs.IsInvalidArgument, codes.InvalidArgument},
	{errdefs.IsAlreadyExists, codes.AlreadyExists},
	{errdefs.IsConflict, codes.FailedPrecondition},
	{errdefs.IsFailedPrecondition, codes.FailedPrecondition},
	{errdefs.IsPermissionDenied, codes.PermissionDenied},
	{errdefs.IsUnauthorized, codes.Unauthenticated},
	{errdefs.IsNotImplemented, codes.Unimplemented},
	{errdefs.IsResourceExhausted, codes.ResourceExhausted},
	{errdefs.IsInternal, codes.Internal},
}

// toGRPCError returns err, the error of a call with the context ctx, as a gRPC status.
// Very long messages are shortened. An error that is a gRPC status already is returned
// unchanged.
func toGRPCError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	// A status further down the chain belongs to another call, so errors.As is not used.
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return status.Error(codes.DeadlineExceeded, shorten.Text(err.Error()))
	}
	for _, kind := range errorCodes {
		if kind.is(err) {
			return status.Error(kind.code, shorten.Text(err.Error()))
		}
	}
	return status.Error(codes.Unknown, shorten.Text(err.Error()))
}

// logLevel returns debug for successful calls and for errors that are part of the
// kubelet's polling: NotFound, and FailedPrecondition of ReopenContainerLog, which the
// kubelet repeats every ten seconds for a log that Docker rotates and logs itself. A
// probe that times out, or a Docker that is away, is info.
func logLevel(method string, err error) slog.Level {
	switch code := status.Code(err); {
	case code == codes.OK, code == codes.NotFound, code == codes.Unimplemented, code == codes.Canceled,
		method == "ReopenContainerLog" && code == codes.FailedPrecondition:
		return slog.LevelDebug
	case code == codes.Unavailable, code == codes.DeadlineExceeded:
		return slog.LevelInfo
	default:
		return slog.LevelError
	}
}

// requestAttr returns what a request is about: the ID of a container or sandbox, or what is to be created, pulled or removed.
func requestAttr(req any) slog.Attr {
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		m := r.GetConfig().GetMetadata()
		return slog.Group("", slog.String("pod", m.GetName()), slog.String("namespace", m.GetNamespace()))
	case *runtimeapi.RestorePodRequest:
		m := r.GetConfig().GetMetadata()
		return slog.Group("", slog.String("pod", m.GetName()), slog.String("namespace", m.GetNamespace()), slog.String("location", r.GetCheckpointPath()))
	case *runtimeapi.CreateContainerRequest:
		return slog.Group("", changes.Pod(r.GetPodSandboxId(), r.GetSandboxConfig().GetMetadata()),
			slog.String("name", r.GetConfig().GetMetadata().GetName()), slog.String("image", r.GetConfig().GetImage().GetImage()))
	case interface{ GetImage() *runtimeapi.ImageSpec }: // pull, status, removal
		return slog.String("image", r.GetImage().GetImage())
	case interface{ GetContainerId() string }:
		return slog.String("container", r.GetContainerId())
	case interface{ GetPodSandboxId() string }:
		return slog.String("sandbox", r.GetPodSandboxId())
	default:
		return slog.Attr{}
	}
}

func errAttr(err error) slog.Attr {
	if err == nil {
		return slog.Attr{}
	}
	return slog.Any("err", err)
}
