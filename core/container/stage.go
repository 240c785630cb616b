package container

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/labels"
	"berth/core/mounts"
	"berth/core/todocker"
)

// stageName returns a name for staged mounts that nobody has. It is made before
// the container, whose ID is not known then.
func stageName() string { return rand.Text()[:16] }

// beginStaging keeps the staged mounts called name from being tidied away before
// the view knows their container; done is to be called then.
func (s *Service) beginStaging(name string) (done func()) {
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
func (s *Service) stage(ctx context.Context, docker *engine.Conn, ask todocker.ContainerAsk, trees []mounts.Tree) error {
	held := map[string]bool{}
	for _, m := range ask.Config.GetMounts() {
		volume, ok := ask.Volumes[m.GetImage().GetImage()]
		if !ok || held[volume.ID] || ask.Can.ImageMounts {
			continue
		}
		if err := s.hold(ctx, docker, volume.ID, ask.Stage); err != nil {
			return fmt.Errorf("ImageVolumeMountFailed: hold image %s: %w", volume.ID, err)
		}
		held[volume.ID] = true
	}
	err := s.stages.Put(ask.Stage, trees)
	if errors.Is(err, mounts.ErrLayers) {
		return fmt.Errorf("ImageVolumeMountFailed: %w", err)
	}
	return err
}

// hold makes a container that never runs, of an image that must stay for the sake
// of a stage.
func (s *Service) hold(ctx context.Context, docker *engine.Conn, image, stage string) error {
	short, cancel := docker.Short(ctx)
	defer cancel()
	_, err := docker.ContainerCreate(short, &container.Config{
		Image: image, Entrypoint: []string{"/"}, NetworkDisabled: true, Labels: map[string]string{labels.HoldKey: stage},
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}, &container.HostConfig{NetworkMode: "none", LogConfig: container.LogConfig{Type: "none"}}, nil, nil, "")
	return err
}

// unstage takes down the staged mounts called name, and what holds their images.
func (s *Service) unstage(ctx context.Context, docker *engine.Conn, name string) error {
	if name == "" {
		return nil
	}
	held, err := s.holds(ctx, docker)
	if err != nil {
		return err
	}
	for id, stage := range held {
		if stage == name {
			err = errors.Join(err, docker.Discard(ctx, id))
		}
	}
	if err != nil {
		return err
	}
	return s.stages.Drop(name)
}

// holds returns the containers that hold images, and for which stage.
func (s *Service) holds(ctx context.Context, docker *engine.Conn) (map[string]string, error) {
	short, cancel := docker.Short(ctx)
	defer cancel()
	list, err := docker.ContainerList(short, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", labels.HoldKey))})
	if err != nil {
		return nil, fmt.Errorf("containers that hold images: %w", err)
	}
	found := map[string]string{}
	for _, c := range list {
		found[c.ID] = c.Labels[labels.HoldKey]
	}
	return found, nil
}

// tidyStages takes down what was staged for containers that have been started
// or are no more.
func (s *Service) tidyStages(ctx context.Context, docker *engine.Conn) error {
	names, err := s.stages.Names()
	if err != nil {
		return err
	}
	held, err := s.holds(ctx, docker)
	if err != nil {
		return err
	}
	for _, stage := range held {
		names = append(names, stage)
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
	states := map[string]runtimeapi.ContainerState{}
	for _, c := range all {
		states[c.Stage] = c.Row.GetState()
	}
	for _, name := range names {
		state, known := states[name]
		switch {
		case making[name], known && state == runtimeapi.ContainerState_CONTAINER_CREATED:
		case known:
			err = errors.Join(err, s.stages.Drop(name)) // its image stays
		default:
			s.log.Info("taking down staged mounts of a container that is no more", slog.String("stage", name))
			err = errors.Join(err, s.unstage(ctx, docker, name))
		}
	}
	return err
}
