// Package cache holds every sandbox and container in memory, as the kubelet
// asks about them once a second.
//
// It is kept current by the Engine's events, by what rooms tell it to look at
// again, and by a fresh look at everything after each break of the event
// stream. It is a cache that can be thrown away at any moment: the truth is in
// the Engine. Rooms read it; nobody answers from it what the Engine has not
// said.
package cache

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/prometheus/client_golang/prometheus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cgroup"
	"berth/core/engine"
	"berth/core/kmutex"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/panics"
	"berth/core/state"
	"berth/core/tocri"
)

// A Sandbox is a pod's pause container as last seen. It is never changed, only
// replaced.
type Sandbox struct {
	Row    *runtimeapi.PodSandbox
	Status *runtimeapi.PodSandboxStatus
	Config *runtimeapi.PodSandboxConfig // but for labels and annotations

	Name         string // in Docker
	State        string // in the Engine's words, "" once it is gone
	Pid          int    // of the pause process, 0 if it does not run or only a list tells of it
	Running      bool
	Runtime      string // in the Engine's words
	CgroupParent string // in the Engine's words
	Label        string // of the pause process, on a node with SELinux
	FileLabel    string // of what that process may write, on a node with SELinux
	HostNetwork  bool
	Bridged      bool // on Docker's own network
	Ours         bool // created by berth rather than taken over

	StartedAt, FinishedAt int64 // Unix nanoseconds, 0 for not
	// Gone tells that the container was removed behind our back. The sandbox
	// stays, not ready, until the kubelet has had it stopped and removed.
	Gone bool
}

// ID returns the ID of the sandbox.
func (s *Sandbox) ID() string { return s.Row.GetId() }

// A Container is a container of a pod as last seen. It is never changed, only
// replaced.
type Container struct {
	Row    *runtimeapi.Container
	Status *runtimeapi.ContainerStatus

	Name     string // in Docker
	State    string // in the Engine's words
	Pid      int    // of its first process, 0 if it does not run or only a list tells of it
	Running  bool
	TTY      bool
	JSONPath string // the Engine's own log file
	// LogDirectory is what the kubelet's log file must be below, "" if that is
	// not known.
	LogDirectory string
	Stage        names.Premount // of its staged mounts, if it has some
	Ours         bool           // created by berth rather than taken over

	// Layer is the directory with what is written to the root file system, "" where
	// the Engine does not say, as with the containerd image store.
	Layer string
	// Volumes are the directories of the volumes that the Engine has made for the
	// container, one for each VOLUME of its image.
	Volumes []string
}

// ID returns the ID of the container.
func (c *Container) ID() string { return c.Row.GetId() }

// Network is what the view asks about the networks of pods.
type Network interface {
	// Addresses returns the addresses of a pod and whether it is attached.
	Addresses(id string) (addrs []netip.Addr, attached bool)
	// Same reports whether the process pid is still in the network namespace
	// that the pod was attached in.
	InNetNS(id string, pid int) bool
}

// Config is what the view is told at the start.
type Config struct {
	Network Network
	// Failures is the shelf where the times of failed starts are kept.
	Failures *state.Bucket[tocri.FailedStart]
	// ContainerUpdates and SandboxUpdates hold the resources that were changed after
	// a container or sandbox was created.
	ContainerUpdates *state.Bucket[*runtimeapi.LinuxContainerResources]
	SandboxUpdates   *state.Bucket[*runtimeapi.UpdatePodSandboxResourcesRequest]
	// Logs sees to the log files of containers.
	Logs Logs
	// OOM finds out what was killed for want of memory. Where it is nil, Docker's word
	// is taken.
	OOM OOM
	// Metrics is told how far the view lags behind, unless it is nil.
	Metrics prometheus.Registerer
}

// Logs is what sees to the log files of containers.
type Logs interface {
	// Keep is called with what has been seen of a container before anybody else
	// is told, in the order in which it was seen. It returns, soon in any case,
	// when the log of one that has ended is complete.
	Keep(ctx context.Context, c *Container)
	// Drop is called when a container is gone.
	Drop(id string)
}

