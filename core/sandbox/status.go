package sandbox

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/verbose"
)

// Status returns the sandbox id. The error is of kind NotFound if there is none.
func (s *Service) Status(ctx context.Context, id string) (*cache.Sandbox, error) {
	return s.cache.Sandbox(ctx, id)
}

// Verbose adds to facts what the status of pod leaves out.
func (s *Service) Verbose(ctx context.Context, pod *cache.Sandbox, facts map[string]any) {
	verbose.Add(ctx, s.docker, pod.ID(), pod.Pid, facts)
}

// List returns the sandboxes that match filter. A nil filter matches all.
func (s *Service) List(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	pods, err := s.cache.Sandboxes(ctx, filter)
	if err != nil {
		return nil, err
	}
	rows := make([]*runtimeapi.PodSandbox, 0, len(pods))
	for _, pod := range pods {
		rows = append(rows, pod.Row)
	}
	return rows, nil
}

// Ready returns the sandbox id. The error is of kind FailedPrecondition if it is not
// ready, and of kind NotFound if there is none.
func (s *Service) Ready(ctx context.Context, id string) (*cache.Sandbox, error) {
	pod, err := s.cache.Sandbox(ctx, id)
	if err == nil && pod.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		err = fmt.Errorf("sandbox %s is not ready: %w", pod.ID(), errdefs.ErrFailedPrecondition)
	}
	return pod, err
}
