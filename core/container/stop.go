package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"berth/core/engine"
	"berth/core/names"
)

const (
	// stopMargin is what a stop may take beyond the container's own grace: the
	// Engine itself waits 10 s for a process that it has killed.
	stopMargin = 30 * time.Second
	killLimit  = time.Minute
)

// Stop asks a container to end, by the signal it was created with, and kills
// it once grace is over; with no grace it is killed at once. A container that
// does not run or is not there is no error.
//
// The error is of kind DeadlineExceeded if it could not be killed.
func (s *Service) Stop(ctx context.Context, id string, grace time.Duration) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	c, err := s.view.Container(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !c.Running {
		return nil
	}
	// The first call goes on if its caller hangs up, because Docker 23 would stop
	// stopping. Later ones only wait, and end with their callers.
	first := s.enter(c.ID())
	defer s.leave(c.ID())
	parent := ctx
	if first || grace <= 0 {
		parent = context.WithoutCancel(ctx)
	}
	work, cancel := context.WithTimeout(parent, max(grace, 0)+stopMargin)
	defer cancel()
	stopErr := s.stop(work, docker, c.ID(), grace, first)
	// An Engine that has killed it and heard of no end says 500; it may have ended since.
	if stopErr != nil && !errdefs.IsNotFound(stopErr) && !errdefs.IsInternal(stopErr) {
		return fmt.Errorf("stop container %s: %w", c.ID(), stopErr)
	}
	seen, err := s.view.Refresh(work, c.ID())
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil:
		return errors.Join(stopErr, err)
	case seen.State.Running:
		return fmt.Errorf("container %s could not be killed: %w", c.ID(), errors.Join(context.DeadlineExceeded, stopErr))
	}
	return nil
}

// stop returns once the container does not run. Of calls at the same time the
// first one sends the signal; the others wait for its effect, each with its
// own grace, because a kubelet may come back with a shorter one.
func (s *Service) stop(ctx context.Context, docker *engine.Conn, id string, grace time.Duration, first bool) error {
	if grace <= 0 {
		return docker.Kill(ctx, id)
	}
	if first {
		seconds := int((grace + time.Second - 1) / time.Second)
		return docker.ContainerStop(ctx, id, container.StopOptions{Timeout: &seconds})
	}
	short, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	ended, failed := docker.ContainerWait(short, id, container.WaitConditionNotRunning)
	select {
	case <-ended:
		return nil
	case err := <-failed:
		if short.Err() != nil && ctx.Err() == nil {
			return docker.Kill(ctx, id) // its grace is over
		}
		return err
	}
}

// enter counts a call that stops id and reports whether it is the only one.
func (s *Service) enter(id string) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping[id]++
	return s.stopping[id] == 1
}

func (s *Service) leave(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping[id]--; s.stopping[id] == 0 {
		delete(s.stopping, id)
	}
}

// Kill ends the container at once. One that does not run or is not there is no
// error.
func (s *Service) Kill(ctx context.Context, id string) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	if err := docker.Kill(ctx, id); err != nil {
		return err
	}
	if _, err := s.view.Refresh(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// Remove removes a container, running or not, and returns once it is gone. One
// that is not there is no error. The kubelet's log file stays, for it is the
// kubelet's.
func (s *Service) Remove(ctx context.Context, id string) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	// Not while it is being started or updated: they would write down, or set up,
	// something for a container that is gone.
	c, done, err := s.inTurn(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer done()
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), killLimit)
	defer cancel()
	if c.Running {
		if err := s.Kill(work, c.ID()); err != nil {
			return err
		}
	}
	return s.discard(work, docker, c.ID(), logFile{c.LogDirectory, c.Status.GetLogPath()}, c.Stage)
}

// A logFile is where the kubelet looks for the log of a container.
type logFile struct {
	dir  string // log directory of the pod
	path string // below that; "" for none
}

// discard leaves nothing of a container but the kubelet's log file:
// neither in the Engine nor, if it has a stage, of its staged mounts.
func (s *Service) discard(ctx context.Context, docker *engine.Conn, id string, log logFile, stage names.Premount) error {
	// Before the Engine's own file goes with the container.
	if err := s.logs.Close(ctx, id, jsonFile(docker, id), log.dir, log.path); err != nil {
		s.log.Warn("the log of a container could not be finished", slog.String("container", id), slog.Any("err", err))
	}
	if err := docker.ForceRemove(ctx, id); err != nil {
		return err
	}
	s.view.Forget(id)
	return errors.Join(s.unstage(ctx, docker, stage), s.failures.Delete(id), s.updates.Delete(id))
}
