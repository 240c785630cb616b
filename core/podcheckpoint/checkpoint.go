package podcheckpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/changes"
	"berth/core/criu"
)

// Checkpoint writes a checkpoint of running containers of a pod to a directory. They are frozen meanwhile, and go on when it returns.
//
// The error is of kind NotFound if there is no such pod or container, FailedPrecondition if one does not run or cannot be checkpointed, and
// InvalidArgument for a request that is wrong in itself, or a directory that is not there or not empty.
func (s *Service) Checkpoint(ctx context.Context, r *runtimeapi.CheckpointPodRequest) error {
	start := time.Now()
	if err := checkCall(ctx, r.GetOptions()); err != nil {
		return err
	}
	if len(r.GetContainerIds()) == 0 {
		return fmt.Errorf("container_ids: must not be empty: %w", errdefs.ErrInvalidArgument)
	}
	pod, err := s.Cache.Sandbox(ctx, r.GetPodSandboxId())
	if err != nil {
		return err
	}
	unlock, err := s.locks.Lock(ctx, pod.ID())
	if err != nil {
		return err
	}
	defer unlock()
	ids, err := s.containersOf(ctx, pod, r.GetContainerIds())
	if err != nil {
		return err
	}
	work, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	written, err := s.checkpoint(work, abort, pod.ID(), ids, r.GetOutputPath())
	switch {
	case err == nil:
	case ctx.Err() == nil && work.Err() != nil: // a container is being stopped: that the work was cancelled is no reason for the caller
		return fmt.Errorf("checkpoint pod %s: %w: %s", pod.ID(), context.Cause(work), err.Error())
	case ctx.Err() != nil:
		return fmt.Errorf("checkpoint pod %s: %w", pod.ID(), errors.Join(ctx.Err(), err))
	default:
		return fmt.Errorf("checkpoint pod %s: %w", pod.ID(), err)
	}
	bytes := int64(0)
	for _, c := range written.Containers {
		bytes += c.Bytes
	}
	s.Log.Info("pod checkpointed", changes.Pod(pod.ID(), pod.Row.GetMetadata()), slog.Int("containers", len(ids)), slog.String("location", r.GetOutputPath()), slog.Int64("bytes", bytes), changes.Took(start))
	return nil
}

// containersOf returns the whole IDs of containers of a pod, sorted. The error is of kind InvalidArgument if one is there twice or
// belongs to another pod.
func (s *Service) containersOf(ctx context.Context, pod *cache.Sandbox, given []string) (ids []string, err error) {
	for _, id := range given {
		c, err := s.Cache.Container(ctx, id)
		if err != nil {
			return nil, err
		}
		if c.Row.GetPodSandboxId() != pod.ID() {
			return nil, fmt.Errorf("container_ids: container %s belongs to sandbox %s, and not to %s: %w", c.ID(), c.Row.GetPodSandboxId(), pod.ID(), errdefs.ErrInvalidArgument)
		}
		if slices.Contains(ids, c.ID()) {
			return nil, fmt.Errorf("container_ids: container %s is there twice: %w", c.ID(), errdefs.ErrInvalidArgument)
		}
		ids = append(ids, c.ID())
	}
	slices.Sort(ids)
	return ids, nil
}

// checkpoint locks the containers, in the order of their IDs, and writes their checkpoint. ctx is cancelled by abort.
func (s *Service) checkpoint(ctx context.Context, abort context.CancelCauseFunc, sandbox string, ids []string, path string) (m criu.Manifest, err error) {
	var targets []criu.Container
	for _, id := range ids {
		_, target, done, err := s.Containers.BeginCheckpoint(ctx, id, abort)
		if err != nil {
			return m, err
		}
		defer done()
		targets = append(targets, target)
	}
	slices.SortFunc(targets, func(a, b criu.Container) int { return strings.Compare(a.Config.Name, b.Config.Name) })
	// A StopPodSandbox from now on aborts the checkpoint, because it kills the containers.
	pod, err := s.Cache.Sandbox(ctx, sandbox)
	if err != nil {
		return m, err
	}
	if reason := pod.NotReadyReason(); reason != "" {
		return m, fmt.Errorf("the sandbox is not ready: %s: %w", reason, errdefs.ErrFailedPrecondition)
	}
	meta := pod.Row.GetMetadata()
	return s.Checkpoints.CheckpointPod(ctx, targets, criu.Manifest{
		Berth: s.Version, RuntimeHandler: pod.Row.GetRuntimeHandler(), Pod: criu.ManifestPod{Name: meta.GetName(), Namespace: meta.GetNamespace(), UID: meta.GetUid()},
	}, path, s.Containers.Inspect)
}
