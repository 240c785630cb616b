package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/panics"
	"berth/network"
)

// An intent is the write-ahead record of a sandbox that is being created. It is stored
// before the first step and deleted after the last, so that the next call or the
// garbage collection can clean up whatever a killed daemon leaves.
type intent struct {
	Name   string        // of the pause container, without a suffix
	Suffix string        // of its name, if the name without a suffix is taken
	ID     string        // of the pause container, once it is created
	Plan   *network.Plan // of the network, once attaching begins
}

// dockerName returns the name of the pause container.
func (i *intent) dockerName() string { return withSuffix(i.Name, i.Suffix) }

func withSuffix(name, suffix string) string {
	if suffix == "" {
		return name
	}
	return name + "_" + suffix
}

// unfinishedIntent returns the intent whose creation of pod was not finished, nil if
// there is none.
func (s *Service) unfinishedIntent(pod *cache.Sandbox) (*intent, error) {
	in, ok, err := s.state.intents.Get(names.WithoutSuffix(pod.Name))
	if err != nil || !ok || in.ID != pod.ID() {
		return nil, err
	}
	return &in, nil
}

// cleanupUnfinished removes what an earlier call, or an earlier process of the daemon,
// has created under name and not finished. The caller holds the lock of name.
func (s *Service) cleanupUnfinished(ctx context.Context, docker *engine.Conn, name string) error {
	in, ok, err := s.state.intents.Get(name)
	if err != nil || !ok {
		return err
	}
	s.log.Info("removing a sandbox that was not set up completely", slog.String("name", in.Name), slog.String("sandbox", in.ID))
	return s.cleanupIntent(ctx, docker, &in)
}

// cleanupIntent removes everything that was created for in, and deletes it. It can be called
// at any step of the creation and any number of times.
func (s *Service) cleanupIntent(ctx context.Context, docker *engine.Conn, in *intent) error {
	id := in.ID
	if id == "" {
		found, err := inspect(ctx, docker, in.dockerName())
		switch {
		case errdefs.IsNotFound(err):
			return s.state.intents.Delete(in.Name)
		case err != nil:
			return fmt.Errorf("inspect sandbox %s: %w", in.Name, err)
		case !isSandbox(found):
			// Another container has the name, which may be why this creation failed.
			return s.state.intents.Delete(in.Name)
		case found.State.Running:
			// The ID is stored before the start: a running container with this
			// name was created, and finished, by an earlier call.
			return s.state.intents.Delete(in.Name)
		}
		id = found.ID
	}
	if err := s.removeContainers(ctx, id); err != nil { // see RunWith
		return err
	}
	if err := s.deleteSandbox(ctx, docker, id, in.Plan); err != nil {
		return err
	}
	return s.state.intents.Delete(in.Name)
}

// isSandbox reports whether c is the sandbox of a pod, by its name and labels.
func isSandbox(c container.InspectResponse) bool {
	recorded, err := labels.Read(c)
	return err == nil && recorded.Kind == labels.Sandbox
}

// inspect inspects a container, with the timeout of a short call although ctx may allow
// more: one call that hangs must not keep other sandboxes from being cleaned up.
func inspect(ctx context.Context, docker *engine.Conn, id string) (container.InspectResponse, error) {
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	return docker.ContainerInspect(ctx, id)
}

// mayHaveNetwork reports whether the sandbox id has something that the network plugins must release.
func (s *Service) mayHaveNetwork(id string) (bool, error) {
	bound, err := s.network.Bound()
	if err != nil || slices.Contains(bound, id) {
		return err == nil, err
	}
	attached, err := s.network.Attached() // which reads the files of all pods
	return slices.Contains(attached, id), err
}

// deleteSandbox releases the network of the sandbox id, if it has one, and removes its pause
// container, files and records. A nil plan stands for that of its checkpoint. If
// the network cannot be released, the files and records stay for the next try.
func (s *Service) deleteSandbox(ctx context.Context, docker *engine.Conn, id string, plan *network.Plan) error {
	removed := s.nri.BeginRemovePod(ctx, id)
	var detachErr, removeErr error
	group := panics.NewGroup(s.log)
	hasNetwork := plan != nil
	if !hasNetwork {
		var err error
		if hasNetwork, err = s.mayHaveNetwork(id); hasNetwork {
			plan, err = s.planFromCheckpoint(id)
		}
		if err != nil {
			return err
		}
	}
	if hasNetwork {
		group.Go(func() error { detachErr = s.detach(ctx, plan, id); return nil })
	}
	// Plugins may take as long as ctx allows. They do not need the container: the bind mount
	// of the network namespace keeps that alive.
	group.Go(func() error { removeErr = docker.ForceRemove(ctx, id); return nil })
	if err := group.Wait(); err != nil {
		return err
	}
	if detachErr != nil {
		return errors.Join(detachErr, removeErr)
	}
	if err := errors.Join(removeErr, s.removeFiles(id), s.checkpoints.Remove(id), s.state.Updates.Delete(id), s.oci.Remove(id)); err != nil {
		return err
	}
	removed(ctx)
	s.cache.Forget(id)
	s.countDetach(id, nil)
	return nil
}