// OOM finds out which containers the kernel has killed for want of memory.
type OOM interface {
	// Expect is called before a container is started whose cgroup will be in parent; done
	// is called when it has been.
	Expect(id string, parent cgroup.Group) (done func())
	// Running is called with the first process of a container that runs.
	Running(id string, pid int)
	// Started, Slain and Died are called with what Docker tells, in its order: a
	// start, a SIGKILL that it has sent, an end. Deaf is called when some may be lost.
	Started(id string)
	Slain(id string)
	Died(id string)
	Deaf()
	// Killed reports whether a container has ended of that; flag is Docker's word.
	Killed(ctx context.Context, id string, flag bool, exitCode int, finished time.Time) bool
	// Drop is called when a container is gone, Forget with all that are there.
	Drop(id string)
	Forget(keep func(id string) bool)
}

// A Cache is the node in memory. Run keeps it current.
type Cache struct {
	Config
	docker *engine.Engine
	log    *slog.Logger
	lag    *lag
	turns  kmutex.Mutex // of those who take a container into the view, by ID

	mu         sync.RWMutex    // guards following
	tickets    uint64          // order in which looks at the Engine began
	looking    map[uint64]bool // tickets of looks that are under way
	sandboxes  map[string]*entry[*Sandbox]
	containers map[string]*entry[*Container]
	removed    map[string]uint64 // when IDs were found to be gone, so that no late look brings them back
	hidden     map[string]int    // Docker names that are hidden, with how many callers hide each
	ignored    map[string]bool   // IDs of containers that have been logged as not a pod's
	synced     *engine.Conn      // the connection whose Engine has been looked at as a whole
	changed    chan struct{}     // closed when synced changes
	known      bool              // whether an Engine has been looked at as a whole, ever

	subscribers map[*subscriber]bool
}

// An entry is something seen and when that look began.
type entry[T any] struct {
	seen    T
	ticket  uint64
	listed  bool  // whether only a list tells of it: when it was started is not known
	emitted *life // up to where events have been emitted, nil for none
}

// New returns a View that knows nothing until Run has looked at the Engine.
func New(cfg Config, docker *engine.Engine, log *slog.Logger) *Cache {
	v := &Cache{
		Config:     cfg,
		docker:     docker,
		log:        log,
		sandboxes:  map[string]*entry[*Sandbox]{},
		containers: map[string]*entry[*Container]{},
		looking:    map[uint64]bool{},
		removed:    map[string]uint64{},
		hidden:     map[string]int{},
		ignored:    map[string]bool{},
		changed:    make(chan struct{}),

		subscribers: map[*subscriber]bool{},
	}
	v.lag = newLag(cfg.Metrics)
	v.export(cfg.Metrics)
	return v
}

// syncPatience is how long a question waits for the first look at an Engine
// that has just (re)appeared.
const syncPatience = 5 * time.Second

// Ready returns nil once the view is that of the Engine as it is connected
// now. While the Engine is away the error is of kind Unavailable.
func (v *Cache) Ready(ctx context.Context) error {
	conn, err := v.docker.Conn()
	if err != nil {
		return err
	}
	v.mu.RLock()
	synced := v.synced
	v.mu.RUnlock()
	if synced == conn {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, syncPatience)
	defer cancel()
	for {
		v.mu.RLock()
		synced, changed := v.synced, v.changed
		v.mu.RUnlock()
		conn, err := v.docker.Conn()
		switch {
		case err != nil:
			return err
		case synced == conn:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("docker: %w: still looking at its containers", errdefs.ErrUnavailable)
		}
	}
}

