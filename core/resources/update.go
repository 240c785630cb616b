package resources

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/core/engine"
	"berth/core/limits"
)

// Update sends Docker the part of an update that its API can express, and applies the rest if the container
// is running; else ApplyStarted does at its start.
func (m *Manager) Update(ctx context.Context, docker *engine.Conn, c *cache.Container, update limits.Update) error {
	if err := updateEngine(ctx, docker, c.ID(), update.Engine); err != nil || !c.Running {
		return err
	}
	err := m.applySettings(ctx, update.CgroupSettings, c.ID(), c.Pid)
	// An unchanged score is not written: processes may have set another one for themselves.
	if score := update.Result.GetOomScoreAdj(); score != c.Status.GetResources().GetLinux().GetOomScoreAdj() {
		err = errors.Join(err, setOOMScore(c.ID(), c.Pid, max(int(score), docker.OOMFloor())))
	}
	return err
}

func updateEngine(ctx context.Context, docker *engine.Conn, id string, change container.UpdateConfig) error {
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	_, err := docker.ContainerUpdate(ctx, id, change)
	return err
}

// Snapshot reads what c has before an update. restore takes the update back, whatever of it has been done.
// An update with a setting that the node does not have is refused here, with an error of kind
// InvalidArgument.
func (m *Manager) Snapshot(docker *engine.Conn, c *cache.Container, update limits.Update) (restore func(context.Context) error, err error) {
	var group cgroup.Group
	var saved []limits.CgroupSetting
	score, cpus, mems := 0, "", ""
	if c.Running {
		if group, err = cgroup.ForContainer(c.Pid, c.ID()); err == nil {
			saved, err = readSettings(slices.Concat(limits.EngineManagedFiles(docker.Features), update.CgroupSettings), group)
		}
		if err == nil {
			score, err = readOOMScore(c.Pid)
		}
		if err := ignoreExited(err); err != nil {
			return nil, err
		}
		cpus, mems = effectiveCpuset(group, "cpus"), effectiveCpuset(group, "mems")
	}
	revert, err := limits.Revert(c.Status.GetResources().GetLinux(), update.Result, docker.Features, cpus, mems)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		err := updateEngine(ctx, docker, c.ID(), revert)
		if !c.Running {
			return err
		}
		m.setSystemdProperties(ctx, saved, group)
		return errors.Join(err, restoreSettings(saved, group), setOOMScore(c.ID(), c.Pid, score))
	}, nil
}

// effectiveCpuset returns the CPUs ("cpus") or memory nodes ("mems") that the processes in a cgroup may
// use, "" if that cannot be read.
func effectiveCpuset(group cgroup.Group, which string) string {
	dir, ok := group.Dir("cpuset")
	if !ok {
		return ""
	}
	for _, file := range []string{"cpuset." + which + ".effective", "cpuset." + which} { // of cgroup v2, and of v1
		if text, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
			return strings.TrimSpace(string(text))
		}
	}
	return ""
}
