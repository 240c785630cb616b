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

// protectPremounts keeps gcPremounts from removing premounts before the cache knows their container. done ends
// the protection.
func (s *Service) protectPremounts(name names.Premount) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.creating[name] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.creating, name)
	}
}

// createPremounts creates the mounts that the Engine API cannot express. If they are made of the files of
// images, a helper container per image keeps the image from being removed.
func (s *Service) createPremounts(ctx context.Context, docker *engine.Conn, params todocker.ContainerParams, mounts []premount.Mount) error {
	pinned := map[string]bool{}
	for _, m := range params.Config.GetMounts() {
		volume, ok := params.Volumes[m.GetImage().GetImage()]
		if !ok || pinned[volume.ID] || params.Features.ImageMounts {
			continue
		}
		short, cancel := docker.WithRequestTimeout(ctx)
		_, err := docker.CreateHelper(short, volume.ID, engine.PinHelper, params.PremountName.String())
		cancel()
		if err != nil {
			return fmt.Errorf("ImageVolumeMountFailed: pin image %s: %w", volume.ID, err)
		}
		pinned[volume.ID] = true
	}
	err := s.premounts.Create(params.PremountName, mounts)
	if errors.Is(err, premount.ErrImageLayers) {
		return fmt.Errorf("ImageVolumeMountFailed: %w", err)
	}
	return err
}

// checkImageSubPaths fails if an image that Docker itself mounts does not have the sub-path that a mount asks
// for. Docker 28.5 resolves sub-paths when it starts a container, and when it is asked for a file of one, but not
// when it creates it.
func checkImageSubPaths(ctx context.Context, docker *engine.Conn, id string, mounts []mount.Mount) error {
	if !slices.ContainsFunc(mounts, func(m mount.Mount) bool { return m.ImageOptions != nil && m.ImageOptions.Subpath != "" }) {
		return nil
	}
	const file = "/" // any file: Docker sets up all mounts to find it
	short, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	_, err := docker.ContainerStatPath(short, id, file)
	if err == nil {
		return nil
	}
	// The response to HEAD has no body with the reason. The one to GET has.
	content, _, reason := docker.CopyFromContainer(short, id, file)
	if reason == nil {
		return errors.Join(err, content.Close())
	}
	return fmt.Errorf("ImageVolumeMountFailed: image_sub_path: %w", daemonError{reason})
}

// removePremounts removes the premounts called name, and the helper containers that pin their images.
func (s *Service) removePremounts(ctx context.Context, docker *engine.Conn, name names.Premount) error {
	if name.IsZero() {
		return nil
	}
	helpers, err := docker.Helpers(ctx, engine.PinHelper)
	if err != nil {
		return fmt.Errorf("list containers that pin images: %w", err)
	}
	return s.removePremountsAndHelpers(ctx, docker, name, helpers)
}

// removePremountsAndHelpers is removePremounts with the helper containers known, as a map from their IDs to the
// names of the premounts.
func (s *Service) removePremountsAndHelpers(ctx context.Context, docker *engine.Conn, name names.Premount, helpers map[string]string) error {
	var errs []error
	for id, pinnedFor := range helpers {
		if pinnedFor == name.String() {
			errs = append(errs, docker.ForceRemove(ctx, id))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.premounts.Remove(name)
}

// gcPremounts removes the premounts of containers that have been started or do not exist. A started container
// has mounts of its own, but still needs its images.
func (s *Service) gcPremounts(ctx context.Context, docker *engine.Conn) error {
	found, err := s.premounts.Names()
	if err != nil {
		return err
	}
	candidates := map[names.Premount]bool{}
	for _, name := range found {
		candidates[name] = true
	}
	helpers, err := docker.Helpers(ctx, engine.PinHelper)
	if err != nil {
		return fmt.Errorf("list containers that pin images: %w", err)
	}
	for id, pinnedFor := range helpers {
		name, err := names.ParsePremount(pinnedFor)
		if err != nil || name.IsZero() {
			s.log.Warn("helper container ignored: it pins an image for no premounts", slog.String("container", id), slog.Any("err", err))
			continue
		}
		candidates[name] = true
	}
	// The order matters. Read after the candidates, creating has each of them whose container is not in the cache
	// yet; read before the cache, it misses none that leaves creating because its container is in the cache now.
	s.mu.Lock()
	creating := maps.Clone(s.creating)
	s.mu.Unlock()
	containers, err := s.cache.Containers(ctx, &runtimeapi.ContainerFilter{})
	if err != nil {
		return err
	}
	states := map[names.Premount]runtimeapi.ContainerState{}
	for _, c := range containers {
		states[c.Premount] = c.Row.GetState()
	}
	for name := range candidates {
		state, known := states[name]
		switch {
		case creating[name], known && state == runtimeapi.ContainerState_CONTAINER_CREATED:
		case known:
			err = errors.Join(err, s.premounts.Remove(name))
		default:
			s.log.Info("removing premounts of a container that does not exist", slog.String("premount", name.String()))
			err = errors.Join(err, s.removePremountsAndHelpers(ctx, docker, name, helpers))
		}
	}
	return err
}
