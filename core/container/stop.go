package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"berth/core/changes"
	"berth/core/engine"
	"berth/core/logs/dockerlog"
	"berth/core/names"
)

const (
	// stopTimeout bounds a stop, in addition to the grace period: Docker itself waits 10 s for the exit of a process
	// that it has killed.
	stopTimeout = 30 * time.Second
	// killTimeout bounds a kill, and a removal.
	killTimeout = time.Minute
)

// Stop sends a container the stop signal that it was created with, and kills it after the grace period; without a
// grace period it is killed at once. A container that is not running, or does not exist, is no error.
//
// The error is of kind DeadlineExceeded if the container is still running after that.
func (s *Service) Stop(ctx context.Context, id string, grace time.Duration) error {
	docker, err := s.engine.Conn()
	if err != nil {
		return err
	}
	c, err := s.cache.Container(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !c.Running {
		return nil
	}
	s.abortCheckpoint(c.ID())
	// The first call goes on if its caller leaves, because Docker 23 aborts a stop whose request is cancelled. Later
	// ones only wait, and end with their callers.
	first := s.beginStop(c.ID())
	defer s.endStop(c.ID())
	parent := ctx
	if first || grace <= 0 {
		parent = context.WithoutCancel(ctx)
	}
	work, cancel := context.WithTimeout(parent, max(grace, 0)+stopTimeout)
	defer cancel()
	stopErr := s.stop(work, docker, c.ID(), grace, first)
	// Docker returns 500 if it has killed the container and not seen its exit in time. It may have exited since.
	if stopErr != nil && !errdefs.IsNotFound(stopErr) && !errdefs.IsInternal(stopErr) {
		return fmt.Errorf("stop container %s: %w", c.ID(), stopErr)
	}
	inspected, err := s.cache.Refresh(work, c.ID())
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil:
		return errors.Join(stopErr, err)
	case inspected.State.Running:
		return fmt.Errorf("container %s could not be killed: %w", c.ID(), errors.Join(context.DeadlineExceeded, stopErr))
	}
	s.nri.StopContainer(work, c.ID())
	return nil
}

// stop returns once the container is not running. Of parallel calls, the first one sends the signal; the others wait
// for its effect, each with a grace period of its own, because the kubelet may send another request with a shorter one.
func (s *Service) stop(ctx context.Context, docker *engine.Conn, id string, grace time.Duration, first bool) error {
	if grace <= 0 {
		return docker.Kill(ctx, id)
	}
	if first {
		seconds := int((grace + time.Second - 1) / time.Second)
		return docker.ContainerStop(ctx, id, container.StopOptions{Timeout: &seconds})
	}
	waitCtx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	exited, failed := docker.ContainerWait(waitCtx, id, container.WaitConditionNotRunning)
	select {
	case <-exited:
		return nil
	case err := <-failed:
		if waitCtx.Err() != nil && ctx.Err() == nil {
			return docker.Kill(ctx, id) // the grace period is over
		}
		return err
	}
}

// beginStop counts a call that stops the container id, and reports whether it is the only one.
func (s *Service) beginStop(id string) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stops[id]++
	return s.stops[id] == 1
}

func (s *Service) endStop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stops[id]--; s.stops[id] == 0 {
		delete(s.stops, id)
	}
}

// Kill kills a container. One that is not running, or does not exist, is no error.
func (s *Service) Kill(ctx context.Context, id string) error {
	docker, err := s.engine.Conn()
	if err != nil {
		return err
	}
	s.abortCheckpoint(id)
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := docker.Kill(ctx, id); err != nil {
		return err
	}
	_, err = s.cache.Refresh(ctx, id)
	if err == nil {
		s.nri.StopContainer(ctx, id)
	} else if !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// Remove removes a container, running or not, and returns once it is gone. One that does not exist is no error. The log
// file stays: the kubelet removes it.
func (s *Service) Remove(ctx context.Context, id string) error {
	docker, err := s.engine.Conn()
	if err != nil {
		return err
	}
	if c, err := s.cache.Container(ctx, id); err == nil {
		s.abortCheckpoint(c.ID())
		if c.Running { // before it is locked: NRI plugins may change other containers when it stops
			if err := s.Kill(context.WithoutCancel(ctx), c.ID()); err != nil {
				return err
			}
		}
	}
	// Not while it is being started or updated: these would record, or set up, something for a container that is gone.
	c, unlock, err := s.lock(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	start := time.Now()
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if c.Running {
		if err := s.Kill(work, c.ID()); err != nil {
			return err
		}
	}
	if err := s.discard(work, docker, c.ID(), logFile{c.LogDirectory, c.Status.GetLogPath()}, c.Premount); err != nil {
		return err
	}
	s.log.Info("container removed", described(c), changes.Took(start))
	return nil
}

// A logFile is where the kubelet reads the log of a container.
type logFile struct {
	dir  string // log directory of the pod
	path string // below dir; "" for none
}

// discard removes a container and everything that belongs to it but its log file: records, and its premounts, if it has
// any.
func (s *Service) discard(ctx context.Context, docker *engine.Conn, id string, log logFile, premounts names.Premount) error {
	// Before the removal of the container, which deletes Docker's own file.
	if err := s.logs.Remove(ctx, id, dockerlog.JSONPath(docker.Features.RootDir, id), log.dir, log.path); err != nil {
		s.log.Warn("log of a container could not be closed; its last lines may be missing", slog.String("container", id), slog.Any("err", err))
	}
	removed := s.nri.BeginRemove(ctx, id)
	if err := docker.ForceRemove(ctx, id); err != nil {
		return err
	}
	removed(ctx)
	s.cache.Forget(id)
	return errors.Join(s.premounts.RemoveAll(ctx, docker, premounts), s.failures.Delete(id), s.updates.Delete(id), s.nriRecords.Delete(id), s.oci.Remove(id), s.restores.Remove(ctx, id))
}
