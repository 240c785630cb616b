package sandbox

import (
	"context"

	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Update keeps what the kubelet tells of a pod's resources, for the verbose
// status. The cgroup of the pod is the kubelet's own, and nothing of it is for
// the Engine to change.
func (s *Service) Update(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) error {
	pod, err := s.view.Sandbox(ctx, r.GetPodSandboxId())
	if err != nil {
		return err
	}
	text, err := protojson.Marshal(r)
	if err != nil {
		return err
	}
	if err := s.updates.Save(pod.ID(), text); err != nil {
		return err
	}
	_, err = s.view.Refresh(context.WithoutCancel(ctx), pod.ID())
	return err
}
