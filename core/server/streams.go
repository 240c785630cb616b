package server

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// GetContainerEvents sends an event for every change of a sandbox or container, until
// the client or the daemon ends: the kubelet (evented PLEG) reconnects a few times only
// after a stream has ended, then falls back to polling.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	var watcher sync.WaitGroup
	defer func() { cancel(); watcher.Wait() }()
	watcher.Go(func() {
		defer cancel()
		select {
		case <-s.stopping:
		case <-ctx.Done():
		}
	})
	if err := s.Cache.Subscribe(ctx, stream.Send); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Exec returns the URL at which the command can be run once.
func (s *Server) Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if _, err := s.Containers.Running(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return s.Streams.Exec(r)
}

// Attach returns the URL at which the container's own streams can be joined once.
func (s *Server) Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if _, err := s.Containers.Running(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return s.Streams.Attach(r)
}

// PortForward returns the URL at which ports of the pod can be reached once.
func (s *Server) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if _, err := s.Sandboxes.Ready(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return s.Streams.PortForward(r)
}
