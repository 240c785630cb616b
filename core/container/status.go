package container

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/panics"
)

// Status returns what there is to know about the container id; of kind
// NotFound if there is none.
func (s *Service) Status(ctx context.Context, id string) (*cache.Container, error) {
	return s.view.Container(ctx, id)
}

// List returns the containers that match filter; a nil filter matches all.
func (s *Service) List(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	list, err := s.view.Containers(ctx, filter)
	if err != nil {
		return nil, err
	}
	rows := make([]*runtimeapi.Container, 0, len(list))
	for _, c := range list {
		rows = append(rows, c.Row)
	}
	return rows, nil
}

// Statuses returns the status of every container in a sandbox.
func (s *Service) Statuses(ctx context.Context, sandboxID string) ([]*runtimeapi.ContainerStatus, error) {
	list, err := s.view.Containers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: sandboxID})
	if err != nil {
		return nil, err
	}
	var statuses []*runtimeapi.ContainerStatus
	for _, c := range list {
		statuses = append(statuses, c.Status)
	}
	return statuses, nil
}

// RunGC forgets notes on containers that are no more, takes down their staged
// mounts and sees to the settings of those that run, after every connection to the
// Engine and now and then, and removes what was made too late for its caller. It
// returns when ctx ends.
func (s *Service) RunGC(ctx context.Context) error {
	g, ctx := panics.NewGroupWithContext(ctx, s.log)
	g.Go(func() error { return s.giveUp(ctx) })
	g.Go(func() error { return s.tidy(ctx) })
	return g.Wait()
}

func (s *Service) tidy(ctx context.Context) error {
	return s.view.ReconcileLoop(ctx, "containers", nil, func(ctx context.Context, docker *engine.Conn) error {
		return errors.Join(s.forget(ctx), s.tidyStages(ctx, docker), s.settle(ctx, docker), s.logs.Forget(func(id string) bool {
			_, err := s.view.Container(ctx, id)
			return !errdefs.IsNotFound(err)
		}))
	})
}

// forget drops the notes on containers that were removed behind our back.
func (s *Service) forget(ctx context.Context) error {
	for _, shelf := range []interface {
		Names() ([]string, error)
		Delete(key string) error
	}{s.failures, s.updates} {
		noted, err := shelf.Names()
		if err != nil {
			return err
		}
		for _, id := range noted {
			if _, err := s.view.Container(ctx, id); !errdefs.IsNotFound(err) {
				continue
			}
			if err := shelf.Delete(id); err != nil {
				return err
			}
		}
	}
	return nil
}

// Reopen begins a new log file for a running container. The error is of kind Unavailable
// for one that has not been inspected since berthd connected to Docker.
func (s *Service) Reopen(ctx context.Context, id string) error {
	c, err := s.Running(ctx, id)
	if err != nil {
		return err
	}
	if c.Pid == 0 { // where its log is, the list does not say
		return fmt.Errorf("log of container %s: Docker has not described the container yet: %w", c.ID(), errdefs.ErrUnavailable)
	}
	return s.logs.Reopen(ctx, c.ID())
}

// Running returns the container id; of kind FailedPrecondition if it does not
// run.
func (s *Service) Running(ctx context.Context, id string) (*cache.Container, error) {
	c, err := s.view.Container(ctx, id)
	if err == nil && !c.Running {
		err = fmt.Errorf("container %s is not running: %w", c.ID(), errdefs.ErrFailedPrecondition)
	}
	return c, err
}
