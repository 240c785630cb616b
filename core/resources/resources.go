// Package resources applies the resource settings of containers that the Engine API cannot express:
// cgroup files (huge pages, unified, memory below Docker's minimum of 6 MiB), properties of systemd
// scopes, and an oom_score_adj that is changed after the creation.
//
// Manager applies them when a container starts (PrepareStart, ApplyStarted) and when it is updated
// (Snapshot, Update), and again after systemd has reset them (Run, Reapply). What is to be applied is
// computed by core/todocker from the resources that the cache has for a container. The methods that get
// a container are called by the holder of its lock.
package resources

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/core/engine"
	"berth/core/kmutex"
	"berth/core/limits"
	"berth/core/sleep"
	"berth/core/systemd"
)

// A Config is what a Manager needs; all fields are required.
type Config struct {
	Engine *engine.Engine
	Cache  *cache.Cache
	// Locks are the locks of containers, by ID. Reapply skips a container whose lock is held.
	Locks *kmutex.Mutex
	Log   *slog.Logger
}

// A Manager applies settings to containers. Use New.
type Manager struct {
	Config

	systemd   *systemd.Client
	triggered chan struct{} // holds one element while pods is not empty
	mu        sync.Mutex    // guards pods
	pods      []string      // the sandboxes whose settings wait to be applied again
}

// New returns a Manager. It needs Run to apply settings again.
func New(cfg Config) *Manager {
	return &Manager{Config: cfg, systemd: systemd.NewClient(), triggered: make(chan struct{}, 1)}
}

// PrepareStart creates the cgroup of a container that is about to start and writes settings to it, so
// that its first instruction is bound by them already; the low-level runtime uses the cgroup as it is.
// remove removes the cgroup, for a container that then does not start. On error nothing stays.
//
// It does nothing if Docker's cgroup driver is systemd, which creates the cgroup with the scope, or if
// the parent cgroup is not known; ApplyStarted alone writes the settings then.
func (m *Manager) PrepareStart(ctx context.Context, docker *engine.Conn, id string, settings []limits.CgroupSetting) (remove func() error, err error) {
	nothing := func() error { return nil }
	if len(settings) == 0 || docker.Features.CgroupDriver != "cgroupfs" {
		return nothing, nil
	}
	found, err := docker.ContainerInspect(ctx, id)
	if err != nil {
		return nil, err
	}
	// Without a parent in the container's configuration, cgroup-parent in daemon.json decides, and the
	// API does not report it.
	parent := found.HostConfig.CgroupParent
	if parent == "" {
		return nothing, nil
	}
	if remove, err = createCgroup(settings, parent, id); err != nil {
		return nil, errors.Join(err, remove())
	}
	return remove, nil
}

// createCgroup creates the cgroup of the container id below parent and writes those of the settings that
// may be written before the start. remove removes it, also after an error.
func createCgroup(settings []limits.CgroupSetting, parent, id string) (remove func() error, err error) {
	var early []limits.CgroupSetting
	var controllers []string
	for _, s := range settings {
		if s.AfterStart {
			continue
		}
		early = append(early, s)
		if c := s.ControllerName(); c != "" && !slices.Contains(controllers, c) {
			controllers = append(controllers, c)
		}
	}
	if len(early) == 0 {
		return func() error { return nil }, nil
	}
	group, err := cgroup.Create(filepath.Join("/", parent, id), controllers)
	if err == nil {
		err = writeSettings(early, group)
	}
	return group.Remove, err
}

// ApplyStarted applies settings to the container c, which has just started with the first process pid.
// updated tells that its resources have changed since it was created: then it gets their oom_score_adj
// as well, because Docker started it with that of its creation. A container that has exited is no error.
func (m *Manager) ApplyStarted(ctx context.Context, docker *engine.Conn, c *cache.Container, pid int, settings []limits.CgroupSetting, updated bool) error {
	err := retryBusy(ctx, func() error { return m.applySettings(ctx, settings, c.ID(), pid) })
	if updated {
		score := max(int(c.Status.GetResources().GetLinux().GetOomScoreAdj()), docker.OOMFloor())
		err = errors.Join(err, setOOMScore(c.ID(), pid, score))
	}
	return err
}

const (
	// busyTimeout bounds the retries of retryBusy. The memory is released within milliseconds, on a
	// machine without a free CPU within some hundred.
	busyTimeout       = 2 * time.Second
	busyRetryInterval = 20 * time.Millisecond
)

// retryBusy calls apply until it does not fail with EBUSY any more, for at most busyTimeout. On cgroup v1
// the kernel refuses a memory limit below what is charged and cannot be reclaimed. Right after a start that
// may be memory of the runtime's init, which the container's process replaces.
func retryBusy(ctx context.Context, apply func() error) error {
	deadline := time.Now().Add(busyTimeout)
	for {
		err := apply()
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) || sleep.WithContext(ctx, busyRetryInterval) != nil {
			return err
		}
	}
}

// applySettings applies settings to the container id with the first process pid.
func (m *Manager) applySettings(ctx context.Context, settings []limits.CgroupSetting, id string, pid int) error {
	group, err := cgroup.ForContainer(pid, id)
	if err != nil {
		return ignoreExited(err)
	}
	m.setSystemdProperties(ctx, settings, group)
	return ignoreExited(writeSettings(settings, group))
}

// setSystemdProperties sets the settings that systemd has a property for, if systemd manages the cgroup.
// It has to precede writeSettings, because systemd writes more files than those of the properties. A
// failure is only logged: the settings hold until systemd next applies the limits of the unit, and Run
// writes them again after that.
func (m *Manager) setSystemdProperties(ctx context.Context, settings []limits.CgroupSetting, group cgroup.Group) {
	unit := filepath.Base(group.V2)
	if !strings.HasSuffix(unit, ".scope") {
		return
	}
	files := map[string]string{}
	for _, s := range settings {
		files[s.File] = s.Value
	}
	if err := m.systemd.SetProperties(ctx, unit, files); err != nil && !errors.Is(err, systemd.ErrNoBus) {
		m.Log.Warn("systemd properties of a container could not be set; its cgroup files are written all the same, and again after systemd resets them", slog.String("unit", unit), slog.Any("err", err))
	}
}
