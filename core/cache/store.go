// Package cache holds every pod sandbox and container in memory, so that list and
// status requests of the CRI need no call of the Docker Engine.
//
// Its main type is Cache. Run fills it by inspecting every container that berth or
// cri-dockerd has created, and keeps it current: by the Engine's events, by Refresh
// after each change that berth makes itself, by a periodic audit against the Engine's
// list, and by a full sync after each break of the event stream. Until the first sync
// with the current connection has finished, reads wait for a few seconds and then fail
// with Unavailable: nothing is answered that the Engine has not reported. Nothing in
// the cache is persistent.
//
// Every inspect has a generation. Of two results for the same container the one whose
// inspect began later wins; removed containers leave a tombstone for slow inspects.
package cache

import (
	"cmp"
	"context"
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
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/broadcast"
	"berth/core/cgroup"
	"berth/core/engine"
	"berth/core/eventlag"
	"berth/core/kmutex"
	"berth/core/logs/dockerlog"
	"berth/core/names"
	"berth/core/state"
	"berth/core/tocri"
)

// A Sandbox is the state of a pod's pause container at its last inspect. It is
// immutable: a change replaces it.
type Sandbox struct {
	Row    *runtimeapi.PodSandbox
	Status *runtimeapi.PodSandboxStatus
	Config *runtimeapi.PodSandboxConfig // without labels and annotations

	Name           string // in Docker
	State          string // State.Status of the Engine API, "" once the container is removed
	Pid            int    // of the pause process; 0 if it does not run, or if only a list entry is known
	Running        bool
	Runtime        string // HostConfig.Runtime of the Engine API
	CgroupParent   string // HostConfig.CgroupParent of the Engine API
	ShimGroup      string // podpolicy.ShimGroupOf the pause container, "" if it has none
	ProcessLabel   string // SELinux label of the pause process, "" without SELinux
	MountLabel     string // SELinux label of files that the pause process may write, "" without SELinux
	HostNetwork    bool
	Bridged        bool // on Docker's own network, as cri-dockerd and docker run create containers
	Attached       bool // to its network, for a pod that runs
	CreatedByBerth bool // created by berth rather than adopted from cri-dockerd

	StartedAt, FinishedAt int64 // Unix nanoseconds, 0 if it has not been started or has not finished
	// Orphaned reports that the container was removed, but not by berth. The sandbox stays in
	// the cache, not ready, until the kubelet has stopped and removed it, so that its
	// network is torn down.
	Orphaned bool
}

// ID returns the ID of the sandbox, which is that of its container in Docker.
func (s *Sandbox) ID() string { return s.Row.GetId() }

func (s *Sandbox) name() string { return s.Name }

// NotReadyReason says why the sandbox is not ready, "" if it is.
func (s *Sandbox) NotReadyReason() string {
	switch {
	case s.Row.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY:
		return ""
	case s.Orphaned:
		return "the pause container was removed, but not by berth"
	case s.State != container.StateRunning:
		return "the pause container is " + s.State
	case !s.Attached:
		return "the pod is not attached to its network"
	default:
		return "the pause process is not in the network namespace of the pod, as after a docker restart"
	}
}

// A Container is the state of a container of a pod at its last inspect. It is
// immutable: a change replaces it.
type Container struct {
	Row    *runtimeapi.Container
	Status *runtimeapi.ContainerStatus

	Name    string // in Docker
	State   string // State.Status of the Engine API
	Pid     int    // of its first process; 0 if it does not run, or if only a list entry is known
	Running bool
	TTY     bool
	LogFile dockerlog.File // of Docker
	// LogDirectory is the only directory below which the log file of the CRI may be, ""
	// if it is not known.
	LogDirectory   string
	Premount       names.Premount // of its premounts, if it has any
	CreatedByBerth bool           // created by berth rather than adopted from cri-dockerd

	// WritableLayer is the directory of the writable layer, "" if the Engine does not report it, as
	// with the containerd image store.
	WritableLayer string
	// Volumes are the directories of the anonymous volumes that the Engine has created, one
	// for each VOLUME of the image.
	Volumes []string
}

// ID returns the ID of the container, as in Docker.
func (c *Container) ID() string { return c.Row.GetId() }

func (c *Container) name() string { return c.Name }

// Network is what the cache needs to know about the networks of pods.
type Network interface {
	// Addresses returns the addresses of a pod and whether it is attached.
	Addresses(id string) (addrs []netip.Addr, attached bool, err error)
	// InNetNS reports whether the process pid is still in the network namespace that the
	// pod was attached in.
	InNetNS(id string, pid int) bool
}

