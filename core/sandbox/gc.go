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

	"berth/core/engine"
	"berth/core/panics"
)

const (
	// networkGCTimeout bounds the GC of all network plugins in one pass.
	networkGCTimeout = 10 * time.Second
	// gcParallelism is how many sandboxes are cleaned up at a time. More than one,
	// because a network plugin may need minutes for each.
	gcParallelism = 8
)

// RunGC removes what unfinished calls and missing sandboxes have left. A pass runs after
// each connection to the Engine, after each call that could not clean up after itself, and
// at the interval of cache.ReconcileLoop. RunGC returns when ctx ends.
func (s *Service) RunGC(ctx context.Context) error {
	g, ctx := panics.NewGroupWithContext(ctx, s.log)
	g.Go(func() error { return s.pending.Run(ctx) })
	g.Go(func() error {
		return s.cache.ReconcileLoop(ctx, "garbage collection of sandboxes", s.gcTrigger, s.gcOnce)
	})
	return g.Wait()
}

// triggerGCIfUnfinished makes RunGC start a pass if there is an intent with that name.
func (s *Service) triggerGCIfUnfinished(name string) {
	if _, unfinished, err := s.state.intents.Get(name); err == nil && !unfinished {
		return
	}
	select {
	case s.gcTrigger <- struct{}{}:
	default: // a pass is pending
	}
}

// gcOnce is one pass of the garbage collection.
func (s *Service) gcOnce(ctx context.Context, docker *engine.Conn) error {
	names, err := s.state.intents.Keys()
	if err != nil {
		return err
	}
	errs := s.forEach(names, func(key string) error { return s.gcIntent(ctx, docker, key) })
	errs = append(errs, s.gcOrphans(ctx, docker))
	if !s.bridge { // with Docker's bridge the plugins on the node are not berth's to call
		errs = append(errs, s.gcNetwork(ctx))
	}
	return errors.Join(errs...)
}

// forEach calls f for each of items, some at a time, and returns their errors.
func (s *Service) forEach(items []string, f func(item string) error) []error {
	errs := make([]error, len(items))
	group := panics.NewGroup(s.log)
	group.SetLimit(gcParallelism)
	for i, item := range items {
		group.Go(func() error { errs[i] = f(item); return nil })
	}
	return append(errs, group.Wait())
}

// gcIntent cleans up one intent, unless a call holds its lock and does so itself.
func (s *Service) gcIntent(ctx context.Context, docker *engine.Conn, key string) error {
	in, ok, err := s.state.intents.Get(key)
	if err != nil {
		return err
	}
	if !ok || in.Name == "" {
		return s.gcTornIntent(key)
	}
	unlock, ok := s.locks.TryLock(in.Name)
	if !ok {
		return nil
	}
	defer unlock()
	return s.cleanupUnfinished(ctx, docker, in.Name)
}

// gcTornIntent deletes an intent that cannot be read, which only a power loss leaves, and no
// pod survives that. The key is the Docker name, unless that was too long for a file name;
// if a call holds its lock, the intent stays.
func (s *Service) gcTornIntent(key string) error {
	unlock, ok := s.locks.TryLock(key)
	if !ok {
		return nil
	}
	defer unlock()
	if in, ok, err := s.state.intents.Get(key); err != nil || ok && in.Name != "" {
		return err // or a call has stored it since
	}
	return s.state.intents.Delete(key)
}

// gcOrphans cleans up the checkpoints, updates, network namespaces and files of
// sandboxes that do not exist any more.
func (s *Service) gcOrphans(ctx context.Context, docker *engine.Conn) error {
	ids, err := s.checkpoints.IDs()
	if err != nil {
		return err
	}
	updated, err := s.state.Updates.Keys()
	if err != nil {
		return err
	}
	bound, err := s.network.Bound()
	if err != nil {
		return err
	}
	ids = slices.Concat(ids, updated, bound)
	entries, err := os.ReadDir(filepath.Join(s.runDir, "pods"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	slices.Sort(ids)
	return errors.Join(s.forEach(slices.Compact(ids), func(id string) error { return s.gcOrphan(ctx, docker, id) })...)
}

// gcOrphan cleans up the sandbox id if its container does not exist any more.
func (s *Service) gcOrphan(ctx context.Context, docker *engine.Conn, id string) error {
	switch _, err := s.cache.Sandbox(ctx, id); {
	case err == nil:
		return nil // also if it was removed behind berth's back: then the kubelet stops and removes it
	case !errdefs.IsNotFound(err):
		return err // the cache is not in sync yet
	}
	// The cache may not have a sandbox that is being created.
	switch _, err := inspect(ctx, docker, id); {
	case err == nil:
		return nil
	case !errdefs.IsNotFound(err):
		return fmt.Errorf("inspect %s: %w", id, err)
	}
	s.log.Info("removing what is left of a sandbox whose container does not exist", slog.String("sandbox", id))
	return s.deleteSandbox(ctx, docker, id, nil)
}

// gcNetwork makes the network plugins release what no sandbox uses.
func (s *Service) gcNetwork(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, networkGCTimeout)
	defer cancel()
	keep, err := s.cache.SandboxIDs(ctx)
	if err != nil {
		return err
	}
	if err := s.network.GC(ctx, keep); err != nil {
		// Not returned: what stays only takes space in the plugins' own tables.
		s.log.Warn("garbage collection of the network plugins failed", slog.Any("err", err))
	}
	return nil
}
