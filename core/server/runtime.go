package server

import (
	"context"
	"encoding/json"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RunPodSandbox sets up a pod.
func (s *Server) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	id, err := s.Sandboxes.Run(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox kills what runs in a pod and takes its network back.
func (s *Server) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, s.Sandboxes.Stop(ctx, r.GetPodSandboxId())
}

// RemovePodSandbox removes a pod and all its containers.
func (s *Server) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return &runtimeapi.RemovePodSandboxResponse{}, s.Sandboxes.Remove(ctx, r.GetPodSandboxId())
}

// PodSandboxStatus looks at one pod.
func (s *Server) PodSandboxStatus(ctx context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	pod, err := s.Sandboxes.Status(ctx, r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	inside, err := s.Containers.Statuses(ctx, pod.ID())
	if err != nil {
		return nil, err
	}
	// Without a timestamp, which is for kubelets with the gate EventedPLEG: with one,
	// 1.37 takes no container for active, and starts sidecars again every few
	// seconds. It asks for each container's status itself then.
	resp := &runtimeapi.PodSandboxStatusResponse{Status: pod.Status, ContainersStatuses: inside}
	if r.GetVerbose() {
		resp.Info, err = info(map[string]any{
			"sandboxID": pod.ID(), "pid": pod.Pid, "runtimeHandler": pod.Row.GetRuntimeHandler(), "runtimeType": pod.Runtime,
			"netNamespaceClosed": !pod.Running, "config": pod.Config,
		})
	}
	return resp, err
}

// ListPodSandbox looks at all pods that match a filter.
func (s *Server) ListPodSandbox(ctx context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	list, err := s.Sandboxes.List(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxResponse{Items: list}, nil
}

// StreamPodSandboxes is ListPodSandbox in pieces.
func (s *Server) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	list, err := s.Sandboxes.List(stream.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return chunks(list, func(part []*runtimeapi.PodSandbox) error {
		return stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: part})
	})
}

// CreateContainer makes a container in a pod.
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

// StopContainer ends a container within its grace period, given in seconds.
func (s *Server) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	grace := seconds(r.GetTimeout())
	return &runtimeapi.StopContainerResponse{}, s.Containers.Stop(ctx, r.GetContainerId(), grace)
}

// RemoveContainer removes a container, running or not.
func (s *Server) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return &runtimeapi.RemoveContainerResponse{}, s.Containers.Remove(ctx, r.GetContainerId())
}

// ContainerStatus looks at one container.
func (s *Server) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.Containers.Status(ctx, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: c.Status}
	if r.GetVerbose() {
		resp.Info, err = info(map[string]any{"sandboxID": c.Row.GetPodSandboxId(), "pid": c.Pid})
	}
	return resp, err
}

// ListContainers looks at all containers that match a filter.
func (s *Server) ListContainers(ctx context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	list, err := s.Containers.List(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainersResponse{Containers: list}, nil
}

// StreamContainers is ListContainers in pieces.
func (s *Server) StreamContainers(r *runtimeapi.StreamContainersRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	list, err := s.Containers.List(stream.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return chunks(list, func(part []*runtimeapi.Container) error {
		return stream.Send(&runtimeapi.StreamContainersResponse{Containers: part})
	})
}

// UpdateContainerResources changes what a container may use.
func (s *Server) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return &runtimeapi.UpdateContainerResourcesResponse{}, s.Containers.Update(ctx, r)
}

// UpdatePodSandboxResources takes note of what a pod may use.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, s.Sandboxes.Update(ctx, r)
}

// ReopenContainerLog begins a new log file after the kubelet has moved the old
// one out of the way.
func (s *Server) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	if err := s.Containers.Reopen(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// execMargin is how long before the end of a caller's deadline an ExecSync that has not
// come to an end is answered.
const execMargin = time.Second

// ExecSync runs a command in a container; its time limit is in seconds, 0 for
// none.
func (s *Server) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	timeout := seconds(r.GetTimeout())
	// The end of the kubelet's own deadline is a failed probe to it. It is minutes
	// later than the command's timeout, and what uses those up is Docker: then it is
	// to be told in time that Docker is not available.
	if deadline, ok := ctx.Deadline(); ok && timeout > 0 && time.Until(deadline) > timeout+execMargin {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-execMargin))
		defer cancel()
	}
	stdout, stderr, code, err := s.Execs.Sync(ctx, r.GetContainerId(), r.GetCmd(), timeout)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: code}, nil
}

// seconds reads a number of seconds; what no Duration can hold is a long time.
func seconds(n int64) time.Duration {
	const most = int64(100 * 365 * 24 * time.Hour / time.Second)
	return time.Duration(min(max(n, 0), most)) * time.Second
}

// info seals what a verbose answer tells beyond the CRI: one JSON object under
// the key that crictl's templates read.
func info(facts map[string]any) (map[string]string, error) {
	text, err := json.Marshal(facts)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(text)}, nil
}