// Config is what New needs besides the Engine.
type Config struct {
	Network Network
	// FailedStarts holds the times of failed starts, by container ID.
	FailedStarts *state.Bucket[tocri.FailedStart]
	// ContainerUpdates and SandboxUpdates hold resources that were changed after the creation
	// of a container or sandbox, by its ID.
	ContainerUpdates *state.Bucket[*runtimeapi.LinuxContainerResources]
	SandboxUpdates   *state.Bucket[*runtimeapi.UpdatePodSandboxResourcesRequest]
	// Logs is notified of every container that is inspected or removed.
	Logs Logs
	// OOM decides which containers were OOM killed. If it is nil, Docker's flag is used.
	OOM OOM
	// Metrics is where the metrics of the cache are registered. It may be nil.
	Metrics prometheus.Registerer
}

// Logs writes the log files of containers.
type Logs interface {
	// Observe is called with the new state of a container before it is in the cache, in the
	// order of the inspects. For a container that has exited it returns when its log is
	// complete, or after a short timeout.
	Observe(ctx context.Context, c *Container)
	// Discard is called when a container has been removed.
	Discard(id string)
}

// OOM finds out which containers the kernel has killed for lack of memory.
type OOM interface {
	// ExpectCgroup is called before the start of a container whose cgroup will be below parent,
	// and done after it.
	ExpectCgroup(id string, parent cgroup.Group) (done func())
	// Running is called with the first process of a running container.
	Running(id string, pid int)
	// Started, KillSent and Exited are called for Docker's events in their order: a start, a
	// SIGKILL that Docker has sent, an exit. EventsLost is called when some may have been lost.
	Started(id string)
	KillSent(id string)
	Exited(id string)
	EventsLost()
	// OOMKilled reports whether a container that has exited was OOM killed; flag is
	// State.OOMKilled of the Engine API.
	OOMKilled(ctx context.Context, id string, flag bool, exitCode int, finished time.Time) bool
	// Remove is called when a container has been removed, Forget after each sync to drop all
	// containers for which keep returns false.
	Remove(id string)
	Prune(keep func(id string) bool)
}

// A Cache holds the sandboxes and containers of the node. Run keeps it current. All
// methods may be called from several goroutines.
type Cache struct {
	network          Network
	failures         *state.Bucket[tocri.FailedStart]
	containerUpdates *state.Bucket[*runtimeapi.LinuxContainerResources]
	sandboxUpdates   *state.Bucket[*runtimeapi.UpdatePodSandboxResourcesRequest]
	logs             Logs
	oom              OOM // may be nil

	engine     *engine.Engine
	log        *slog.Logger
	lag        *eventlag.Lag
	applyLocks kmutex.Mutex // held while the result of an inspect is applied, by container ID

	mu          sync.RWMutex             // guards following
	generation  uint64                   // of the newest inspect or list
	inflight    map[uint64]bool          // generations of inspects and lists that have not been applied yet
	inspecting  map[string]chan struct{} // by ID; closed when the newest inspect of the container has been applied
	sandboxes   map[string]*entry[*Sandbox]
	containers  map[string]*entry[*Container]
	tombstones  map[string]uint64 // generations in which containers were found to be removed, by ID
	hidden      map[string]int    // how many callers hide a container, by Docker name
	ignored     map[string]bool   // IDs of containers for which warnIgnored has logged
	synced      *engine.Conn      // connection with which the last sync has finished
	syncChanged chan struct{}     // closed and replaced when synced changes
	everSynced  bool

	events broadcast.Broadcaster[*runtimeapi.ContainerEventResponse]
}

// cached is a *Sandbox or a *Container.
type cached interface {
	ID() string
	name() string
	timestamps() timestamps
}

// An entry is a cached value with the generation of its inspect.
type entry[T any] struct {
	value      T
	generation uint64
	fromList   bool        // only a list entry is known, which has no start time
	emitted    *timestamps // up to where transitions have been emitted, nil for none
}

// New returns an empty Cache, which Run fills.
func New(cfg Config, docker *engine.Engine, log *slog.Logger) *Cache {
	c := &Cache{
		network: cfg.Network, logs: cfg.Logs, oom: cfg.OOM,
		failures: cfg.FailedStarts, containerUpdates: cfg.ContainerUpdates, sandboxUpdates: cfg.SandboxUpdates,
		engine: docker, log: log, lag: eventlag.New(cfg.Metrics),

		inflight:    map[uint64]bool{},
		inspecting:  map[string]chan struct{}{},
		sandboxes:   map[string]*entry[*Sandbox]{},
		containers:  map[string]*entry[*Container]{},
		tombstones:  map[string]uint64{},
		hidden:      map[string]int{},
		ignored:     map[string]bool{},
		syncChanged: make(chan struct{}),
	}
	c.registerGauges(cfg.Metrics)
	return c
}

// syncTimeout is how long a read waits for the sync with an Engine that has just
// (re)connected.
const syncTimeout = 5 * time.Second

