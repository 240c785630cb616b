package container

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/nri"
	"berth/core/verbose"
)

// Status returns the container id. The error is of kind NotFound if there is none.
func (s *Service) Status(ctx context.Context, id string) (*cache.Container, error) {
	return s.cache.Container(ctx, id)
}

// Verbose adds to facts what the status of c leaves out.
func (s *Service) Verbose(ctx context.Context, c *cache.Container, facts map[string]any) {
	verbose.Add(ctx, s.engine, c.ID(), c.Pid, facts)
	nri.AddFacts(s.nriRecords, c.ID(), facts)
}

// List returns the containers that match filter; a nil filter matches all.
func (s *Service) List(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	found, err := s.cache.Containers(ctx, filter)
	if err != nil {
		return nil, err
	}
	rows := make([]*runtimeapi.Container, 0, len(found))
	for _, c := range found {
		rows = append(rows, c.Row)
	}
	return rows, nil
}

// Statuses returns the status of every container in a sandbox.
func (s *Service) Statuses(ctx context.Context, sandboxID string) ([]*runtimeapi.ContainerStatus, error) {
	found, err := s.cache.Containers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: sandboxID})
	if err != nil {
		return nil, err
	}
	var statuses []*runtimeapi.ContainerStatus
	for _, c := range found {
		statuses = append(statuses, c.Status)
	}
	return statuses, nil
}

// ReopenLog begins a new log file for a running container. The error is of kind FailedPrecondition if it is not running,
// and Unavailable if it has not been inspected since berthd connected to Docker.
func (s *Service) ReopenLog(ctx context.Context, id string) error {
	c, err := s.Running(ctx, id)
	if err != nil {
		return err
	}
	if c.Pid == 0 { // known from Docker's list only, which does not have the path of the log
		return fmt.Errorf("log of container %s: Docker has not described the container yet: %w", c.ID(), errdefs.ErrUnavailable)
	}
	return s.logs.Reopen(ctx, c.ID())
}

// Running returns the container id. The error is of kind FailedPrecondition if it is not running.
func (s *Service) Running(ctx context.Context, id string) (*cache.Container, error) {
	c, err := s.cache.Container(ctx, id)
	if err == nil && !c.Running {
		err = fmt.Errorf("container %s is not running: %w", c.ID(), errdefs.ErrFailedPrecondition)
	}
	return c, err
}
