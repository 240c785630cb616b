package container

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/changes"
	"berth/core/limits"
	"berth/core/nri/adjust"
	"berth/core/rollback"
	"berth/core/todocker"
)

// Update changes the resources of a container that is created or running. Fields that r does not set keep their
// value. Afterwards either all of it is in effect or, with an error, nothing.
//
// The error is of kind NotFound if there is no such container, FailedPrecondition if it has exited, and
// InvalidArgument if the node does not have a setting.
func (s *Service) Update(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) error {
	if err := todocker.CheckUpdate(r); err != nil {
		return err
	}
	c, err := s.cache.Container(ctx, r.GetContainerId())
	if err != nil {
		return err
	}
	if err := requireUpdatable(c); err != nil {
		return err
	}
	resources, err := s.nri.UpdateContainer(ctx, c.ID(), r.GetLinux())
	if err != nil {
		return err
	}
	if err := s.ApplyUpdate(ctx, c.ID(), resources); err != nil {
		return err
	}
	s.nri.PostUpdateContainer(context.WithoutCancel(ctx), c.ID())
	return nil
}

// requireUpdatable fails if c has exited.
func requireUpdatable(c *cache.Container) error {
	state := c.Row.GetState()
	if state != runtimeapi.ContainerState_CONTAINER_CREATED && state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("container %s is %v and cannot be updated: %w", c.ID(), state, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// ApplyUpdate is Update for resources that NRI plugins have changed, or that they request by themselves.
func (s *Service) ApplyUpdate(ctx context.Context, id string, resources adjust.Resources) (err error) {
	start := time.Now()
	docker, err := s.engine.Conn()
	if err != nil {
		return err
	}
	if err := resources.CheckUpdate(); err != nil {
		return err
	}
	c, unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := requireUpdatable(c); err != nil {
		return err
	}
	update, err := limits.UpdateContainer(c.Status.GetResources().GetLinux(), resources.CRI, docker.Features)
	if err != nil {
		return err
	}
	resources.AddTo(&update.Engine)
	restore, err := s.resources.Snapshot(docker, c, update)
	if err != nil {
		return err
	}
	work := context.WithoutCancel(ctx)
	var steps rollback.Stack
	defer steps.Rollback(work, &err)
	steps.Push("restore the resources of container "+c.ID(), restore)
	defer s.resources.TriggerReapply(c.Row.GetPodSandboxId())
	if err := s.resources.Update(work, docker, c, update); err != nil {
		return fmt.Errorf("update container %s: %w", c.ID(), daemonError{err})
	}
	if err := s.updates.Put(c.ID(), update.Result); err != nil {
		return err
	}
	if _, err = s.cache.Refresh(work, c.ID()); err != nil {
		return err
	}
	if now := update.Result; !proto.Equal(now, c.Status.GetResources().GetLinux()) {
		s.log.Info("container resized", described(c), slog.Int64("cpu-shares", now.GetCpuShares()), slog.Int64("cpu-quota", now.GetCpuQuota()),
			slog.Int64("cpu-period", now.GetCpuPeriod()), slog.Int64("memory", now.GetMemoryLimitInBytes()), slog.String("cpuset", now.GetCpusetCpus()), changes.Took(start))
	}
	return nil
}
