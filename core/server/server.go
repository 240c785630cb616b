// Package server is the front desk: it answers the kubelet's gRPC calls by
// sending each to the room whose subject it is.
//
// A method of Server opens the envelope, asks one room and seals the answer.
// What it does not do: decide anything, talk to Docker, log, or make errors.
package server

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/container"
	"berth/core/engine"
	"berth/core/exec"
	"berth/core/image"
	"berth/core/sandbox"
	"berth/core/stats"
)

// maxMessage is the largest message that the kubelet sends or takes.
const maxMessage = 16 << 20

// stopPatience is how long calls under way may go on when the daemon is told
// to stop.
const stopPatience = 10 * time.Second

// greetPatience is how long it may take until all who are in have been greeted.
const greetPatience = time.Second

// Services are the rooms a Server sends calls to.
type Services struct {
	Engine     *engine.Engine
	Cache       *cache.Cache
	Sandboxes  *sandbox.Service
	Containers *container.Service
	Images     *image.Service
	Execs   *exec.Service
	Stats      *stats.Service
	Streams    Streams
	Network    Network
}

// Streams prepare exec, attach and port-forward, and tell where each is to be had. The
// error is of kind Unavailable while they are not served.
type Streams interface {
	Exec(r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	Attach(r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	PortForward(r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
}

// Network is what Status and UpdateRuntimeConfig ask of the pods' network.
type Network interface {
	// Status returns nil if pods can be attached, or what is in the way.
	Status(ctx context.Context) error
	SetPodCIDR(cidr string) error
}

// Info is what a Server tells about the daemon itself.
type Info struct {
	PauseImage string
	// Config is the daemon's configuration, without secrets.
	Config map[string]any
	// Metrics is told how long calls take, unless it is nil.
	Metrics prometheus.Registerer
}

// A Server serves the CRI.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	Services
	Info
	log    *slog.Logger
	calls  *prometheus.HistogramVec
	ending chan struct{} // closed when the daemon is told to stop
}

// New returns a Server that answers from rooms.
func New(rooms Services, info Info, log *slog.Logger) *Server {
	return &Server{Services: rooms, Info: info, log: log, calls: newCalls(info.Metrics), ending: make(chan struct{})}
}

// Serve answers the calls that come in on l until ctx ends, and lets those
// under way finish, for a while.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(answer(s.log, s.calls)),
		grpc.StreamInterceptor(answerStream(s.log, s.calls)),
	)
	runtimeapi.RegisterRuntimeServiceServer(srv, s)
	runtimeapi.RegisterImageServiceServer(srv, s)
	entrance := newDoor(l)
	defer context.AfterFunc(ctx, func() {
		close(s.ending)
		defer time.AfterFunc(stopPatience, srv.Stop).Stop()
		greeting, cancel := context.WithTimeout(context.WithoutCancel(ctx), greetPatience)
		defer cancel()
		if err := entrance.Shut(greeting); err != nil {
			s.log.Warn("the socket could not be closed", slog.Any("err", err))
		}
		srv.GracefulStop()
	})()
	return srv.Serve(entrance)
}