// Ready returns nil once the cache is in sync with the current connection to the Engine.
// Without a connection, or if the sync takes longer than five seconds, the error is of
// kind Unavailable.
func (c *Cache) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	for {
		c.mu.RLock()
		synced, changed := c.synced, c.syncChanged
		c.mu.RUnlock()
		conn, err := c.engine.Conn()
		switch {
		case err != nil:
			return err
		case synced == conn:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("docker: %w: its containers are still being inspected", errdefs.ErrUnavailable)
		}
	}
}

// ReconcileLoop is engine.ReconcileLoop with calls of do only while the cache is in sync.
func (c *Cache) ReconcileLoop(ctx context.Context, what string, wake <-chan struct{}, do func(context.Context, *engine.Conn) error) error {
	return c.engine.ReconcileLoop(ctx, engine.ReconcileConfig{Name: what, Ready: c.Ready, Wake: wake}, do)
}

// Sandboxes returns the sandboxes that match filter, the newest first; a nil filter
// matches all. Filters are those of ListPodSandbox; the ID may be a prefix.
func (c *Cache) Sandboxes(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*Sandbox, error) {
	return list(ctx, c, c.sandboxes, func(s *Sandbox) bool {
		return strings.HasPrefix(s.ID(), filter.GetId()) &&
			(filter.GetState() == nil || filter.GetState().GetState() == s.Row.GetState()) &&
			matchesLabels(filter.GetLabelSelector(), s.Row.GetLabels()) && c.hidden[s.Name] == 0
	})
}

// Containers returns the containers that match filter, the newest first; a nil filter
// matches all. Filters are those of ListContainers; IDs may be prefixes.
func (c *Cache) Containers(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*Container, error) {
	return list(ctx, c, c.containers, func(ctr *Container) bool {
		return strings.HasPrefix(ctr.ID(), filter.GetId()) &&
			strings.HasPrefix(ctr.Row.GetPodSandboxId(), filter.GetPodSandboxId()) &&
			(filter.GetState() == nil || filter.GetState().GetState() == ctr.Row.GetState()) &&
			matchesLabels(filter.GetLabelSelector(), ctr.Row.GetLabels()) && c.hidden[ctr.Name] == 0
	})
}

// ContainersOf returns the containers of the sandbox with the ID, including hidden ones.
func (c *Cache) ContainersOf(ctx context.Context, sandbox string) ([]*Container, error) {
	return list(ctx, c, c.containers, func(ctr *Container) bool { return ctr.Row.GetPodSandboxId() == sandbox })
}

