package sandbox

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Update keeps what the kubelet tells of a pod's resources, for the verbose
// status. The cgroup of the pod is the kubelet's own, and nothing of it is for
// the Engine to change.
func (s *Service) Update(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) error {
	pod, err := s.cache.Sandbox(ctx, r.GetPodSandboxId())
	if err != nil {
		return err
	}
	if err := s.state.Updates.Put(pod.ID(), r); err != nil {
		return err
	}
	_, err = s.cache.Refresh(context.WithoutCancel(ctx), pod.ID())
	return err
}
