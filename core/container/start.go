package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/tocri"
	"berth/core/todocker"
)

// startLimit is how long starting one container may take once its caller has hung up:
// it has the turn of the container.
const startLimit = 4 * time.Minute

// Start starts a container that has been created and never started; of kind
// FailedPrecondition otherwise. One whose start fails is EXITED from then on, but where
// the Engine has not answered or could not pass it on to containerd: then the error is
// of kind Unavailable, and the container can be started again unless it runs.
func (s *Service) Start(ctx context.Context, id string) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	c, done, err := s.inTurn(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if state := c.Row.GetState(); state != runtimeapi.ContainerState_CONTAINER_CREATED {
		return fmt.Errorf("container %s is %v and cannot be started: %w", c.ID(), state, errdefs.ErrFailedPrecondition)
	}

	// Docker would go on starting it anyway when the caller hangs up.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
	defer cancel()
	err = s.launch(work, docker, c)
	s.unsettle()
	unknown := engine.OutcomeUnknown(err)
	if !unknown {
		// What runs has mounts of its own. Where ours stayed, a volume could not
		// be taken away from the node once the container has ended.
		if dropErr := s.stages.Remove(c.Stage); dropErr != nil {
			s.log.Warn("staged mounts of a started container could not be taken down, trying again", slog.String("container", c.ID()), slog.Any("err", dropErr))
		}
	}
	if err != nil && !unknown {
		// The kubelet's back-off counts from this, and the Engine keeps no time.
		if _, recorded := s.failures.Get(c.ID()); !recorded {
			s.recordFailure(c.ID(), tocri.FailedStart{At: time.Now()})
		}
	}
	if !unknown { // else the view is told by an event, and an Engine that does not answer is not asked again
		if _, lookErr := s.view.Refresh(work, c.ID()); lookErr != nil && err == nil {
			err = lookErr
		}
	}
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.ID(), plain{err})
	}
	return nil
}

// recordFailure records that the start of the container id failed.
func (s *Service) recordFailure(id string, failed tocri.FailedStart) {
	if err := s.failures.Put(id, failed); err != nil {
		s.log.Warn("failed start could not be recorded; the status of the container lacks its time and reason", slog.String("container", id), slog.Any("err", err))
	}
}

// inTurn returns the container id as it is once it is this caller's turn, which
// lasts until done is called.
func (s *Service) inTurn(ctx context.Context, id string) (c *cache.Container, done func(), err error) {
	if c, err = s.view.Container(ctx, id); err != nil {
		return nil, nil, err
	}
	if done, err = s.turns.Lock(ctx, c.ID()); err != nil {
		return nil, nil, err
	}
	if c, err = s.view.Container(ctx, c.ID()); err != nil {
		done()
		return nil, nil, err
	}
	return c, done, nil
}

// launch starts a container with all that it asked for, or not at all.
func (s *Service) launch(ctx context.Context, docker *engine.Conn, c *cache.Container) error {
	knobs, err := todocker.CgroupSettings(c.Status.GetResources().GetLinux(), docker.Features)
	if err != nil {
		return err
	}
	remove := func() error { return nil }
	if len(knobs) > 0 && docker.Features.CgroupDriver == "cgroupfs" {
		found, err := docker.ContainerInspect(ctx, c.ID())
		if err != nil {
			return err
		}
		// Where none is named it is daemon.json that has the word, and Docker does
		// not tell what it says: then adjust alone writes the knobs.
		if parent := found.HostConfig.CgroupParent; parent != "" {
			if remove, err = prepare(knobs, parent, c.ID()); err != nil {
				return errors.Join(err, remove())
			}
		}
	}
	started := s.view.ExpectStart(ctx, c)
	defer started()
	short, cancel := docker.WithRequestTimeout(ctx)
	err = docker.ContainerStart(short, c.ID(), container.StartOptions{})
	cancel()
	if err != nil {
		if !engine.OutcomeUnknown(err) { // then it may well run
			err = errors.Join(err, remove())
		}
		return err
	}
	return s.adjust(ctx, docker, c, knobs)
}

// adjust gives a container that has just started what the Engine could not be told: knobs,
// and an oom_score_adj that has been changed since it was created. A container that
// cannot have what it asked for does not run.
func (s *Service) adjust(ctx context.Context, docker *engine.Conn, c *cache.Container, knobs []todocker.CgroupSetting) error {
	_, updated := s.updates.Get(c.ID())
	if len(knobs) == 0 && !updated {
		return nil
	}
	found, err := docker.ContainerInspect(ctx, c.ID())
	if err != nil {
		return err
	}
	if !found.State.Running {
		return nil // over before it could matter
	}
	err = s.turn(ctx, knobs, c.ID(), found.State.Pid)
	if updated {
		score := max(int(c.Status.GetResources().GetLinux().GetOomScoreAdj()), docker.OOMFloor())
		err = errors.Join(err, adjustOOMScore(c.ID(), found.State.Pid, score))
	}
	if err != nil {
		// Recorded first: anyone who sees that it has ended is to see why.
		s.recordFailure(c.ID(), tocri.FailedStart{At: time.Now(), Message: plain{err}.Error()})
		return errors.Join(err, docker.Kill(ctx, c.ID()))
	}
	return nil
}

// plain is an error of the Engine without the words that every one begins with.
type plain struct{ error }

func (e plain) Error() string {
	return strings.TrimPrefix(e.error.Error(), "Error response from daemon: ")
}

func (e plain) Unwrap() error { return e.error }
