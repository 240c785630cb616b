package server

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RunPodSandbox creates and starts a sandbox and attaches it to the network.
func (s *Server) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	id, err := s.Sandboxes.Run(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox kills the containers of a sandbox and releases its network. It is
// idempotent.
func (s *Server) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, s.Sandboxes.Stop(ctx, r.GetPodSandboxId())
}

// RemovePodSandbox removes a sandbox and all its containers. It is idempotent.
func (s *Server) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return &runtimeapi.RemovePodSandboxResponse{}, s.Sandboxes.Remove(ctx, r.GetPodSandboxId())
}

// PodSandboxStatus returns the state of a sandbox and of the containers in it.
func (s *Server) PodSandboxStatus(ctx context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	pod, err := s.Sandboxes.Status(ctx, r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	inside, err := s.Containers.Statuses(ctx, pod.ID())
	if err != nil {
		return nil, err
	}
	// The timestamp stays unset. It is for kubelets with the feature gate EventedPLEG:
	// with a timestamp, the kubelet 1.37 regards no container as active and restarts
	// sidecars every few seconds; without one it calls ContainerStatus.
	resp := &runtimeapi.PodSandboxStatusResponse{Status: pod.Status, ContainersStatuses: inside}
	if r.GetVerbose() {
		node, err := s.podInfo(ctx, pod)
		if err != nil {
			return nil, err
		}
		facts := map[string]any{
			"sandboxID": pod.ID(), "pid": pod.Pid, "runtimeHandler": pod.Row.GetRuntimeHandler(), "runtimeType": pod.Runtime,
			"netNamespaceClosed": !pod.Running, "processStatus": pod.State, "config": pod.Config, "node": node,
		}
		s.Sandboxes.Verbose(ctx, pod, facts)
		resp.Info, err = verboseInfo(facts)
		return resp, err
	}
	return resp, nil
}

// ListPodSandbox lists the sandboxes that match a filter.
func (s *Server) ListPodSandbox(ctx context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	list, err := s.Sandboxes.List(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxResponse{Items: list}, nil
}

// StreamPodSandboxes is ListPodSandbox in several messages.
func (s *Server) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	list, err := s.Sandboxes.List(stream.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendChunks(list, func(part []*runtimeapi.PodSandbox) error {
		return stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: part})
	})
}

// CreateContainer creates a container in a sandbox.
func (s *Server) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	id, err := s.Containers.Create(ctx, r.GetPodSandboxId(), r.GetConfig(), r.GetSandboxConfig())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer starts a container.
func (s *Server) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return &runtimeapi.StartContainerResponse{}, s.Containers.Start(ctx, r.GetContainerId())
}

// StopContainer stops a container with a grace period in seconds, 0 for none. It is
// idempotent.
func (s *Server) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	grace := seconds(r.GetTimeout())
	return &runtimeapi.StopContainerResponse{}, s.Containers.Stop(ctx, r.GetContainerId(), grace)
}

// RemoveContainer removes a container, running or not. It is idempotent.
func (s *Server) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return &runtimeapi.RemoveContainerResponse{}, s.Containers.Remove(ctx, r.GetContainerId())
}

// ContainerStatus returns the state of a container.
func (s *Server) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.Containers.Status(ctx, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: c.Status}
	if r.GetVerbose() {
		facts := map[string]any{"sandboxID": c.Row.GetPodSandboxId()}
		s.Containers.Verbose(ctx, c, facts)
		resp.Info, err = verboseInfo(facts)
	}
	return resp, err
}

// ListContainers lists the containers that match a filter.
func (s *Server) ListContainers(ctx context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	list, err := s.Containers.List(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainersResponse{Containers: list}, nil
}

// StreamContainers is ListContainers in several messages.
func (s *Server) StreamContainers(r *runtimeapi.StreamContainersRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	list, err := s.Containers.List(stream.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendChunks(list, func(part []*runtimeapi.Container) error {
		return stream.Send(&runtimeapi.StreamContainersResponse{Containers: part})
	})
}

// UpdateContainerResources changes the resource limits of a container.
func (s *Server) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return &runtimeapi.UpdateContainerResourcesResponse{}, s.Containers.Update(ctx, r)
}

// UpdatePodSandboxResources records the resources of a pod, for PodSandboxStatus. The
// kubelet sets the pod's cgroup itself.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, s.Sandboxes.Update(ctx, r)
}

// ReopenContainerLog creates a new log file after the kubelet has renamed the old one.
func (s *Server) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	if err := s.Containers.ReopenLog(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// CheckpointContainer writes a checkpoint of a running container to an archive. The timeout is in seconds, 0 for the default.
func (s *Server) CheckpointContainer(ctx context.Context, r *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	if r.GetTimeout() < 0 {
		return nil, fmt.Errorf("timeout %d: must not be negative: %w", r.GetTimeout(), errdefs.ErrInvalidArgument)
	}
	if err := s.Containers.Checkpoint(ctx, r.GetContainerId(), r.GetLocation(), seconds(r.GetTimeout())); err != nil {
		return nil, err
	}
	return &runtimeapi.CheckpointContainerResponse{}, nil
}

// CheckpointPod writes a checkpoint of running containers of a pod to a directory.
func (s *Server) CheckpointPod(ctx context.Context, r *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	if err := s.Pods.Checkpoint(ctx, r); err != nil {
		return nil, err
	}
	return &runtimeapi.CheckpointPodResponse{}, nil
}

// RestorePod makes a pod whose containers go on from a checkpoint when they are started.
func (s *Server) RestorePod(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return s.Pods.Restore(ctx, r)
}

// execDeadlineMargin is how long before the caller's deadline an ExecSync that has not
// finished returns, so that the response still arrives.
const execDeadlineMargin = time.Second

// ExecSync runs a command in a container and returns its output and exit code. The
// timeout is in seconds, 0 for none.
func (s *Server) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	timeout := seconds(r.GetTimeout())
	// When the kubelet's own deadline passes it counts the probe as failed. That deadline
	// is minutes after the command's timeout, so only a Docker that does not respond
	// reaches it: return Unavailable shortly before.
	if deadline, ok := ctx.Deadline(); ok && timeout > 0 && time.Until(deadline) > timeout+execDeadlineMargin {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-execDeadlineMargin))
		defer cancel()
	}
	stdout, stderr, code, err := s.Execs.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), timeout)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: code}, nil
}

// seconds converts a number of seconds. Negative numbers are 0, and those that a
// Duration cannot hold are 100 years.
func seconds(n int64) time.Duration {
	const most = int64(100 * 365 * 24 * time.Hour / time.Second)
	return time.Duration(min(max(n, 0), most)) * time.Second
}

// verboseInfo returns the info of a verbose response: one JSON object under the key
// "info", where crictl's templates expect it.
func verboseInfo(facts map[string]any) (map[string]string, error) {
	text, err := json.Marshal(facts)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(text)}, nil
}
