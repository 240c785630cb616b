package server

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

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