// Sandboxes returns the sandboxes that match filter, the newest first; a nil
// filter matches all.
func (v *Cache) Sandboxes(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*Sandbox, error) {
	if err := v.Ready(ctx); err != nil {
		return nil, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	var list []*Sandbox
	for id, e := range v.sandboxes {
		s := e.seen
		if strings.HasPrefix(id, filter.GetId()) &&
			(filter.GetState() == nil || filter.GetState().GetState() == s.Row.GetState()) &&
			selects(filter.GetLabelSelector(), s.Row.GetLabels()) && v.hidden[s.Name] == 0 {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b *Sandbox) int {
		return newestFirst(a.Row.GetCreatedAt(), b.Row.GetCreatedAt(), a.ID(), b.ID())
	})
	return list, nil
}

// SandboxIDs returns the IDs of all sandboxes, half made ones too.
func (v *Cache) SandboxIDs(ctx context.Context) ([]string, error) {
	if err := v.Ready(ctx); err != nil {
		return nil, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.Collect(maps.Keys(v.sandboxes)), nil
}

// Containers returns the containers that match filter, the newest first; a nil
// filter matches all.
func (v *Cache) Containers(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*Container, error) {
	if err := v.Ready(ctx); err != nil {
		return nil, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	var list []*Container
	for id, e := range v.containers {
		c := e.seen
		if strings.HasPrefix(id, filter.GetId()) &&
			strings.HasPrefix(c.Row.GetPodSandboxId(), filter.GetPodSandboxId()) &&
			(filter.GetState() == nil || filter.GetState().GetState() == c.Row.GetState()) &&
			selects(filter.GetLabelSelector(), c.Row.GetLabels()) && v.hidden[c.Name] == 0 {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b *Container) int {
		return newestFirst(a.Row.GetCreatedAt(), b.Row.GetCreatedAt(), a.ID(), b.ID())
	})
	return list, nil
}

// ContainersOf returns the containers in the sandbox with the ID, half made ones too.
func (v *Cache) ContainersOf(ctx context.Context, sandbox string) ([]*Container, error) {
	if err := v.Ready(ctx); err != nil {
		return nil, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	var list []*Container
	for _, e := range v.containers {
		if e.seen.Row.GetPodSandboxId() == sandbox {
			list = append(list, e.seen)
		}
	}
	return list, nil
}

// newestFirst compares by time and, for an order that does not jump about, by ID.
func newestFirst(a, b int64, idA, idB string) int {
	switch {
	case a > b:
		return -1
	case a < b:
		return 1
	default:
		return strings.Compare(idA, idB)
	}
}

// selects reports whether have holds every pair of want.
func selects(want, have map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Sandbox returns the sandbox with the ID, or with the only ID that begins so.
// The error is of kind NotFound if there is none.
func (v *Cache) Sandbox(ctx context.Context, id string) (*Sandbox, error) {
	if err := v.Ready(ctx); err != nil {
		return nil, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	return find("sandbox", v.sandboxes, id)
}

// Container returns the container with the ID, or with the only ID that begins
// so. The error is of kind NotFound if there is none.
func (v *Cache) Container(ctx context.Context, id string) (*Container, error) {
	if err := v.Ready(ctx); err != nil {
		return nil, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	return find("container", v.containers, id)
}

func find[T any](what string, in map[string]*entry[T], id string) (T, error) {
	var found T
	if e, ok := in[id]; ok {
		return e.seen, nil
	}
	n := 0
	for full, e := range in {
		if id != "" && strings.HasPrefix(full, id) {
			found = e.seen
			n++
		}
	}
	switch n {
	case 1:
		return found, nil
	case 0:
		return found, fmt.Errorf("no %s %q: %w", what, id, errdefs.ErrNotFound)
	default:
		var none T
		return none, fmt.Errorf("%d are called %s %q: %w", n, what, id, errdefs.ErrInvalidArgument)
	}
}

// Refresh looks at the Docker container id now, so that what the caller has
// just done to it is in the next answer. It returns what it saw; of kind
// NotFound if the container is gone.
func (v *Cache) Refresh(ctx context.Context, id string) (container.InspectResponse, error) {
	docker, err := v.docker.Conn()
	if err != nil {
		return container.InspectResponse{}, err
	}
	return v.look(ctx, docker, id)
}

// begin returns the ticket of a look at the Engine that begins now. Over is to
// be called when the view has been told what it saw.
func (v *Cache) begin() (ticket uint64, over func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tickets++
	ticket = v.tickets
	v.looking[ticket] = true
	return ticket, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.looking, ticket)
	}
}

// look inspects id and puts what it saw into the view, unless a later look has
// been quicker.
func (v *Cache) look(ctx context.Context, docker *engine.Conn, id string) (container.InspectResponse, error) {
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	ticket, over := v.begin()
	defer over()
	c, err := docker.ContainerInspect(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
		v.missing(id, ticket)
		return c, fmt.Errorf("inspect: %w", err)
	case err != nil:
		return c, fmt.Errorf("inspect %s: %w", id, err)
	}
	// Logs is told in the order of the looks: of two, the later one must not be
	// between the earlier one's word to it and to the view.
	done, err := v.turns.Lock(ctx, id)
	if err != nil {
		return c, fmt.Errorf("inspect %s: %w", id, err)
	}
	defer done()
	// A container whose description is more than berth can cope with must not end it,
	// again and again after each start.
	err = panics.Try(v.log, func() error {
		v.judge(ctx, c)
		return v.put(c, ticket, func(k *Container) { v.Logs.Keep(ctx, k) })
	})
	if err != nil {
		return c, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return c, nil
}

// judge puts right what Docker says of whether a container was killed for want of memory.
func (v *Cache) judge(ctx context.Context, c container.InspectResponse) {
	if v.OOM == nil {
		return
	}
	if recorded, err := labels.Read(c); err != nil || recorded.Kind != labels.Container || c.State == nil {
		return
	}
	if c.State.Running {
		v.OOM.Running(c.ID, c.State.Pid)
		return
	}
	if _, _, finished, err := tocri.Times(c); err == nil && finished != 0 {
		c.State.OOMKilled = v.OOM.Killed(ctx, c.ID, c.State.OOMKilled, c.State.ExitCode, time.Unix(0, finished))
	}
}

// ExpectStart is to be called before a container of a sandbox is started, and done when it
// has been: of one that is killed at once it is known why.
func (v *Cache) ExpectStart(ctx context.Context, c *Container) (done func()) {
	none := func() {}
	if v.OOM == nil {
		return none
	}
	pod, err := v.Sandbox(ctx, c.Row.GetPodSandboxId())
	if err != nil {
		return none
	}
	g, err := cgroup.Of(pod.Pid, pod.ID())
	if err != nil {
		return none
	}
	return v.OOM.Expect(c.ID(), g.Parent())
}

// errUnreadable is the kind of what will not get better by looking again.
var errUnreadable = errors.New("a container that cannot be understood")

// put takes c, inspected at ticket, into the view, a container after keep has
// returned. Without keep c is what a list says.
func (v *Cache) put(c container.InspectResponse, ticket uint64, keep func(*Container)) error {
	if c.ContainerJSONBase == nil || c.Config == nil {
		return errors.New("the Engine's answer is not whole")
	}
	recorded, err := labels.Read(c)
	if errors.Is(err, labels.ErrMismatch) {
		v.warnIgnored(c.ID, err)
	} else if err != nil {
		return err
	}
	switch recorded.Kind {
	case labels.Sandbox:
		s, err := v.sandbox(c, recorded)
		if err != nil {
			return err
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		store(v, v.sandboxes, c.ID, c.ID, &entry[*Sandbox]{seen: s, ticket: ticket, listed: keep == nil})
	case labels.Container:
		k, err := v.container(c, recorded)
		if err != nil {
			return err
		}
		v.mu.RLock()
		late := v.passed(c.ID, ticket)
		v.mu.RUnlock()
		if late {
			return nil
		}
		if keep != nil {
			keep(k)
		}
		v.mu.Lock()
		store(v, v.containers, c.ID, k.Row.GetPodSandboxId(), &entry[*Container]{seen: k, ticket: ticket, listed: keep == nil})
		gone := v.removed[c.ID] > ticket
		v.mu.Unlock()
		if gone {
			v.Logs.Drop(c.ID) // it was removed while we looked
		}
	default:
		v.mu.RLock()
		_, _, known := v.last(c.ID)
		v.mu.RUnlock()
		if known { // it has been renamed, and is as good as removed
			v.missing(c.ID, ticket)
		}
	}
	return nil
}

// maxIgnored bounds how many containers are remembered to have been ignored. Beyond
// it some are logged again.
const maxIgnored = 1024

// warnIgnored logs once that a container is not taken for a pod's.
func (v *Cache) warnIgnored(id string, reason error) {
	v.mu.Lock()
	first := !v.ignored[id]
	if first && len(v.ignored) >= maxIgnored {
		clear(v.ignored)
	}
	v.ignored[id] = true
	v.mu.Unlock()
	if first {
		v.log.Warn("container ignored: its labels say that it belongs to a pod, its name does not; it was not created by Kubernetes",
			slog.String("container", id), slog.Any("reason", reason))
	}
}

// passed reports whether id was seen, or found to be gone, by a look that began
// after ticket. v.mu is held.
func (v *Cache) passed(id string, ticket uint64) bool {
	s, isSandbox := v.sandboxes[id]
	c, isContainer := v.containers[id]
	return v.removed[id] > ticket || isSandbox && s.ticket > ticket || isContainer && c.ticket > ticket
}

// store puts e, which is of that sandbox, where it belongs and tells what is
// news, unless something newer is there. v.mu is held.
func store[T interface {
	life() life
	name() string
}](v *Cache, in map[string]*entry[T], id, sandbox string, e *entry[T]) {
	if v.passed(id, e.ticket) {
		return
	}
	now := e.seen.life()
	if last, ok := in[id]; ok {
		e.emitted = last.emitted
		if e.emitted != nil && last.listed && e.emitted.started != 0 {
			l := *e.emitted
			l.started = now.started // the start was emitted, with the time that the list gave
			e.emitted = &l
		}
	}
	in[id] = e
	delete(v.removed, id) // the Engine has it again
	emit(v, e, id, sandbox)
}

// emit emits the events that lead e to what has been seen now, unless it is
// hidden. The first inspection of everything there is emits none. v.mu is held.
func emit[T interface {
	life() life
	name() string
}](v *Cache, e *entry[T], id, sandbox string) {
	if v.hidden[e.seen.name()] > 0 {
		return
	}
	now := e.seen.life()
	if e.emitted != nil || v.known {
		v.tell(id, sandbox, between(e.emitted, now))
	}
	e.emitted = &now
}

// sandbox makes what the view keeps of a pause container.
func (v *Cache) sandbox(c container.InspectResponse, recorded labels.Set) (*Sandbox, error) {
	config, err := tocri.SandboxConfig(c)
	if err != nil {
		return nil, err
	}
	if updated, ok := v.SandboxUpdates.Get(c.ID); ok {
		if config.Linux == nil {
			config.Linux = &runtimeapi.LinuxPodSandboxConfig{}
		}
		config.Linux.Resources, config.Linux.Overhead = updated.GetResources(), updated.GetOverhead()
	}
	_, started, finished, err := tocri.Times(c)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{
		StartedAt:    started,
		FinishedAt:   finished,
		Config:       config,
		Name:         strings.TrimPrefix(c.Name, "/"),
		State:        c.State.Status,
		Pid:          c.State.Pid,
		Running:      c.State.Running,
		Runtime:      c.HostConfig.Runtime,
		CgroupParent: c.HostConfig.CgroupParent,
		Label:        c.ProcessLabel,
		FileLabel:    c.MountLabel,
		HostNetwork:  c.HostConfig.NetworkMode.IsHost(),
		Bridged:      !c.HostConfig.NetworkMode.IsHost() && !c.HostConfig.NetworkMode.IsNone() && !c.Config.NetworkDisabled,
		Ours:         recorded.Ours(),
	}
	var network tocri.Network
	switch {
	case s.HostNetwork:
		network.Ready = true
	case s.Bridged:
		network = bridged(c)
	case s.Running:
		network.Addrs, network.Ready = v.Network.Addresses(c.ID)
		// Which process it is, a list does not tell.
		network.Ready = network.Ready && (s.Pid == 0 || v.Network.InNetNS(c.ID, s.Pid))
	}
	s.Row, s.Status, err = tocri.Sandbox(c, network)
	return s, err
}

// bridged reads the addresses that Docker's own network has given.
func bridged(c container.InspectResponse) tocri.Network {
	network := tocri.Network{Ready: true}
	if c.NetworkSettings == nil {
		return network
	}
	for _, n := range c.NetworkSettings.Networks {
		for _, text := range []string{n.IPAddress, n.GlobalIPv6Address} {
			if addr, err := netip.ParseAddr(text); err == nil {
				network.Addrs = append(network.Addrs, addr)
			}
		}
	}
	return network
}

// container makes what the view keeps of a container.
func (v *Cache) container(c container.InspectResponse, recorded labels.Set) (*Container, error) {
	var failed tocri.FailedStart
	if c.State.StartedAt == "" || c.State.ExitCode != 0 || c.State.Error != "" {
		failed, _ = v.Failures.Get(c.ID)
	}
	row, status, err := tocri.Container(c, failed)
	if err != nil {
		return nil, err
	}
	if updated, ok := v.ContainerUpdates.Get(c.ID); ok {
		status.Resources = &runtimeapi.ContainerResources{Linux: updated}
	}
	return &Container{
		Row:      row,
		Status:   status,
		Name:     strings.TrimPrefix(c.Name, "/"),
		State:    c.State.Status,
		Pid:      c.State.Pid,
		Running:  c.State.Running,
		TTY:      c.Config.Tty,
		JSONPath: c.LogPath,
		Stage:    recorded.Stage,
		Ours:     recorded.Ours(),

		LogDirectory: v.logDirectory(c.Name, recorded),
		Layer:        c.GraphDriver.Data["UpperDir"],
		Volumes:      anonymousVolumes(c.Mounts),
	}, nil
}

// logDirectory returns the directory that the log of the container called name must be below:
// the one its sandbox was created with. cri-dockerd has not put that down. Then, and where the sandbox
// is not known any more, it is one that is called after the pod in name. An image can
// bring labels, and so any log path, but no name.
func (v *Cache) logDirectory(name string, said labels.Set) string {
	v.mu.RLock()
	sandbox, ok := v.sandboxes[said.SandboxID]
	v.mu.RUnlock()
	if ok && sandbox.seen.Config.GetLogDirectory() != "" {
		return sandbox.seen.Config.GetLogDirectory()
	}
	n, err := names.Parse(name)
	if err != nil {
		return ""
	}
	return n.LogDirectory(said.LogPath)
}

// anonymousVolumes returns the directories of the volumes that the Engine has made and
// named by itself.
func anonymousVolumes(mounts []container.MountPoint) []string {
	var dirs []string
	for _, m := range mounts {
		_, notHex := hex.DecodeString(m.Name)
		if m.Type == mount.TypeVolume && m.Driver == "local" && len(m.Name) == 64 && notHex == nil {
			dirs = append(dirs, m.Source)
		}
	}
	return dirs
}

// missing takes note that a look that began at ticket did not find id.
func (v *Cache) missing(id string, ticket uint64) {
	if v.miss(id, ticket) {
		v.drop(id)
	}
}

// drop has others forget the container id, which is gone.
func (v *Cache) drop(id string) {
	v.Logs.Drop(id)
	if v.OOM != nil {
		v.OOM.Drop(id)
	}
}

// miss marks id as gone in memory. It reports whether that is so, rather than that
// it was seen by a later inspection.
func (v *Cache) miss(id string, ticket uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.passed(id, ticket) {
		return false
	}
	e, isSandbox := v.sandboxes[id]
	if !isSandbox {
		v.forget(id, ticket)
		return true
	}
	g := e.seen
	if !g.Gone {
		g = ghost(g)
	}
	v.sandboxes[id] = &entry[*Sandbox]{seen: g, ticket: ticket, emitted: e.emitted}
	emit(v, v.sandboxes[id], id, id)
	return true
}

// ghost returns s as it is after its container was removed behind our back.
func ghost(s *Sandbox) *Sandbox {
	g := *s
	g.Gone, g.State, g.Running, g.Pid = true, "", false, 0
	if g.FinishedAt == 0 {
		g.FinishedAt = time.Now().UnixNano()
	}
	g.Row = &runtimeapi.PodSandbox{
		Id: s.Row.GetId(), Metadata: s.Row.GetMetadata(), State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY,
		CreatedAt: s.Row.GetCreatedAt(), Labels: s.Row.GetLabels(), Annotations: s.Row.GetAnnotations(),
		RuntimeHandler: s.Row.GetRuntimeHandler(),
	}
	g.Status = &runtimeapi.PodSandboxStatus{
		Id: s.Row.GetId(), Metadata: s.Row.GetMetadata(), State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY,
		CreatedAt: s.Row.GetCreatedAt(), Labels: s.Row.GetLabels(), Annotations: s.Row.GetAnnotations(),
		RuntimeHandler: s.Row.GetRuntimeHandler(), Network: &runtimeapi.PodSandboxNetworkStatus{}, Linux: s.Status.GetLinux(),
	}
	return &g
}

// Forget tells the view that the Docker container id is gone for good, and all
// that belonged to it.
func (v *Cache) Forget(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tickets++
	v.forget(id, v.tickets)
}

// forgetOOM forgets why containers have ended that are gone.
func (v *Cache) forgetOOM() {
	if v.OOM == nil {
		return
	}
	v.mu.RLock()
	ids := maps.Clone(v.containers)
	v.mu.RUnlock()
	v.OOM.Forget(func(id string) bool { return ids[id] != nil })
}

// forget is Forget for what was gone at ticket, with v.mu held. A look that
// began before may come in yet, and must not bring it back.
func (v *Cache) forget(id string, ticket uint64) {
	v.removed[id] = ticket
	if e, ok := v.containers[id]; ok {
		delete(v.containers, id)
		v.tell(id, e.seen.Row.GetPodSandboxId(), end(e.emitted))
	}
	if e, ok := v.sandboxes[id]; ok {
		v.tell(id, id, end(e.emitted))
		delete(v.sandboxes, id)
	}
}
