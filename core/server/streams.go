package server

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// GetContainerEvents tells of every change of a sandbox or container, for as
// long as both sides live: a kubelet comes back only a few times after an end.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	var over sync.WaitGroup
	defer func() { cancel(); over.Wait() }()
	over.Go(func() {
		defer cancel()
		select {
		case <-s.ending:
		case <-ctx.Done():
		}
	})
	if err := s.Cache.Subscribe(ctx, stream.Send); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Exec prepares to run a command in a container and tells where to stream.
func (s *Server) Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if _, err := s.Containers.Running(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return s.Streams.Exec(r)
}

// Attach prepares to join a container's own streams and tells where.
func (s *Server) Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if _, err := s.Containers.Running(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return s.Streams.Attach(r)
}

// PortForward prepares to connect to ports of a pod and tells where.
func (s *Server) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if _, err := s.Sandboxes.Ready(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return s.Streams.PortForward(r)
}
