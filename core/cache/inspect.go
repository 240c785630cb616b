package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cgroup"
	"berth/core/engine"
	"berth/core/labels"
	"berth/core/logs/dockerlog"
	"berth/core/names"
	"berth/core/panics"
	"berth/core/podpolicy"
	"berth/core/tocri"
)

// errUnreadable is the error of an inspect result that the cache cannot use. Another
// inspect would not help.
var errUnreadable = errors.New("inspect result is not usable")

// errNoRecords is the error of an inspect result whose records cannot be read now. The inspect is repeated.
var errNoRecords = errors.New("records of berthd cannot be read")

// Refresh inspects the Docker container id now, so that the next read sees what the
// caller has just changed. It returns the inspect result; the error is of kind NotFound
// if the container is removed.
func (c *Cache) Refresh(ctx context.Context, id string) (container.InspectResponse, error) {
	conn, err := c.engine.Conn()
	if err != nil {
		return container.InspectResponse{}, err
	}
	return c.inspect(ctx, conn, id)
}

// RefreshUnless is Refresh, but without an inspect if the cache has what the caller has just changed in a container, as reflects reports.
// Docker's event of the change usually has had it inspected; that is waited for.
func (c *Cache) RefreshUnless(ctx context.Context, id string, reflects func(*Container) bool) error {
	c.mu.RLock()
	inspected := c.inspecting[id]
	c.mu.RUnlock()
	if inspected != nil {
		select {
		case <-inspected:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mu.RLock()
	e, ok := c.containers[id]
	ok = ok && !e.fromList && reflects(e.value)
	c.mu.RUnlock()
	if ok {
		return nil
	}
	_, err := c.Refresh(ctx, id)
	return err
}

// startRead returns the generation of an inspect of the container id that begins now, or of a list, for which id is empty. endRead
// must be called when its result has been applied.
func (c *Cache) startRead(id string) (generation uint64, endRead func()) {
	done := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation++
	generation = c.generation
	c.inflight[generation], c.inspecting[id] = true, done
	return generation, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.inflight, generation)
		if c.inspecting[id] == done {
			delete(c.inspecting, id)
		}
		close(done)
	}
}

