package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/docker/docker/api/types/mount"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/names"
	"berth/core/premount"
	"berth/core/todocker"
)

// beginStaging keeps the staged mounts called name from being tidied away before
// the view knows their container; done is to be called then.
func (s *Service) beginStaging(name names.Premount) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.staging[name] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.staging, name)
	}
}

// stage makes the mounts that the Engine cannot be asked for, and sees to it that
// images stay whose files they are.
func (s *Service) stage(ctx context.Context, docker *engine.Conn, ask todocker.ContainerParams, trees []premount.Mount) error {
	held := map[string]bool{}
	for _, m := range ask.Config.GetMounts() {
		volume, ok := ask.Volumes[m.GetImage().GetImage()]
		if !ok || held[volume.ID] || ask.Can.ImageMounts {
			continue
		}
		short, cancel := docker.WithRequestTimeout(ctx)
		_, err := docker.CreateHelper(short, volume.ID, engine.HoldHelper, ask.Stage.String())
		cancel()
		if err != nil {
			return fmt.Errorf("ImageVolumeMountFailed: hold image %s: %w", volume.ID, err)
		}
		held[volume.ID] = true
	}
	err := s.stages.Create(ask.Stage, trees)
	if errors.Is(err, premount.ErrLayers) {
		return fmt.Errorf("ImageVolumeMountFailed: %w", err)
	}
	return err
}

// findSubPaths fails if an image that the Engine itself mounts does not have the sub-path
// that is asked for. The Engine looks for it when it starts a container, and when it is
// asked for a file of one, but not when it creates it (28.5).
func findSubPaths(ctx context.Context, docker *engine.Conn, id string, list []mount.Mount) error {
	if !slices.ContainsFunc(list, func(m mount.Mount) bool { return m.ImageOptions != nil && m.ImageOptions.Subpath != "" }) {
		return nil
	}
	const file = "/" // for whatever it is, all mounts are set up
	short, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	_, err := docker.ContainerStatPath(short, id, file)
	if err == nil {
		return nil
	}
	// That answer has no text; one to who wants the file itself has.
	content, _, told := docker.CopyFromContainer(short, id, file)
	if told == nil {
		return errors.Join(err, content.Close())
	}
	return fmt.Errorf("ImageVolumeMountFailed: image_sub_path: %w", plain{told})
}

// unstage takes down the staged mounts called name, and what holds their images.
func (s *Service) unstage(ctx context.Context, docker *engine.Conn, name names.Premount) error {
	if name.None() {
		return nil
	}
	held, err := docker.Helpers(ctx, engine.HoldHelper)
	if err != nil {
		return fmt.Errorf("containers that hold images: %w", err)
	}
	return s.release(ctx, docker, name, held)
}

// release is unstage where it is known already what holds images, and for which
// stage.
func (s *Service) release(ctx context.Context, docker *engine.Conn, name names.Premount, held map[string]string) error {
	var errs []error
	for id, stage := range held {
		if stage == name.String() {
			errs = append(errs, docker.ForceRemove(ctx, id))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.stages.Remove(name)
}

// tidyStages takes down what was staged for containers that have been started
// or are no more.
func (s *Service) tidyStages(ctx context.Context, docker *engine.Conn) error {
	staged, err := s.stages.Names()
	if err != nil {
		return err
	}
	used := map[names.Premount]bool{}
	for _, name := range staged {
		used[name] = true
	}
	held, err := docker.Helpers(ctx, engine.HoldHelper)
	if err != nil {
		return fmt.Errorf("containers that hold images: %w", err)
	}
	for id, stage := range held {
		name, err := names.ParseStage(stage)
		if err != nil || name.None() {
			s.log.Warn("helper container ignored: it holds an image for no staged mounts", slog.String("container", id), slog.Any("err", err))
			continue
		}
		used[name] = true
	}
	// After the names, so that each is being made or its container is in the view
	// by now; before the view, so that none is in neither.
	s.mu.Lock()
	making := maps.Clone(s.staging)
	s.mu.Unlock()
	all, err := s.view.Containers(ctx, &runtimeapi.ContainerFilter{})
	if err != nil {
		return err
	}
	states := map[names.Premount]runtimeapi.ContainerState{}
	for _, c := range all {
		states[c.Stage] = c.Row.GetState()
	}
	for name := range used {
		state, known := states[name]
		switch {
		case making[name], known && state == runtimeapi.ContainerState_CONTAINER_CREATED:
		case known:
			err = errors.Join(err, s.stages.Remove(name)) // its image stays
		default:
			s.log.Info("taking down staged mounts of a container that is no more", slog.String("stage", name.String()))
			err = errors.Join(err, s.release(ctx, docker, name, held))
		}
	}
	return err
}