// SandboxIDs returns the IDs of all sandboxes, including hidden ones.
func (c *Cache) SandboxIDs(ctx context.Context) ([]string, error) {
	if err := c.Ready(ctx); err != nil {
		return nil, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Collect(maps.Keys(c.sandboxes)), nil
}

// list returns the values that match, the newest first; those of the same age by ID, so
// that the order is stable. It calls match with c.mu held.
func list[T cached](ctx context.Context, c *Cache, entries map[string]*entry[T], match func(T) bool) ([]T, error) {
	if err := c.Ready(ctx); err != nil {
		return nil, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	var found []T
	for _, e := range entries {
		if match(e.value) {
			found = append(found, e.value)
		}
	}
	slices.SortFunc(found, func(a, b T) int {
		return cmp.Or(cmp.Compare(b.timestamps().created, a.timestamps().created), strings.Compare(a.ID(), b.ID()))
	})
	return found, nil
}

// matchesLabels reports whether labels has every pair of selector.
func matchesLabels(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Sandbox returns the sandbox with the ID, which may be a prefix. The error is of kind
// NotFound if no ID matches, and InvalidArgument if several do.
func (c *Cache) Sandbox(ctx context.Context, id string) (*Sandbox, error) {
	return find(ctx, c, "sandbox", c.sandboxes, id)
}

// Container returns the container with the ID, which may be a prefix. The error is of
// kind NotFound if no ID matches, and InvalidArgument if several do.
func (c *Cache) Container(ctx context.Context, id string) (*Container, error) {
	return find(ctx, c, "container", c.containers, id)
}

func find[T cached](ctx context.Context, c *Cache, kind string, entries map[string]*entry[T], id string) (none T, err error) {
	if err := c.Ready(ctx); err != nil {
		return none, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if e, ok := entries[id]; ok {
		return e.value, nil
	}
	var found []T
	for full, e := range entries {
		if id != "" && strings.HasPrefix(full, id) {
			found = append(found, e.value)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return none, fmt.Errorf("no %s %q: %w", kind, id, errdefs.ErrNotFound)
	default:
		return none, fmt.Errorf("%s ID %q is the prefix of %d IDs: %w", kind, id, len(found), errdefs.ErrInvalidArgument)
	}
}

// isStaleLocked reports whether the container id was applied, or found to be removed, in
// a generation after the given one.
func (c *Cache) isStaleLocked(id string, generation uint64) bool {
	s, isSandbox := c.sandboxes[id]
	ctr, isContainer := c.containers[id]
	return c.tombstones[id] > generation || isSandbox && s.generation > generation || isContainer && ctr.generation > generation
}

// storeLocked puts e into entries and emits what has changed, unless a newer value is
// known. sandbox is the ID of the sandbox that e is or belongs to.
func storeLocked[T cached](c *Cache, entries map[string]*entry[T], id, sandbox string, e *entry[T]) {
	if c.isStaleLocked(id, e.generation) {
		return
	}
	if old, ok := entries[id]; ok {
		e.emitted = old.emitted
		if e.emitted != nil && old.fromList && e.emitted.started != 0 {
			t := *e.emitted
			t.started = e.value.timestamps().started // a start was emitted already, with an estimated time
			e.emitted = &t
		}
	}
	entries[id] = e
	delete(c.tombstones, id) // Docker has the container again
	emitChangesLocked(c, e, id, sandbox)
}

// emitChangesLocked emits the transitions of e since those that were emitted last, unless
// e is hidden. During the first sync after the start of the daemon there are none.
func emitChangesLocked[T cached](c *Cache, e *entry[T], id, sandbox string) {
	if c.hidden[e.value.name()] > 0 {
		return
	}
	now := e.value.timestamps()
	if e.emitted != nil || c.everSynced {
		c.emitLocked(id, sandbox, diff(e.emitted, now))
	}
	e.emitted = &now
}

// stateLocked returns the state of the container id in the words of the Engine API, and
// its timestamps, as of its last inspect.
func (c *Cache) stateLocked(id string) (state string, times timestamps, ok bool) {
	if s, ok := c.sandboxes[id]; ok {
		return s.value.State, s.value.timestamps(), true
	}
	if ctr, ok := c.containers[id]; ok {
		return ctr.value.State, ctr.value.timestamps(), true
	}
	return "", timestamps{}, false
}

// handleMissing marks the container id as removed, because an inspect or list of the
// given generation did not find it.
func (c *Cache) handleMissing(id string, generation uint64) {
	if c.markRemoved(id, generation) {
		c.notifyRemoved(id)
	}
}

// notifyRemoved tells Logs and OOM that the container id is removed. Logs may do disk I/O.
func (c *Cache) notifyRemoved(id string) {
	c.logs.Discard(id)
	if c.oom != nil {
		c.oom.Remove(id)
	}
}

// markRemoved removes the container id from the cache and leaves a tombstone; a sandbox
// becomes an orphan instead. It returns false if a newer inspect has found the container.
func (c *Cache) markRemoved(id string, generation uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isStaleLocked(id, generation) {
		return false
	}
	e, isSandbox := c.sandboxes[id]
	if !isSandbox {
		c.forgetLocked(id, generation)
		return true
	}
	s := e.value
	if !s.Orphaned {
		s = orphaned(s)
	}
	c.sandboxes[id] = &entry[*Sandbox]{value: s, generation: generation, emitted: e.emitted}
	emitChangesLocked(c, c.sandboxes[id], id, id)
	return true
}

// orphaned returns a copy of s as it is after somebody else has removed its container.
func orphaned(s *Sandbox) *Sandbox {
	o := *s
	o.Orphaned, o.State, o.Running, o.Pid = true, "", false, 0
	if o.FinishedAt == 0 {
		o.FinishedAt = time.Now().UnixNano()
	}
	o.Row, o.Status = proto.CloneOf(s.Row), proto.CloneOf(s.Status)
	o.Row.State, o.Status.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY, runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	o.Status.Network = &runtimeapi.PodSandboxNetworkStatus{}
	return &o
}

// Forget removes the container or sandbox id from the cache. It is called after berth has
// removed it from Docker.
func (c *Cache) Forget(id string) {
	c.mu.Lock()
	c.generation++
	c.forgetLocked(id, c.generation)
	c.mu.Unlock()
	if c.oom != nil {
		c.oom.Remove(id) // Docker's event of the removal may be late or lost
	}
}

// forgetLocked removes id and leaves a tombstone, so that the result of an inspect that
// began before the given generation does not bring it back.
func (c *Cache) forgetLocked(id string, generation uint64) {
	c.tombstones[id] = generation
	if e, ok := c.containers[id]; ok {
		delete(c.containers, id)
		c.emitLocked(id, e.value.Row.GetPodSandboxId(), diffRemoved(e.emitted))
	}
	if e, ok := c.sandboxes[id]; ok {
		c.emitLocked(id, id, diffRemoved(e.emitted))
		delete(c.sandboxes, id)
	}
}
