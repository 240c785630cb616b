package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"berth/core/engine"
	"berth/core/labels"
	"berth/core/panics"
	"berth/network"
)

// gcLimit is how long the plugins may take to clean up what nobody needs.
const gcLimit = 10 * time.Second

// takeDown undoes whatever an intent has led to and strikes it from the
// journal. It can be called at any point and any number of times.
func (s *Service) takeDown(ctx context.Context, docker *engine.Conn, made *intent) error {
	id := made.ID
	if id == "" {
		found, err := inspect(ctx, docker, made.called())
		switch {
		case errdefs.IsNotFound(err):
			return s.state.intents.Delete(made.Name)
		case err != nil:
			return fmt.Errorf("look for sandbox %s: %w", made.Name, err)
		case !isSandbox(found):
			// It may have been why this intent came to nothing.
			return s.state.intents.Delete(made.Name)
		case found.State.Running:
			// The ID is written down before the start: what runs is no work of
			// this intent, but of an earlier one that was finished.
			return s.state.intents.Delete(made.Name)
		}
		id = found.ID
	}
	if err := s.discard(ctx, docker, id, made.Plan); err != nil {
		return err
	}
	return s.state.intents.Delete(made.Name)
}

// isSandbox reports whether a container is the sandbox of a pod, by what it is
// called and what is recorded on it.
func isSandbox(c container.InspectResponse) bool {
	recorded, err := labels.Read(c)
	return err == nil && recorded.Kind == labels.Sandbox
}

// discard leaves nothing of the sandbox id: network, container, files.
func (s *Service) discard(ctx context.Context, docker *engine.Conn, id string, plan *network.Plan) error {
	var detachErr, removeErr error
	all := panics.NewGroup(s.log)
	if plan != nil || slices.Contains(s.network.Bound(), id) || slices.Contains(s.network.Attached(), id) {
		if plan == nil {
			plan = s.recalled(id)
		}
		all.Go(func() error { detachErr = s.detach(ctx, plan, id); return nil })
	}
	// Plugins may take all the time there is. What they work on is there without
	// the container: our own handle keeps the network namespace alive.
	all.Go(func() error { removeErr = docker.ForceRemove(ctx, id); return nil })
	if err := all.Wait(); err != nil {
		return err
	}
	if detachErr != nil {
		// What tells of the attachment stays for the next try.
		return errors.Join(detachErr, removeErr)
	}
	if err := errors.Join(removeErr, s.removeFiles(id), s.checkpoints.Remove(id), s.state.Updates.Delete(id)); err != nil {
		return err
	}
	s.cache.Forget(id)
	return nil
}

// inspect looks at a container, for no longer than such a look should take: one
// that hangs must not keep the others from being cleaned up.
func inspect(ctx context.Context, docker *engine.Conn, id string) (container.InspectResponse, error) {
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	return docker.ContainerInspect(ctx, id)
}

// recoverName undoes what an earlier call, or an earlier life of the daemon,
// has begun under the name and not finished. The turn is the caller's.
func (s *Service) recoverName(ctx context.Context, docker *engine.Conn, name string) error {
	left, ok := s.state.intents.Get(name)
	if !ok {
		return nil
	}
	s.log.Info("taking down a sandbox that was never finished", slog.String("name", left.Name), slog.String("sandbox", left.ID))
	return s.takeDown(ctx, docker, &left)
}

// RunGC cleans up after every connection to the Engine, after every call that
// could not do so itself, and now and then: it undoes what was begun and not
// finished, and lets go of what belongs to sandboxes that are no more. It returns
// when ctx ends.
func (s *Service) RunGC(ctx context.Context) error {
	return s.cache.ReconcileLoop(ctx, "leftovers of sandboxes", s.left, s.clean)
}

// wakeIfLeft has KeepClean do its work if what was begun under the name is not
// finished.
func (s *Service) wakeIfLeft(name string) {
	if _, left := s.state.intents.Get(name); !left {
		return
	}
	select {
	case s.left <- struct{}{}:
	default: // it is to do so already
	}
}

