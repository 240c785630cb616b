// Package stats serves the statistics and metrics of pods and containers: the CRI calls
// ContainerStats, ListContainerStats, PodSandboxStats, ListPodSandboxStats,
// ListMetricDescriptors and ListPodSandboxMetrics, and the same metrics on a Prometheus
// registry.
//
// Service reads cgroup files and /proc during the call (core/stats/cgroupstats), unless they
// were read for a list within the last second (readings.go), and encodes a Reading either as
// CRI statistics (cristats.go) or as CRI metrics (metrics.go, families.go). It makes no Engine
// call. Two things are measured in the background: disk usage (core/stats/diskusage, Run) and
// rates of CPU time (RunSampling).
//
// A container or pod that ends during a list call is left out of it, unless it was read within
// the last second; one that cannot be read is left out with a warning.
package stats

import (
	"context"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/core/engine"
	"berth/core/panics"
	"berth/core/stats/cgroupstats"
	"berth/core/stats/diskusage"
)

// A Service serves statistics and metrics. Run and RunSampling do its background work.
type Service struct {
	docker *engine.Engine
	cache  *cache.Cache
	disk   *diskusage.Tracker
	fds    *cgroupstats.FDCounter
	log    *slog.Logger

	// fdBudget is how long one scrape counts open files, of all containers together.
	fdBudget time.Duration

	readings readings

	mu     sync.Mutex // guards following
	groups map[procKey]cgroup.Group
	rates  map[string]cpuRate // by container or sandbox ID, or podSumKey
}

// A procKey identifies the first process of a container or sandbox. PIDs are reused.
type procKey struct {
	id  string
	pid int
}

// New returns a Service for the pods and containers in c.
func New(docker *engine.Engine, c *cache.Cache, log *slog.Logger) *Service {
	return &Service{
		docker: docker, cache: c, disk: diskusage.New(docker, c, log), fds: cgroupstats.NewFDCounter(), log: log,
		fdBudget: fdBudgetTimeout, groups: map[procKey]cgroup.Group{}, rates: map[string]cpuRate{},
	}
}

// Run measures the disk usage of containers until ctx ends.
func (s *Service) Run(ctx context.Context) error { return s.disk.Run(ctx) }

// DiskUsageTotals returns how many bytes and inodes all containers have written to disk, as last
// measured, and how many of the bytes are in their writable layers.
func (s *Service) DiskUsageTotals() (bytes, inodes, layerBytes uint64) { return s.disk.Totals() }

var (
	readyFilter   = &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	runningFilter = &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
)

// Container returns the statistics of the container id; the error is of kind NotFound if
// there is none. A container that is not running has only those of its writable layer.
func (s *Service) Container(ctx context.Context, id string) (*runtimeapi.ContainerStats, error) {
	c, err := s.cache.Container(ctx, id)
	if err != nil {
		return nil, err
	}
	stats, err := s.containerStats(c, 0)
	if cgroupstats.IsExited(err) {
		return s.exitedStats(c), nil
	}
	return stats, err
}

// Containers returns the statistics of the running containers that match filter; a nil
// filter matches all.
func (s *Service) Containers(ctx context.Context, filter *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	list, err := s.cache.Containers(ctx, &runtimeapi.ContainerFilter{
		Id: filter.GetId(), PodSandboxId: filter.GetPodSandboxId(), LabelSelector: filter.GetLabelSelector(),
		State: runningFilter,
	})
	if err != nil {
		return nil, err
	}
	return parallelMap(s.log, list, func(c *cache.Container) *runtimeapi.ContainerStats {
		if stats := s.appendStats(nil, c, readingTTL); len(stats) > 0 {
			return stats[0]
		}
		return nil
	}), nil
}

// appendStats appends the statistics of a container to list, unless it does not run any more.
func (s *Service) appendStats(list []*runtimeapi.ContainerStats, c *cache.Container, maxAge time.Duration) []*runtimeapi.ContainerStats {
	stats, err := s.containerStats(c, maxAge)
	if err == nil {
		return append(list, stats)
	}
	if !cgroupstats.IsExited(err) {
		s.log.Warn("statistics of a container cannot be read, container left out", slog.String("container", c.ID()), slog.Any("err", err))
	}
	return list
}

