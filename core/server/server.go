// Package server serves the CRI's RuntimeService and ImageService over gRPC
// (k8s.io/cri-api/pkg/apis/runtime/v1).
//
// A method of Server unpacks the request, calls the one service that owns the subject
// (core/sandbox, container, image, exec, stats) and packs the response. It does not
// decide, log or call Docker. The interceptors do what all calls have in common: the log
// line, the duration metric, the translation of errors to gRPC codes, the recovery of
// panics and the limit of the size of responses.
package server

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/container"
	"berth/core/engine"
	"berth/core/exec"
	"berth/core/image"
	"berth/core/podcheckpoint"
	"berth/core/podpolicy"
	"berth/core/sandbox"
	"berth/core/stats"
	"berth/core/userns"
)

// maxMessage is the limit of the kubelet's gRPC client for messages in both directions,
// in bytes (maxMsgSize in cri-client's remote_runtime.go).
const maxMessage = 16 << 20

// stopTimeout is how long calls in progress may take after the daemon has been told to
// stop. They are cancelled then, well before systemd's default TimeoutStopSec of 90 s.
const stopTimeout = 10 * time.Second

// drainTimeout bounds the wait for accepted connections to receive their first frame,
// which takes microseconds unless the client does not read.
const drainTimeout = time.Second

// Services are what a Server calls. None may be nil.
type Services struct {
	Engine     *engine.Engine
	Cache      *cache.Cache
	Sandboxes  *sandbox.Service
	Containers *container.Service
	Pods       *podcheckpoint.Service
	Images     *image.Service
	Execs      *exec.Service
	Stats      *stats.Service
	Streams    Streams
	Network    Network
}

// Streams prepares exec, attach and port-forward sessions and returns their URLs. The
// error is of kind Unavailable while the streaming server is not up.
type Streams interface {
	Exec(r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	Attach(r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	PortForward(r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
}

// Network is the part of the pods' network that Status, UpdateRuntimeConfig and podInfo use.
type Network interface {
	// Status returns nil if pods can be attached to the network, or the reason.
	Status(ctx context.Context) error
	SetPodCIDR(cidr string) error
	// NetNS returns a path of the network namespace of the pod id, in which the process pid runs.
	NetNS(id string, pid int) string
}

// Info describes the daemon: what Status reports in its verbose response.
type Info struct {
	PauseImage func() string
	// Config is the daemon's configuration, without secrets.
	Config map[string]any
	// Policy is what pods may have beyond the CRI.
	Policy podpolicy.Policy
	// UserNS is what the node has for pods with user namespaces.
	UserNS userns.Support
	// Metrics registers the metrics of the calls, unless it is nil.
	Metrics prometheus.Registerer
	// Traces makes a span of each call, unless it is nil.
	Traces trace.TracerProvider
}

// A Server serves the CRI.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	Services
	Info
	log          *slog.Logger
	callDuration *prometheus.HistogramVec
	stopping     chan struct{} // closed when Serve's context ends
}

// New returns a Server. Serve makes it accept calls.
func New(services Services, info Info, log *slog.Logger) *Server {
	return &Server{Services: services, Info: info, log: log, callDuration: newCallDuration(info.Metrics), stopping: make(chan struct{})}
}

// Serve serves calls on l until ctx ends, then waits up to stopTimeout for those in
// progress. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := grpc.NewServer(append(traceOptions(s.Traces),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(intercept(s.log, s.callDuration)),
		grpc.StreamInterceptor(interceptStream(s.log, s.callDuration)),
	)...)
	runtimeapi.RegisterRuntimeServiceServer(srv, s)
	runtimeapi.RegisterImageServiceServer(srv, s)
	listener := newDrainListener(l)
	defer context.AfterFunc(ctx, func() {
		close(s.stopping)
		defer time.AfterFunc(stopTimeout, srv.Stop).Stop()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		if err := listener.Drain(drain); err != nil {
			s.log.Warn("cannot close the CRI socket", slog.Any("err", err))
		}
		srv.GracefulStop()
	})()
	return srv.Serve(listener)
}