// clean does one round of cleaning up.
func (s *Service) clean(ctx context.Context, docker *engine.Conn) error {
	names, err := s.state.intents.Names()
	if err != nil {
		return err
	}
	errs := s.forEach(names, func(key string) error { return s.cleanIntent(ctx, docker, key) })
	errs = append(errs, s.cleanOrphans(ctx, docker))
	if !s.bridge { // then the plugins that there are work for others
		errs = append(errs, s.collect(ctx))
	}
	return errors.Join(errs...)
}

// cleanersAtOnce bounds how many sandboxes are cleaned up at a time. More than one, for a
// network plugin may need minutes for each.
const cleanersAtOnce = 8

// forEach calls clean for each of names, some at a time, and returns their errors.
func (s *Service) forEach(names []string, clean func(name string) error) []error {
	errs := make([]error, len(names))
	g := panics.NewGroup(s.log)
	g.SetLimit(cleanersAtOnce)
	for i, name := range names {
		g.Go(func() error { errs[i] = clean(name); return nil })
	}
	return append(errs, g.Wait())
}

// cleanIntent takes down what one intent has led to, unless a call is at work
// on it, which does so itself.
func (s *Service) cleanIntent(ctx context.Context, docker *engine.Conn, key string) error {
	left, ok := s.state.intents.Get(key)
	if !ok || left.Name == "" {
		return s.deleteTornIntent(key)
	}
	done, ok := s.turns.TryLock(left.Name)
	if !ok {
		return nil
	}
	defer done()
	return s.recoverName(ctx, docker, left.Name)
}

// deleteTornIntent deletes an intent that cannot be read: one torn by a power loss,
// which no pod survives. The key is the name of the pod, unless it was too long
// for a file's name; no call may be at work on it.
func (s *Service) deleteTornIntent(key string) error {
	done, ok := s.turns.TryLock(key)
	if !ok {
		return nil
	}
	defer done()
	if left, ok := s.state.intents.Get(key); ok && left.Name != "" {
		return nil // written since
	}
	return s.state.intents.Delete(key)
}

// cleanOrphans lets go of network namespaces and files of sandboxes whose
// containers are no more.
func (s *Service) cleanOrphans(ctx context.Context, docker *engine.Conn) error {
	orphans, err := s.checkpoints.IDs()
	if err != nil {
		return err
	}
	updated, err := s.state.Updates.Names()
	if err != nil {
		return err
	}
	orphans = append(append(orphans, updated...), s.network.Bound()...)
	entries, err := os.ReadDir(filepath.Join(s.runDir, "pods"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		orphans = append(orphans, e.Name())
	}
	slices.Sort(orphans)
	return errors.Join(s.forEach(slices.Compact(orphans), func(id string) error { return s.cleanOrphan(ctx, docker, id) })...)
}

// cleanOrphan discards what is left of the sandbox id if its container is no more.
func (s *Service) cleanOrphan(ctx context.Context, docker *engine.Conn, id string) error {
	switch _, err := s.cache.Sandbox(ctx, id); {
	case err == nil:
		return nil // even if it is gone behind our back; the kubelet will have it stopped
	case !errdefs.IsNotFound(err):
		return err // the view is not there yet
	}
	// The view may not have seen what is being made just now.
	switch _, err := inspect(ctx, docker, id); {
	case err == nil:
		return nil
	case !errdefs.IsNotFound(err):
		return fmt.Errorf("inspect %s: %w", id, err)
	}
	s.log.Info("removing what is left of a sandbox whose container is gone", slog.String("sandbox", id))
	return s.discard(ctx, docker, id, nil)
}

// collect has the plugins clean up what no pod needs.
func (s *Service) collect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, gcLimit)
	defer cancel()
	keep, err := s.cache.SandboxIDs(ctx)
	if err != nil {
		return err
	}
	if err := s.network.GC(ctx, keep); err != nil {
		// What it could not clean does no harm but to the plugins' own tables.
		s.log.Warn("the network plugins could not clean up", slog.Any("err", err))
	}
	return nil
}
