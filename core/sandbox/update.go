package sandbox

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Update stores the resources of a pod for its verbose status. It changes no cgroup: the
// kubelet owns that of a pod, and calls UpdatePodSandboxResources after it has changed it
// (api.proto).
func (s *Service) Update(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) error {
	pod, unlock, err := s.lock(ctx, r.GetPodSandboxId())
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.nri.UpdatePodSandbox(ctx, pod, r); err != nil {
		return err
	}
	if err := s.state.Updates.Put(pod.ID(), r); err != nil {
		return err
	}
	work := context.WithoutCancel(ctx)
	if _, err = s.cache.Refresh(work, pod.ID()); err == nil {
		s.nri.PostUpdatePodSandbox(work, pod.ID())
	}
	return err
}
