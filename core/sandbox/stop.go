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
	"berth/core/changes"
	"berth/core/engine"
	"berth/core/names"
	"berth/core/panics"
)

const (
	// stopTimeout bounds stopping or removing one pod, also after the client has cancelled
	// its call. Network plugins may need minutes.
	stopTimeout = 4 * time.Minute
	// killTimeout bounds killing the pause process.
	killTimeout = time.Minute
)

// Stop kills the containers of the sandbox, releases its network and kills its pause
// process. It can be called any number of times; a sandbox that does not exist is no
// error.
func (s *Service) Stop(ctx context.Context, id string) error {
	return s.withLock(ctx, id, s.stop)
}

// Remove removes the sandbox and all its containers, and stops them first if
// necessary. A sandbox that does not exist is no error.
func (s *Service) Remove(ctx context.Context, id string) error {
	return s.withLock(ctx, id, s.remove)
}

// withLock calls do with the sandbox id while it holds the lock of that pod. Once it has the
// lock, the cancellation of ctx is ignored. Without such a sandbox it does nothing.
func (s *Service) withLock(ctx context.Context, id string, do func(context.Context, *engine.Conn, *cache.Sandbox) error) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	pod, unlock, err := s.lock(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return do(work, docker, pod)
}

// lock returns the sandbox id as it is once it has locked its pod.
func (s *Service) lock(ctx context.Context, id string) (pod *cache.Sandbox, unlock func(), err error) {
	if pod, err = s.cache.Sandbox(ctx, id); err != nil {
		return nil, nil, err
	}
	if unlock, err = s.locks.Lock(ctx, names.WithoutSuffix(pod.Name)); err != nil {
		return nil, nil, err
	}
	// Another call may have stopped or removed it meanwhile.
	if pod, err = s.cache.Sandbox(ctx, pod.ID()); err != nil {
		unlock()
		return nil, nil, err
	}
	return pod, unlock, nil
}

// stop implements Stop. The caller holds the lock of the pod.
func (s *Service) stop(ctx context.Context, docker *engine.Conn, pod *cache.Sandbox) error {
	start := time.Now()
	// A pod whose pause process has ended by itself is stopped once its network is released.
	changed := pod.Running
	if !changed {
		attached, err := s.network.Attached()
		if err != nil {
			return err
		}
		changed = slices.Contains(attached, pod.ID())
	}
	containers, err := s.cache.ContainersOf(ctx, pod.ID())
	if err != nil {
		return err
	}
	group := panics.NewGroup(s.log)
	for _, c := range containers {
		if c.Running {
			group.Go(func() error { return s.containers.Kill(ctx, c.ID()) })
		}
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("containers of sandbox %s: %w", pod.ID(), err)
	}
	hasNetwork := !pod.HostNetwork && !pod.Bridged
	// A bind mount keeps the network namespace alive, so that the plugins can work
	// while the pause process exits. Pods of cri-dockerd have none.
	if hasNetwork && pod.Running {
		if err := s.bindIfMissing(pod); err != nil {
			s.log.Warn("network namespace of a pod cannot be bound; plugins may fail to release its network", slog.String("sandbox", pod.ID()), slog.Any("err", err))
		}
	}
	if changed {
		s.nri.StopPodSandbox(ctx, pod)
	}
	group = panics.NewGroup(s.log)
	if hasNetwork {
		group.Go(func() error {
			plan, err := s.networkPlan(pod)
			if err != nil {
				return err
			}
			return s.detach(ctx, plan, pod.ID())
		})
	}
	if pod.Running {
		group.Go(func() error {
			// stopTimeout is for network plugins. A Docker that does not respond must
			// not keep the pod locked that long.
			ctx, cancel := context.WithTimeout(ctx, killTimeout)
			defer cancel()
			return docker.Kill(ctx, pod.ID())
		})
	}
	err = group.Wait()
	if pod.Running { // else the cache says NOTREADY already: nothing to refresh
		if _, refreshErr := s.cache.Refresh(ctx, pod.ID()); refreshErr != nil && !errdefs.IsNotFound(refreshErr) {
			err = errors.Join(err, refreshErr)
		}
	}
	if err == nil && changed {
		s.log.Info("pod stopped", changes.Pod(pod.ID(), pod.Row.GetMetadata()), changes.Took(start))
	}
	return err
}

// bindIfMissing binds the network namespace of a pod that has no bind mount of it.
func (s *Service) bindIfMissing(pod *cache.Sandbox) error {
	bound, err := s.network.Bound()
	if err != nil || slices.Contains(bound, pod.ID()) {
		return err
	}
	_, err = s.network.Bind(pod.ID(), pod.Pid)
	return err
}

// remove implements Remove. The caller holds the lock of the pod.
func (s *Service) remove(ctx context.Context, docker *engine.Conn, pod *cache.Sandbox) error {
	start := time.Now()
	if err := s.stop(ctx, docker, pod); err != nil {
		return err
	}
	if err := s.removeContainers(ctx, pod.ID()); err != nil {
		return err
	}
	if err := s.deleteSandbox(ctx, docker, pod.ID(), nil); err != nil {
		return err
	}
	in, err := s.unfinishedIntent(pod)
	if err != nil {
		return err
	}
	if in != nil {
		if err := s.state.intents.Delete(names.WithoutSuffix(pod.Name)); err != nil {
			return err
		}
	}
	s.log.Info("pod removed", changes.Pod(pod.ID(), pod.Row.GetMetadata()), changes.Took(start))
	// Again, for a container that was being created meanwhile: either the cache has it by
	// now, or its CreateContainer fails because the sandbox does not exist.
	return s.removeContainers(ctx, pod.ID())
}

// removeContainers removes all containers of a sandbox.
func (s *Service) removeContainers(ctx context.Context, sandbox string) error {
	containers, err := s.cache.ContainersOf(ctx, sandbox)
	if err != nil {
		return err
	}
	group := panics.NewGroup(s.log)
	for _, c := range containers {
		group.Go(func() error { return s.containers.Remove(ctx, c.ID()) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("containers of sandbox %s: %w", sandbox, err)
	}
	return nil
}