// inspect inspects the container id and applies the result, unless that of a later
// inspect has been applied before it.
func (c *Cache) inspect(ctx context.Context, conn *engine.Conn, id string) (container.InspectResponse, error) {
	ctx, cancel := conn.WithRequestTimeout(ctx)
	defer cancel()
	generation, endRead := c.startRead(id)
	defer endRead()
	result, err := conn.ContainerInspect(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
		c.handleMissing(id, generation)
		return result, fmt.Errorf("inspect: %w", err)
	case err != nil:
		return result, fmt.Errorf("inspect %s: %w", id, err)
	}
	// Logs must see the states of a container in order, and the cache the same state as Logs: so one result at a time is applied.
	unlock, err := c.applyLocks.Lock(ctx, id)
	if err != nil {
		return result, fmt.Errorf("inspect %s: %w", id, err)
	}
	defer unlock()
	// A panic about one container must not end the daemon, again and again after each
	// restart.
	err = panics.Try(c.log, func() error {
		set, err := c.readLabels(result)
		if err != nil {
			return err
		}
		c.correctOOMKilled(ctx, result, set)
		return c.apply(result, set, generation, func(ctr *Container) { c.logs.Observe(ctx, ctr) })
	})
	c.mu.RLock()
	removed := c.tombstones[id] > generation
	c.mu.RUnlock()
	if removed { // meanwhile: what Logs and OOM have kept of this result must not stay
		c.notifyRemoved(id)
	}
	switch {
	case errors.Is(err, errNoRecords):
		return result, err
	case err != nil:
		return result, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return result, nil
}

// correctOOMKilled sets State.OOMKilled of an inspect result to what OOM has found out.
func (c *Cache) correctOOMKilled(ctx context.Context, result container.InspectResponse, set labels.Set) {
	if c.oom == nil || set.Kind != labels.Container || result.State == nil {
		return
	}
	if result.State.Running {
		c.oom.Running(result.ID, result.State.Pid)
		return
	}
	if _, _, finished, err := tocri.Times(result); err == nil && finished != 0 {
		result.State.OOMKilled = c.oom.OOMKilled(ctx, result.ID, result.State.OOMKilled, result.State.ExitCode, time.Unix(0, finished))
	}
}

// ExpectStart prepares OOM for the start of a container, so that it recognises an OOM
// kill right after the start. The caller calls done after the start.
func (c *Cache) ExpectStart(ctx context.Context, ctr *Container) (done func()) {
	noop := func() {}
	if c.oom == nil {
		return noop
	}
	pod, err := c.Sandbox(ctx, ctr.Row.GetPodSandboxId())
	if err != nil {
		return noop
	}
	group, err := cgroup.ForContainer(pod.Pid, pod.ID())
	if err != nil {
		return noop
	}
	return c.oom.ExpectCgroup(ctr.ID(), group.Parent())
}

// readLabels returns the metadata of an inspect result, of no kind if it belongs to no pod.
func (c *Cache) readLabels(result container.InspectResponse) (labels.Set, error) {
	set, err := labels.Read(result)
	if errors.Is(err, labels.ErrMismatch) {
		c.warnIgnored(result.ID, err)
		err = nil
	}
	return set, err
}

// apply puts an inspect result with its metadata into the cache. For a container it calls observe first; a
// nil observe means that the result was made from a list entry.
func (c *Cache) apply(result container.InspectResponse, set labels.Set, generation uint64, observe func(*Container)) error {
	switch set.Kind {
	case labels.Sandbox:
		s, err := c.newSandbox(result, set)
		if err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		storeLocked(c, c.sandboxes, result.ID, result.ID, &entry[*Sandbox]{value: s, generation: generation, fromList: observe == nil})
	case labels.Container:
		ctr, err := c.newContainer(result, set)
		if err != nil {
			return err
		}
		c.mu.RLock()
		stale := c.isStaleLocked(result.ID, generation)
		c.mu.RUnlock()
		if stale {
			return nil
		}
		if observe != nil {
			observe(ctr)
		}
		c.mu.Lock()
		storeLocked(c, c.containers, result.ID, ctr.Row.GetPodSandboxId(), &entry[*Container]{value: ctr, generation: generation, fromList: observe == nil})
		c.mu.Unlock()
	default:
		c.mu.RLock()
		_, _, known := c.stateLocked(result.ID)
		c.mu.RUnlock()
		if known { // it was renamed, and so is not a pod's any more
			c.handleMissing(result.ID, generation)
		}
	}
	return nil
}

const maxIgnored = 1024 // bounds Cache.ignored; beyond it some containers are logged again

// warnIgnored logs, once for each container, that it is not taken for a pod's.
func (c *Cache) warnIgnored(id string, reason error) {
	c.mu.Lock()
	first := !c.ignored[id]
	if first && len(c.ignored) >= maxIgnored {
		clear(c.ignored)
	}
	c.ignored[id] = true
	c.mu.Unlock()
	if first {
		c.log.Warn("container ignored: its labels say that it belongs to a pod, its name does not; it was not created by Kubernetes",
			slog.String("container", id), slog.Any("reason", reason))
	}
}

// newSandbox returns the Sandbox for the inspect result of a pause container.
func (c *Cache) newSandbox(result container.InspectResponse, set labels.Set) (*Sandbox, error) {
	config, err := tocri.SandboxConfig(result, set)
	if err != nil {
		return nil, err
	}
	updated, isUpdated, err := c.sandboxUpdates.Get(result.ID)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoRecords, err)
	}
	if isUpdated {
		if config.Linux == nil {
			config.Linux = &runtimeapi.LinuxPodSandboxConfig{}
		}
		config.Linux.Resources, config.Linux.Overhead = updated.GetResources(), updated.GetOverhead()
	}
	_, started, finished, err := tocri.Times(result)
	if err != nil {
		return nil, err
	}
	mode := result.HostConfig.NetworkMode
	s := &Sandbox{
		StartedAt:      started,
		FinishedAt:     finished,
		Config:         config,
		Name:           strings.TrimPrefix(result.Name, "/"),
		State:          result.State.Status,
		Pid:            result.State.Pid,
		Running:        result.State.Running,
		Runtime:        result.HostConfig.Runtime,
		CgroupParent:   result.HostConfig.CgroupParent,
		ProcessLabel:   result.ProcessLabel,
		MountLabel:     result.MountLabel,
		HostNetwork:    mode.IsHost(),
		Bridged:        !mode.IsHost() && !mode.IsNone() && !result.Config.NetworkDisabled,
		CreatedByBerth: set.CreatedByBerth(),
	}
	if s.CreatedByBerth {
		s.ShimGroup = podpolicy.ShimGroupOf(result.HostConfig)
	}
	var network tocri.Network
	switch {
	case s.HostNetwork:
		network.Ready = true
	case s.Bridged:
		network = tocri.BridgeNetwork(result)
	case s.Running:
		if network.Addrs, network.Ready, err = c.network.Addresses(result.ID); err != nil {
			return nil, fmt.Errorf("%w: %w", errNoRecords, err) // not a pod without a network, which the kubelet would create anew
		}
	}
	s.Attached = network.Ready
	if network.Ready && s.Running && s.Pid != 0 && !s.HostNetwork && !s.Bridged { // a list entry has no PID
		network.Ready = c.network.InNetNS(result.ID, s.Pid)
	}
	s.Row, s.Status, err = tocri.Sandbox(result, set, config, network)
	return s, err
}

