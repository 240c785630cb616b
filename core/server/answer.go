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

	"berth/core/engine"
	"berth/core/panics"
)

// newCalls makes the measure of how long calls take, known to reg unless that
// is nil.
func newCalls(reg prometheus.Registerer) *prometheus.HistogramVec {
	return promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "berthd_call_duration_seconds",
		Help:    "Time that calls of the CRI took, by method and gRPC code.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120},
	}, []string{"method", "code"})
}

// answer gives every call its one log line and its measure, every error its gRPC
// code, and every answer a size that gRPC carries.
func answer(log *slog.Logger, calls *prometheus.HistogramVec) grpc.UnaryServerInterceptor {
	fitter := &fitter{limit: fitBytes, log: log}
	return func(ctx context.Context, req any, call *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		start := time.Now()
		var resp any
		err := panics.Try(log, func() (err error) {
			resp, err = next(ctx, req)
			return err
		})
		err = coded(ctx, err)
		took, method := time.Since(start), path.Base(call.FullMethod)
		calls.WithLabelValues(method, status.Code(err).String()).Observe(took.Seconds())
		log.LogAttrs(ctx, level(method, err), "answered", slog.String("call", method),
			subject(req), slog.Duration("took", took), problem(err))
		if err != nil {
			return nil, err
		}
		return fitter.fit(method, resp), nil
	}
}

// answerStream is answer for calls whose answer comes in pieces.
func answerStream(log *slog.Logger, calls *prometheus.HistogramVec) grpc.StreamServerInterceptor {
	fitter := &fitter{limit: fitBytes, log: log}
	return func(srv any, stream grpc.ServerStream, call *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		start, method := time.Now(), path.Base(call.FullMethod)
		err := coded(stream.Context(), panics.Try(log, func() error { return next(srv, fitting{stream, method, fitter}) }))
		took := time.Since(start)
		calls.WithLabelValues(method, status.Code(err).String()).Observe(took.Seconds())
		log.LogAttrs(stream.Context(), level(method, err), "answered", slog.String("call", method),
			slog.Duration("took", took), problem(err))
		return err
	}
}

// kinds is all there is to translating errors: the Engine's client and our own
// packages speak errdefs, the kubelet hears gRPC. The first match counts.
//
// DeadlineExceeded is for a command that ran longer than its timeout, and for a call
// whose caller's own deadline has passed. The kubelet takes it for a failed probe and
// kills the container, so a Docker that does not answer, and whatever else we give up
// on our own, is Unavailable, even where the error is a context.DeadlineExceeded too.
//
// errgrpc.ToGRPC would do the same, but it looks inside the client's errors
// instead of asking them, and finds codes.Unknown there (errdefs v1.0.0).
var kinds = []struct {
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

// coded returns the error of a call with context ctx with its gRPC code and its text,
// which is shortened where it is very long. An error that is a gRPC status already
// keeps it.
func coded(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	// A status wrapped deeper down is not what is said here.
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return status.Error(codes.DeadlineExceeded, engine.Shorten(err.Error()))
	}
	for _, kind := range kinds {
		if kind.is(err) {
			return status.Error(kind.code, engine.Shorten(err.Error()))
		}
	}
	return status.Error(codes.Unknown, engine.Shorten(err.Error()))
}

// level keeps the kubelet's polling out of the way: what went well is debug,
// what is not there is what the kubelet asked to find out, and a probe that
// runs out of time is the container's affair. A log that Docker rotates is asked
// for every ten seconds, and the kubelet logs the answer itself.
func level(method string, err error) slog.Level {
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

// subject names what a request is about.
func subject(req any) slog.Attr {
	switch r := req.(type) {
	case interface{ GetContainerId() string }:
		return slog.String("container", r.GetContainerId())
	case interface{ GetPodSandboxId() string }:
		return slog.String("sandbox", r.GetPodSandboxId())
	default:
		return slog.Attr{}
	}
}

func problem(err error) slog.Attr {
	if err == nil {
		return slog.Attr{}
	}
	return slog.Any("err", err)
}
