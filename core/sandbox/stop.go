package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/names"
	"berth/core/panics"
	"berth/network"
)

const (
	// stopLimit is how long stopping or removing one pod may take once its
	// caller has hung up.
	stopLimit = 4 * time.Minute
	// killLimit is how long ending the pause process may take.
	killLimit = time.Minute
	// detachTries is how often, and detachPatience for how long, the network of a
	// pod is asked to be taken back before the pod is let go without: a broken
	// plugin must not keep a node from ever finishing. One that asks an agent in
	// a pod fails until that pod is up again.
	detachTries    = 10
	detachPatience = 15 * time.Minute
)

// Stop kills what runs in the sandbox, takes its network back and ends its
// pause process. It may be called any number of times; a sandbox that is not
// there is no error.
func (s *Service) Stop(ctx context.Context, id string) error {
	return s.inTurn(ctx, id, s.stop)
}

// Remove removes the sandbox and every container in it, stopping it first if
// need be. A sandbox that is not there is no error.
func (s *Service) Remove(ctx context.Context, id string) error {
	return s.inTurn(ctx, id, s.remove)
}

// inTurn takes the turn of the sandbox id and does its part, to the end even
// if the caller hangs up. Where there is no such sandbox nothing is to be done.
func (s *Service) inTurn(ctx context.Context, id string, do func(context.Context, *engine.Conn, *cache.Sandbox) error) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	pod, err := s.cache.Sandbox(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	done, err := s.turns.Lock(ctx, names.Plain(pod.Name))
	if err != nil {
		return err
	}
	defer done()
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	return do(work, docker, pod)
}

// stop does what Stop says; the turn is the caller's.
func (s *Service) stop(ctx context.Context, docker *engine.Conn, pod *cache.Sandbox) error {
	running, err := s.cache.ContainersOf(ctx, pod.ID())
	if err != nil {
		return err
	}
	all := panics.NewGroup(s.log)
	for _, c := range running {
		if c.Running {
			all.Go(func() error { return s.containers.Kill(ctx, c.ID()) })
		}
	}
	if err := all.Wait(); err != nil {
		return fmt.Errorf("containers of sandbox %s: %w", pod.ID(), err)
	}
	// Our own handle keeps the network namespace alive, so that the plugins
	// can do their work while the pause process goes. cri-dockerd leaves none.
	if !pod.HostNetwork && !pod.Bridged && pod.Running && !slices.Contains(s.network.Bound(), pod.ID()) {
		if _, err := s.network.Bind(pod.ID(), pod.Pid); err != nil {
			s.log.Warn("no handle on the network namespace of a pod", slog.String("sandbox", pod.ID()), slog.Any("err", err))
		}
	}
	all = panics.NewGroup(s.log)
	if !pod.HostNetwork && !pod.Bridged {
		all.Go(func() error { return s.detach(ctx, s.plan(pod), pod.ID()) })
	}
	if pod.Running {
		all.Go(func() error {
			// A Docker that does not answer must not keep the pod locked for all of
			// stopLimit, which is for network plugins.
			limited, cancel := context.WithTimeout(ctx, killLimit)
			defer cancel()
			return docker.Kill(limited, pod.ID())
		})
	}
	err = all.Wait()
	if !pod.Running {
		return err // as the kubelet was told before: it stops, and then removes
	}
	if _, lookErr := s.cache.Refresh(ctx, pod.ID()); lookErr != nil && !errdefs.IsNotFound(lookErr) {
		err = errors.Join(err, lookErr)
	}
	return err
}

// detach takes the network of a pod back, and lets the pod go without once it has
// failed so often, and for so long, that another failure would be no news.
func (s *Service) detach(ctx context.Context, plan *network.Plan, id string) error {
	err := s.network.Detach(ctx, plan, id)
	f := s.countDetach(id, err)
	if err == nil {
		return nil
	}
	if f.tries < detachTries || time.Since(f.since) < s.patience {
		return fmt.Errorf("network of sandbox %s: %w", id, err)
	}
	s.log.Error("network of a pod given up after many failed attempts to release it; its addresses may leak",
		slog.String("sandbox", id), slog.Int("tries", f.tries), slog.Any("err", err))
	return s.network.Forget(ctx, id)
}

// countDetach counts failures in a row to release the network of the sandbox id;
// without an error the count begins anew.
func (s *Service) countDetach(id string, err error) failing {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.detaches, id)
		return failing{}
	}
	f := s.detaches[id]
	if f.tries++; f.tries == 1 {
		f.since = time.Now()
	}
	s.detaches[id] = f
	return f
}

// remove does what Remove says; the turn is the caller's.
func (s *Service) remove(ctx context.Context, docker *engine.Conn, pod *cache.Sandbox) error {
	if err := s.stop(ctx, docker, pod); err != nil {
		return err
	}
	if err := s.removeContainers(ctx, pod.ID()); err != nil {
		return err
	}
	if err := docker.ForceRemove(ctx, pod.ID()); err != nil {
		return err
	}
	if s.unfinished(pod) != nil {
		if err := s.state.intents.Delete(names.Plain(pod.Name)); err != nil {
			return err
		}
	}
	if err := errors.Join(s.removeFiles(pod.ID()), s.checkpoints.Remove(pod.ID()), s.state.Updates.Delete(pod.ID())); err != nil {
		return err
	}
	s.cache.Forget(pod.ID())
	s.countDetach(pod.ID(), nil)
	// One that was being created meanwhile: its CreateContainer finds no sandbox any
	// more, or has been seen by now.
	return s.removeContainers(ctx, pod.ID())
}

// removeContainers removes all containers of a sandbox.
func (s *Service) removeContainers(ctx context.Context, sandbox string) error {
	inside, err := s.cache.ContainersOf(ctx, sandbox)
	if err != nil {
		return err
	}
	all := panics.NewGroup(s.log)
	for _, c := range inside {
		all.Go(func() error { return s.containers.Remove(ctx, c.ID()) })
	}
	if err := all.Wait(); err != nil {
		return fmt.Errorf("containers of sandbox %s: %w", sandbox, err)
	}
	return nil
}