// newContainer returns the Container for an inspect result.
func (c *Cache) newContainer(result container.InspectResponse, set labels.Set) (*Container, error) {
	conn, err := c.engine.LastConn()
	if err != nil {
		return nil, err
	}
	var failed tocri.FailedStart
	if result.State.StartedAt == "" || result.State.ExitCode != 0 || result.State.Error != "" {
		if failed, _, err = c.failures.Get(result.ID); err != nil {
			return nil, fmt.Errorf("%w: %w", errNoRecords, err)
		}
	}
	row, status, err := tocri.Container(result, set, failed)
	if err != nil {
		return nil, err
	}
	updated, isUpdated, err := c.containerUpdates.Get(result.ID)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoRecords, err)
	}
	if isUpdated {
		status.Resources = &runtimeapi.ContainerResources{Linux: updated}
	}
	return &Container{
		Row:            row,
		Status:         status,
		Name:           strings.TrimPrefix(result.Name, "/"),
		State:          result.State.Status,
		Pid:            result.State.Pid,
		Running:        result.State.Running,
		TTY:            result.Config.Tty,
		LogFile:        dockerlog.FileOfInspected(conn.Features.RootDir, result),
		Premount:       set.Premount,
		CreatedByBerth: set.CreatedByBerth(),
		LogDirectory:   c.logDirectory(result.Name, set),
		WritableLayer:  result.GraphDriver.Data["UpperDir"],
		Volumes:        tocri.AnonymousVolumes(result.Mounts),
	}, nil
}

// logDirectory returns the directory below which the log of the container must be: the
// LogDirectory of its sandbox's config. cri-dockerd does not store that config; then, and
// if the sandbox is not known any more, it is derived from the pod in the Docker name. An
// image can set labels, and so any log path, but no name.
func (c *Cache) logDirectory(name string, set labels.Set) string {
	c.mu.RLock()
	sandbox, ok := c.sandboxes[set.SandboxID]
	c.mu.RUnlock()
	if ok && sandbox.value.Config.GetLogDirectory() != "" {
		return sandbox.value.Config.GetLogDirectory()
	}
	n, err := names.Parse(name)
	if err != nil {
		return ""
	}
	return n.LogDirectory(set.LogPath)
}
