package podcheckpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/changes"
	"berth/core/restore"
)

// Restore makes a pod whose containers go on from a checkpoint when they are started. On an error nothing is left of it.
//
// The error is of kind InvalidArgument for a request that is wrong in itself, NotFound if there is no checkpoint or an image of it is missing,
// AlreadyExists if there is such a pod, and FailedPrecondition if checkpoints are not restored or this one does not fit.
func (s *Service) Restore(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	start := time.Now()
	if err := checkCall(ctx, r.GetOptions()); err != nil {
		return nil, err
	}
	checkpoint, err := s.Restores.OpenPod(r.GetCheckpointPath())
	if err != nil {
		return nil, err
	}
	if err := s.check(ctx, r, checkpoint); err != nil {
		return nil, fmt.Errorf("checkpoint_path %.200q: %w", r.GetCheckpointPath(), err)
	}
	// The services keep for a retry what they have made after a deadline. This caller does not retry.
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
	resp := &runtimeapi.RestorePodResponse{}
	resp.PodSandboxId, err = s.Sandboxes.RunWith(work, r.GetConfig(), r.GetRuntimeHandler(), func(id string) (err error) {
		resp.RestoredContainers, err = s.createAll(work, id, r, checkpoint)
		return err
	})
	if ctx.Err() != nil && err == nil {
		err = s.Sandboxes.Remove(context.WithoutCancel(ctx), resp.GetPodSandboxId()) // the caller has not waited for it
	}
	if err := errors.Join(ctx.Err(), err); err != nil {
		return nil, fmt.Errorf("restore the pod: %w", err)
	}
	s.Log.Info("pod restored", changes.Pod(resp.GetPodSandboxId(), r.GetConfig().GetMetadata()), slog.Int("containers", len(resp.GetRestoredContainers())), slog.String("location", r.GetCheckpointPath()), changes.Took(start))
	return resp, nil
}

// check returns an error if the checkpoint does not fit the request.
func (s *Service) check(ctx context.Context, r *runtimeapi.RestorePodRequest, checkpoint *restore.Pod) error {
	if r.GetConfig().GetMetadata() == nil {
		return fmt.Errorf("config: must have metadata: %w", errdefs.ErrInvalidArgument)
	}
	if r.GetRuntimeHandler() != checkpoint.RuntimeHandler {
		return fmt.Errorf("runtime_handler %.100q: must be that of the checkpoint, %q: %w", r.GetRuntimeHandler(), checkpoint.RuntimeHandler, errdefs.ErrFailedPrecondition)
	}
	if len(r.GetContainerConfigs()) == 0 {
		return fmt.Errorf("container_configs: must not be empty: %w", errdefs.ErrInvalidArgument)
	}
	names := map[string]bool{}
	for _, c := range r.GetContainerConfigs() {
		name := c.GetMetadata().GetName()
		switch {
		case name == "" || names[name]:
			return fmt.Errorf("container_configs: name %.100q: must be unique and not empty: %w", name, errdefs.ErrInvalidArgument)
		case checkpoint.ArchiveOf(name) == "":
			return fmt.Errorf("container_configs: the checkpoint has no container %.100q: %w", name, errdefs.ErrInvalidArgument)
		}
		names[name] = true
	}
	for _, c := range checkpoint.Containers {
		if !names[c.Name] {
			return fmt.Errorf("container_configs: container %q of the checkpoint is missing: %w", c.Name, errdefs.ErrInvalidArgument)
		}
	}
	all, err := checkpoint.Open(ctx)
	if err != nil {
		return err
	}
	for _, c := range r.GetContainerConfigs() {
		if err := s.fits(ctx, c, all[c.GetMetadata().GetName()]); err != nil {
			return fmt.Errorf("container %q: %w", c.GetMetadata().GetName(), err)
		}
	}
	return nil
}

// createAll creates the containers in the sandbox id.
func (s *Service) createAll(ctx context.Context, id string, r *runtimeapi.RestorePodRequest, checkpoint *restore.Pod) (made []*runtimeapi.RestoredContainer, err error) {
	for _, config := range r.GetContainerConfigs() {
		name := config.GetMetadata().GetName()
		c := proto.CloneOf(config)
		c.Image = &runtimeapi.ImageSpec{Image: checkpoint.ArchiveOf(name)} // as CreateContainer is called to restore one container
		container, err := s.Containers.Create(ctx, id, c, r.GetConfig())
		if err != nil {
			return nil, fmt.Errorf("container %q: %w", name, err)
		}
		made = append(made, &runtimeapi.RestoredContainer{Name: name, ContainerId: container})
	}
	return made, nil
}
