package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/changes"
	"berth/core/criu"
	"berth/core/engine"
	"berth/core/podpolicy"
)

// checkpointTimeout is the timeout of checkpoints whose caller sets none: that of other calls of the kubelet (runtimeRequestTimeout).
const checkpointTimeout = 2 * time.Minute

// errEnding is why a checkpoint is given up when its container is to be stopped or removed.
var errEnding = fmt.Errorf("the container is being stopped: %w", errdefs.ErrFailedPrecondition)

// Checkpoint writes a checkpoint of a running container to an archive at location. The container goes on running. A
// timeout of 0 is checkpointTimeout.
//
// The error is of kind NotFound if there is no such container, FailedPrecondition if it does not run or CRIU cannot checkpoint it, and
// InvalidArgument if there can be no archive at location.
func (s *Service) Checkpoint(ctx context.Context, id, location string, timeout time.Duration) (err error) {
	start := time.Now()
	if timeout <= 0 {
		timeout = checkpointTimeout
	}
	work, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("timeout of %v: %w", timeout, engine.ErrCommandTimeout))
	defer cancel()
	work, abort := context.WithCancelCause(work)
	defer abort(nil)
	c, target, done, err := s.BeginCheckpoint(work, id, abort)
	if err != nil {
		return err
	}
	defer done()
	size, err := s.checkpoints.Checkpoint(work, target, location)
	if err != nil {
		if cause := context.Cause(work); cause != nil && !errors.Is(err, cause) {
			err = errors.Join(cause, err)
		}
		return fmt.Errorf("checkpoint container %s: %w", c.ID(), err)
	}
	s.log.Info("container checkpointed", described(c), slog.String("location", location), slog.Int64("bytes", size), changes.Took(start))
	return nil
}

// BeginCheckpoint locks the running container id, and returns what a checkpoint of it needs. Until done is called, Stop, Kill and Remove call abort.
func (s *Service) BeginCheckpoint(ctx context.Context, id string, abort context.CancelCauseFunc) (_ *cache.Container, target criu.Container, done func(), err error) {
	docker, err := s.engine.Conn()
	if err != nil {
		return nil, target, nil, err
	}
	c, unlock, err := s.lock(ctx, id)
	if err != nil {
		return nil, target, nil, err
	}
	s.setAbort(c.ID(), abort) // before it is inspected, so that a kill after that is noticed
	end := func() { s.setAbort(c.ID(), nil); unlock() }
	if target, err = s.checkpointOf(ctx, docker, c); err != nil {
		end()
		return nil, target, nil, err
	}
	return c, target, end, nil
}

// checkpointOf returns what a checkpoint of c needs.
func (s *Service) checkpointOf(ctx context.Context, docker *engine.Conn, c *cache.Container) (target criu.Container, err error) {
	if state := c.Row.GetState(); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return target, fmt.Errorf("container %s is %v and cannot be checkpointed: %w", c.ID(), state, errdefs.ErrFailedPrecondition)
	}
	if !strings.HasPrefix(docker.DaemonHost(), "unix://") {
		return target, fmt.Errorf("docker is at %s: containers can only be checkpointed on its own node, through its Unix socket: %w", docker.DaemonHost(), errdefs.ErrFailedPrecondition)
	}
	short, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	found, err := docker.ContainerInspect(short, c.ID())
	if err != nil {
		return target, fmt.Errorf("inspect %s: %w", c.ID(), err)
	}
	pod, err := s.cache.Sandbox(ctx, c.Row.GetPodSandboxId())
	if err != nil {
		return target, err
	}
	if target, err = criu.ContainerOf(found, docker.Features.RootDir, docker.Features.ContainerdRoot); err != nil {
		return target, err
	}
	image := c.Status.GetImage().GetUserSpecifiedImage()
	if image == "" {
		image = c.Status.GetImage().GetImage()
	}
	annotations := podpolicy.StandardAnnotations(&runtimeapi.PodSandboxConfig{Metadata: pod.Row.GetMetadata()}, pod.ID(), c.Status.GetMetadata().GetName(), image)
	maps.Copy(annotations, criu.CRIOAnnotations(c.Row, image))
	target.Config = metadata.ContainerConfig{
		ID: c.ID(), Name: c.Status.GetMetadata().GetName(), RootfsImage: image, RootfsImageRef: criu.FullName(c.Status.GetImageRef()), RootfsImageName: criu.FullName(image),
		OCIRuntime: found.HostConfig.Runtime, CreatedTime: time.Unix(0, c.Status.GetCreatedAt()), CheckpointedAt: time.Now(),
	}
	target.Status, target.Annotations = c.Status, annotations
	return target, nil
}

// setAbort says what ends the checkpoint of the container id; nil if there is none.
func (s *Service) setAbort(id string, abort context.CancelCauseFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.checkpointing[id] = abort; abort == nil {
		delete(s.checkpointing, id)
	}
}

// abortCheckpoint ends the checkpoint of the container id, if there is one, so that it does not delay the end of the container.
func (s *Service) abortCheckpoint(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if abort := s.checkpointing[id]; abort != nil {
		abort(errEnding)
	}
}

// gcCheckpoints undoes the checkpoints that a berthd before this one has begun, and removes the files of those that have been restored.
func (s *Service) gcCheckpoints(ctx context.Context) error {
	return errors.Join(s.checkpoints.GC(ctx, s.Inspect), s.restores.GC(ctx, s.Inspect))
}

// Inspect returns what Docker says of the container id.
func (s *Service) Inspect(ctx context.Context, id string) (container.InspectResponse, error) {
	docker, err := s.engine.Conn()
	if err != nil {
		return container.InspectResponse{}, err
	}
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	return docker.ContainerInspect(ctx, id)
}

// endRestore ends the restore of c, if it was restored from a checkpoint by its start with the result startErr, to which the
// errors of CRIU are added. The reader may not know where the node keeps volumes.
func (s *Service) endRestore(ctx context.Context, c *cache.Container, startErr error) error {
	var hide []string
	for _, m := range c.Status.GetMounts() {
		if len(m.GetHostPath()) > 1 {
			hide = append(hide, m.GetHostPath(), m.GetContainerPath())
		}
	}
	return s.restores.Started(ctx, c.ID(), startErr, hide)
}
