package resources

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cgroup"
	"berth/core/engine"
	"berth/core/limits"
	"berth/core/panics"
	"berth/core/systemd"
)

// reapplyInterval is the time that systemd gets to apply its limits before they are overwritten, and the
// shortest time between two rounds.
const reapplyInterval = time.Second

// Run writes the settings of running containers again whenever systemd may have reset them: those of all
// containers after it has reloaded its units, those of one pod after TriggerReapply. It returns when ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	defer m.systemd.Close()
	g, ctx := panics.NewGroupWithContext(ctx, m.Log)
	g.Go(func() error {
		systemd.WatchReloads(ctx, func() { m.TriggerReapply(allPods) })
		return nil
	})
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-m.triggered:
			}
			t := time.NewTimer(reapplyInterval)
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
			pods := m.takeTriggered()
			docker, err := m.Engine.Conn()
			if err == nil {
				err = m.reapply(ctx, docker, pods)
			}
			if err != nil && ctx.Err() == nil {
				// The garbage collection of containers calls Reapply as soon as Docker is connected again.
				m.Log.Debug("settings of containers could not be applied again", slog.Any("err", err))
			}
		}
	})
	return g.Wait()
}

// allPods is the sandbox of TriggerReapply that means all containers.
const allPods = ""

// TriggerReapply has Run write the settings of the containers of a sandbox again. It is to be called after every
// start and update of a container: after daemon-reload, systemd 257 applies the limits of a scope when the next
// unit of the same slice starts or changes (unit_add_family_to_cgroup_realize_queue in src/core/cgroup.c), and the
// containers of a pod have a slice of their own.
func (m *Manager) TriggerReapply(sandbox string) {
	m.mu.Lock()
	m.pods = append(m.pods, sandbox)
	m.mu.Unlock()
	select {
	case m.triggered <- struct{}{}:
	default: // a round is pending already
	}
}

// takeTriggered returns the sandboxes of TriggerReapply since the last call, each once, or allPods alone.
func (m *Manager) takeTriggered() []string {
	m.mu.Lock()
	pods := m.pods
	m.pods = nil
	m.mu.Unlock()
	if slices.Contains(pods, allPods) {
		return []string{allPods}
	}
	slices.Sort(pods)
	return slices.Compact(pods)
}

// Reapply writes the settings of all running containers, if Docker's cgroup driver is systemd. A container
// whose settings cannot be written is logged.
func (m *Manager) Reapply(ctx context.Context, docker *engine.Conn) error {
	return m.reapply(ctx, docker, []string{allPods})
}

func (m *Manager) reapply(ctx context.Context, docker *engine.Conn, pods []string) error {
	if docker.Features.CgroupDriver != "systemd" {
		return nil
	}
	for _, pod := range pods {
		running, err := m.Cache.Containers(ctx, &runtimeapi.ContainerFilter{
			PodSandboxId: pod,
			State:        &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
		})
		if err != nil {
			return err
		}
		for _, c := range running {
			if err := m.reapplyOne(ctx, docker, c.ID()); err != nil && ctx.Err() == nil {
				m.Log.Warn("settings of a container could not be applied again", slog.String("container", c.ID()), slog.Any("err", err))
			}
		}
	}
	return ctx.Err()
}

// reapplyOne writes the settings of the container id if it is running. It skips one that is being started
// or updated, because that call writes them.
func (m *Manager) reapplyOne(ctx context.Context, docker *engine.Conn, id string) error {
	unlock, ok := m.Locks.TryLock(id)
	if !ok {
		return nil
	}
	defer unlock()
	c, err := m.Cache.Container(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	settings, err := limits.CgroupSettings(c.Status.GetResources().GetLinux(), docker.Features)
	if err != nil || !c.Running || len(settings) == 0 {
		return err
	}
	group, err := cgroup.ForContainer(c.Pid, c.ID())
	if err != nil {
		return ignoreExited(err)
	}
	return ignoreExited(writeSettings(settings, group))
}
