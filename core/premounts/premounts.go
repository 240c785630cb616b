// Package premounts keeps the premounts of containers (core/premount): from before a container is created until it has started, with helper
// containers that keep the images of image volumes from being removed.
package premounts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/names"
	"berth/core/premount"
	"berth/core/todocker"
)

// A Manager creates and removes the premounts of containers. Use New.
type Manager struct {
	*premount.Dir
	cache *cache.Cache
	log   *slog.Logger

	mu       sync.Mutex              // guards following
	creating map[names.Premount]bool // premounts whose container is being created
}

// New returns a Manager of the premounts in dir.
func New(dir *premount.Dir, objects *cache.Cache, log *slog.Logger) *Manager {
	return &Manager{Dir: dir, cache: objects, log: log, creating: map[names.Premount]bool{}}
}

// Protect keeps GC from removing premounts before the cache knows their container. done ends
// the protection.
func (m *Manager) Protect(name names.Premount) (done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.creating[name] = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.creating, name)
	}
}

// CreateFor creates the mounts that the Engine API cannot express. If they are made of the files of
// images, a helper container per image keeps the image from being removed.
func (m *Manager) CreateFor(ctx context.Context, docker *engine.Conn, params todocker.ContainerParams, mounts []premount.Mount) error {
	pinned := map[string]bool{}
	for _, mount := range params.Config.GetMounts() {
		volume, ok := params.Volumes[mount.GetImage().GetImage()]
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
	err := m.Create(params.PremountName, mounts)
	if errors.Is(err, premount.ErrImageLayers) {
		return fmt.Errorf("ImageVolumeMountFailed: %w", err)
	}
	return err
}

// RemoveAll removes the premounts called name, and the helper containers that pin their images.
func (m *Manager) RemoveAll(ctx context.Context, docker *engine.Conn, name names.Premount) error {
	if name.IsZero() {
		return nil
	}
	helpers, err := docker.Helpers(ctx, engine.PinHelper)
	if err != nil {
		return fmt.Errorf("list containers that pin images: %w", err)
	}
	return m.removeWithHelpers(ctx, docker, name, helpers)
}

// removeWithHelpers is RemoveAll with the helper containers known, as a map from their IDs to the
// names of the premounts.
func (m *Manager) removeWithHelpers(ctx context.Context, docker *engine.Conn, name names.Premount, helpers map[string]string) error {
	var errs []error
	for id, pinnedFor := range helpers {
		if pinnedFor == name.String() {
			errs = append(errs, docker.ForceRemove(ctx, id))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return m.Remove(name)
}

// GC removes the premounts of containers that have been started or do not exist. A started container
// has mounts of its own, but still needs its images.
func (m *Manager) GC(ctx context.Context, docker *engine.Conn) error {
	found, err := m.Names()
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
			m.log.Warn("helper container ignored: it pins an image for no premounts", slog.String("container", id), slog.Any("err", err))
			continue
		}
		candidates[name] = true
	}
	// The order matters. Read after the candidates, creating has each of them whose container is not in the cache
	// yet; read before the cache, it misses none that leaves creating because its container is in the cache now.
	m.mu.Lock()
	creating := maps.Clone(m.creating)
	m.mu.Unlock()
	containers, err := m.cache.Containers(ctx, &runtimeapi.ContainerFilter{})
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
			err = errors.Join(err, m.Remove(name))
		default:
			m.log.Info("removing premounts of a container that does not exist", slog.String("premount", name.String()))
			err = errors.Join(err, m.removeWithHelpers(ctx, docker, name, helpers))
		}
	}
	return err
}
