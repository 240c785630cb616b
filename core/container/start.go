package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/changes"
	"berth/core/engine"
	"berth/core/limits"
	"berth/core/tocri"
)

// startTimeout bounds the start of one container, which goes on, with the lock of the container, after its caller
// has left.
const startTimeout = 4 * time.Minute

// Start starts a container that has been created and never started; the error is of kind FailedPrecondition for
// others. A container whose start fails is EXITED from then on.
//
// If Docker has not replied, or could not reach containerd, the outcome is unknown: the error is of kind
// Unavailable, and the container can be started again unless it is running.
func (s *Service) Start(ctx context.Context, id string) error {
	start := time.Now()
	docker, err := s.engine.Conn()
	if err != nil {
		return err
	}
	c, unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if state := c.Row.GetState(); state != runtimeapi.ContainerState_CONTAINER_CREATED {
		return fmt.Errorf("container %s is %v and cannot be started: %w", c.ID(), state, errdefs.ErrFailedPrecondition)
	}

	// Docker goes on with a start whose request is cancelled.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	ended, err := s.nri.BeginStart(work, c.ID())
	defer func() { ended(work, err == nil) }()
	if err == nil {
		err = s.startWithResources(work, docker, c)
	}
	s.resources.TriggerReapply(c.Row.GetPodSandboxId())
	// If the outcome is unknown, an event will bring it into the cache; an Engine that does not reply is not asked again.
	if !engine.OutcomeUnknown(err) {
		err = s.finishStart(work, c, err)
	}
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.ID(), daemonError{err})
	}
	s.log.Info("container started", described(c), changes.Took(start))
	return nil
}

// finishStart updates what is known of a container after a start with the result startErr.
func (s *Service) finishStart(ctx context.Context, c *cache.Container, startErr error) error {
	// A running container has mounts of its own. If the premounts stayed, a volume could not be unmounted from the
	// node after the container has exited.
	if err := s.premounts.Remove(c.Premount); err != nil {
		s.log.Warn("premounts of a started container could not be removed; it will be tried again", slog.String("container", c.ID()), slog.Any("err", err))
	}
	startErr = s.endRestore(ctx, c, startErr)
	if startErr != nil {
		// The kubelet's back-off counts from this time, and Docker does not record it.
		if _, recorded, err := s.failures.Get(c.ID()); err == nil && !recorded {
			s.recordFailure(c.ID(), tocri.FailedStart{At: time.Now()})
		}
	}
	if startErr != nil {
		_, _ = s.cache.Refresh(ctx, c.ID()) // an event has it repeated
		return startErr
	}
	return s.cache.RefreshUnless(ctx, c.ID(), func(now *cache.Container) bool { return now.State != container.StateCreated })
}

// recordFailure records that the start of the container id failed.
func (s *Service) recordFailure(id string, failed tocri.FailedStart) {
	if err := s.failures.Put(id, failed); err != nil {
		s.log.Warn("failed start could not be recorded; the status of the container lacks its time and reason", slog.String("container", id), slog.Any("err", err))
	}
}

// startWithResources starts a container with all the settings that it asks for, or not at all.
func (s *Service) startWithResources(ctx context.Context, docker *engine.Conn, c *cache.Container) error {
	settings, err := limits.CgroupSettings(c.Status.GetResources().GetLinux(), docker.Features)
	if err != nil {
		return err
	}
	removeCgroup, err := s.resources.PrepareStart(ctx, docker, c.ID(), settings)
	if err != nil {
		return err
	}
	done := s.cache.ExpectStart(ctx, c)
	defer done()
	short, cancel := docker.WithRequestTimeout(ctx)
	err = docker.ContainerStart(short, c.ID(), container.StartOptions{})
	cancel()
	if err != nil {
		if !engine.OutcomeUnknown(err) { // else the container may be running in that cgroup
			err = errors.Join(err, removeCgroup())
		}
		return err
	}
	return s.applyResources(ctx, docker, c, settings)
}

// applyResources applies what Docker cannot be told to a container that has just started. One that cannot get its
// settings is killed.
func (s *Service) applyResources(ctx context.Context, docker *engine.Conn, c *cache.Container, settings []limits.CgroupSetting) error {
	_, updated, err := s.updates.Get(c.ID())
	if err != nil {
		return errors.Join(err, docker.Kill(ctx, c.ID())) // it may run without settings that it must have
	}
	if len(settings) == 0 && !updated {
		return nil
	}
	found, err := docker.ContainerInspect(ctx, c.ID())
	if err != nil {
		return err
	}
	if !found.State.Running {
		return nil // it has exited before the settings could matter
	}
	if err := s.resources.ApplyStarted(ctx, docker, c, found.State.Pid, settings, updated); err != nil {
		// Recorded before the kill, so that the status has the reason as soon as it shows the exit.
		s.recordFailure(c.ID(), tocri.FailedStart{At: time.Now(), Message: daemonError{err}.Error()})
		return errors.Join(err, docker.Kill(ctx, c.ID()))
	}
	return nil
}