// Sandbox returns the statistics of the pod with the sandbox id; the error is of kind
// NotFound if there is none. A pod that is not running has none but its attributes.
func (s *Service) Sandbox(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	pod, err := s.cache.Sandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	list, err := s.cache.Containers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: pod.ID(), State: runningFilter})
	if err != nil {
		return nil, err
	}
	stats, err := s.podStats(pod, list, 0)
	if cgroupstats.IsExited(err) {
		return &runtimeapi.PodSandboxStats{Attributes: podAttributes(pod), Linux: &runtimeapi.LinuxPodSandboxStats{}}, nil
	}
	return stats, err
}

// Sandboxes returns the statistics of the ready pods that match filter; a nil filter
// matches all.
func (s *Service) Sandboxes(ctx context.Context, filter *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	list, containersOf, err := s.pods(ctx, &runtimeapi.PodSandboxFilter{Id: filter.GetId(), LabelSelector: filter.GetLabelSelector(), State: readyFilter})
	if err != nil {
		return nil, err
	}
	return parallelMap(s.log, list, func(pod *cache.Sandbox) *runtimeapi.PodSandboxStats {
		stats, err := s.podStats(pod, containersOf[pod.ID()], readingTTL)
		if err != nil {
			if !cgroupstats.IsExited(err) {
				s.log.Warn("statistics of a pod cannot be read, pod left out", slog.String("sandbox", pod.ID()), slog.Any("err", err))
			}
			return nil
		}
		return stats
	}), nil
}

// pods returns the pods that match filter, and all running containers by sandbox ID.
func (s *Service) pods(ctx context.Context, filter *runtimeapi.PodSandboxFilter) (list []*cache.Sandbox, containersOf map[string][]*cache.Container, err error) {
	list, err = s.cache.Sandboxes(ctx, filter)
	if err != nil {
		return nil, nil, err
	}
	all, err := s.cache.Containers(ctx, &runtimeapi.ContainerFilter{State: runningFilter})
	if err != nil {
		return nil, nil, err
	}
	slices.SortStableFunc(all, func(a, b *cache.Container) int {
		return strings.Compare(a.Row.GetPodSandboxId(), b.Row.GetPodSandboxId())
	})
	containersOf = make(map[string][]*cache.Container, len(list))
	for begin := 0; begin < len(all); {
		id, end := all[begin].Row.GetPodSandboxId(), begin
		for end < len(all) && all[end].Row.GetPodSandboxId() == id {
			end++
		}
		containersOf[id] = all[begin:end:end]
		begin = end
	}
	return list, containersOf, nil
}

// maxReaders is how many pods or containers are read at a time: the node's CPUs are for
// the pods.
const maxReaders = 2

// parallelMap returns the results of read for the elements of list, in their order and
// without nils. An element for which read panics is left out.
func parallelMap[T, R any](log *slog.Logger, list []T, read func(T) *R) []*R {
	all := make([]*R, len(list))
	var started atomic.Int64
	g := panics.NewGroup(log)
	for range min(maxReaders, len(list)) {
		g.Go(func() error {
			for i := started.Add(1) - 1; i < int64(len(list)); i = started.Add(1) - 1 {
				_ = panics.Try(log, func() error { // Try logs a panic; the others are read
					all[i] = read(list[i])
					return nil
				})
			}
			return nil
		})
	}
	_ = g.Wait()
	return slices.DeleteFunc(all, func(r *R) bool { return r == nil })
}

// group returns the cgroup of the container or sandbox id with the first process pid, 0
// if it is not running.
func (s *Service) group(id string, pid int) (cgroup.Group, error) {
	key := procKey{id, pid}
	if pid == 0 {
		return cgroup.Group{}, fs.ErrNotExist
	}
	s.mu.Lock()
	g, ok := s.groups[key]
	s.mu.Unlock()
	if ok {
		return g, nil
	}
	g, err := cgroup.ForContainer(pid, id)
	if err != nil {
		return g, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups[key] = g
	return g, nil
}

// hasOwnCgroup reports whether a pod has a cgroup for all its containers. The kubelet
// creates one unless cgroupsPerQOS is off; crictl does not.
func hasOwnCgroup(pod *cache.Sandbox) bool { return pod.Config.GetLinux().GetCgroupParent() != "" }

func podAttributes(pod *cache.Sandbox) *runtimeapi.PodSandboxAttributes {
	return &runtimeapi.PodSandboxAttributes{
		Id: pod.ID(), Metadata: pod.Row.GetMetadata(), Labels: pod.Row.GetLabels(), Annotations: pod.Row.GetAnnotations(),
	}
}
