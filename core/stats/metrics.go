package stats

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/core/stats/cgroupstats"
	"berth/core/stats/diskusage"
	"berth/network/netns"
)

// fdBudgetTimeout is how long one scrape counts open files, of all containers together.
// Containers that are not reached in time keep their last count.
const fdBudgetTimeout = 2 * time.Second

// A metric is one value of a family.
type metric struct {
	family      *family
	labelValues []string // in the order of family.labelKeys
	value       uint64
}

// podMetrics are the metrics of a pod and of its containers.
type podMetrics struct {
	sandboxID  string
	pod        []metric
	containers []containerMetrics
}

type containerMetrics struct {
	id      string
	metrics []metric
}

// A scrape is what has been read of a pod or container at one time; the families make
// metrics of it.
type scrape struct {
	// cgroup is nil for a pod without a cgroup of its own, which has only those families
	// that do not need it.
	cgroup     *cgroupstats.Reading
	at         time.Time
	startedAt  int64 // Unix nanoseconds
	interfaces []netns.Counters

	// The fields below are set for containers only.

	processes     uint64
	fds           *cgroupstats.FDs // nil before the first count
	openFileLimit *uint64          // of the first process, nil for no limit
	diskUsage     *diskusage.Usage // nil before the first measurement
	filesystem    *cgroupstats.Filesystem
	resources     *runtimeapi.LinuxContainerResources // as the kubelet has set them
}

// Descriptors returns the descriptors of the metrics that Metrics returns on this node.
// They never change.
func (s *Service) Descriptors() []*runtimeapi.MetricDescriptor {
	var all []*runtimeapi.MetricDescriptor
	for _, f := range supportedFamilies(cgroupstats.ThisHost()) {
		all = append(all, &runtimeapi.MetricDescriptor{Name: f.name, Help: f.help, LabelKeys: f.labelKeys()})
	}
	return all
}

// supportedFamilies returns the families for which h has values.
func supportedFamilies(h cgroupstats.Host) (supported []*family) {
	for _, f := range families {
		if f.needs == nil || f.needs(h) {
			supported = append(supported, f)
		}
	}
	return supported
}

// Metrics returns the metrics of all ready pods and their running containers.
func (s *Service) Metrics(ctx context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	list, err := s.scrapeAll(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]*runtimeapi.PodSandboxMetrics, 0, len(list))
	for _, p := range list {
		out := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.sandboxID, Metrics: encodeMetrics(p.pod)}
		for _, c := range p.containers {
			out.ContainerMetrics = append(out.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: c.id, Metrics: encodeMetrics(c.metrics)})
		}
		all = append(all, out)
	}
	return all, nil
}

// encodeMetrics converts to the CRI's type. The timestamp is left at 0, which the kubelet
// takes for the time of the scrape.
func encodeMetrics(list []metric) []*runtimeapi.Metric {
	all := make([]*runtimeapi.Metric, 0, len(list))
	for _, m := range list {
		value := m.value
		if m.family.nanos {
			value /= uint64(time.Second)
		}
		all = append(all, &runtimeapi.Metric{Name: m.family.name, MetricType: m.family.kind, LabelValues: m.labelValues, Value: uint64Value(value)})
	}
	return all
}

// scrapeAll reads all ready pods. If ctx ends before all are read, it returns those that
// are.
func (s *Service) scrapeAll(ctx context.Context) ([]*podMetrics, error) {
	list, containersOf, err := s.pods(ctx, &runtimeapi.PodSandboxFilter{State: readyFilter})
	if err != nil {
		return nil, err
	}
	docker, err := s.docker.LastConn()
	if err != nil {
		return nil, err
	}
	shared := scrapeContext{families: supportedFamilies(cgroupstats.ThisHost()), until: time.Now().Add(s.fdBudget)}
	shared.filesystem, err = cgroupstats.ReadFilesystem(docker.Features.ImageFS())
	if err != nil { // e.g. another user's directory; the other metrics do not need it
		s.log.Debug("no metrics of the file system of images and containers", slog.Any("err", err))
	}
	all := parallelMap(s.log, list, func(pod *cache.Sandbox) *podMetrics {
		if ctx.Err() != nil {
			return nil
		}
		return s.scrapePod(ctx, pod, containersOf[pod.ID()], shared)
	})
	if ctx.Err() != nil {
		s.log.Warn("metrics of some pods are missing: reading them took too long", slog.Int("pods", len(list)), slog.Int("read", len(all)))
	}
	return dropDuplicates(all), nil
}

// A scrapeContext is what is the same for all pods of one scrape.
type scrapeContext struct {
	families   []*family
	filesystem *cgroupstats.Filesystem // nil if it cannot be read
	until      time.Time               // when slow reads must end
}

// dropDuplicates drops metrics of pods that have the same labels as earlier ones, which
// two sandboxes in the cgroup of one pod have: a Prometheus server rejects a whole scrape
// with duplicates.
func dropDuplicates(all []*podMetrics) []*podMetrics {
	seen := map[string]bool{}
	for _, p := range all {
		p.pod = slices.DeleteFunc(p.pod, func(m metric) bool {
			key := m.family.name + "\x00" + strings.Join(m.labelValues, "\x00")
			duplicate := seen[key]
			seen[key] = true
			return duplicate
		})
	}
	return all
}

// scrapePod reads one pod and its containers; nil if it has ended.
func (s *Service) scrapePod(ctx context.Context, pod *cache.Sandbox, containers []*cache.Container, shared scrapeContext) *podMetrics {
	g, err := s.group(pod.ID(), pod.Pid)
	if err != nil {
		s.logLeftOut("sandbox", pod.ID(), err)
		return nil
	}
	sc := &scrape{at: time.Now(), startedAt: pod.StartedAt}
	if hasOwnCgroup(pod) {
		var kept keptReading
		kept, err = s.read(cgroupKey{procKey{pod.ID(), pod.Pid}, true}, g, cgroupstats.All, readingTTL)
		g, sc.cgroup = kept.group, kept.reading
	}
	if err == nil && !pod.HostNetwork {
		sc.interfaces, err = podInterfaces(pod.Pid)
	}
	if err != nil {
		s.logLeftOut("sandbox", pod.ID(), err)
		return nil
	}
	meta := pod.Row.GetMetadata()
	out := &podMetrics{sandboxID: pod.ID()}
	for _, f := range shared.families {
		if f.subject&onPods != 0 && (sc.cgroup != nil || !f.needsCgroup()) {
			out.pod = f.collect(out.pod, sc, g.Path(), "", meta.GetNamespace(), meta.GetName(), "")
		}
	}
	for _, c := range containers {
		if ctx.Err() != nil {
			break
		}
		sc, path, err := s.scrapeContainer(ctx, c, shared)
		if err != nil {
			s.logLeftOut("container", c.ID(), err)
			continue
		}
		own := containerMetrics{id: c.ID()}
		for _, f := range shared.families {
			if f.subject&onContainers != 0 {
				own.metrics = f.collect(own.metrics, sc, path, imageName(c), meta.GetNamespace(), meta.GetName(), c.Row.GetMetadata().GetName())
			}
		}
		out.containers = append(out.containers, own)
	}
	return out
}

// imageName returns the name of a container's image as the pod spec has it, where known.
func imageName(c *cache.Container) string {
	if name := c.Row.GetImage().GetUserSpecifiedImage(); name != "" {
		return name
	}
	return c.Row.GetImage().GetImage()
}

// logLeftOut logs why metrics of an object are missing, unless it has just ended.
func (s *Service) logLeftOut(kind, id string, err error) {
	if !cgroupstats.IsExited(err) {
		s.log.Warn("metrics cannot be read, left out", slog.String(kind, id), slog.Any("err", err))
	}
}

// scrapeContainer reads one container and returns the path of its cgroup as well.
func (s *Service) scrapeContainer(ctx context.Context, c *cache.Container, shared scrapeContext) (*scrape, string, error) {
	g, err := s.group(c.ID(), c.Pid)
	if err != nil {
		return nil, "", err
	}
	sc := &scrape{at: time.Now(), startedAt: c.Status.GetStartedAt(), filesystem: shared.filesystem, resources: c.Status.GetResources().GetLinux()}
	kept, err := s.read(cgroupKey{procKey: procKey{c.ID(), c.Pid}}, g, cgroupstats.All, readingTTL)
	if err != nil {
		return nil, "", err
	}
	sc.cgroup = kept.reading
	if sc.openFileLimit, err = cgroupstats.OpenFileLimit(c.Pid); err != nil {
		return nil, "", err
	}
	pids, err := cgroup.Processes(g)
	if err != nil {
		return nil, "", err
	}
	sc.processes = uint64(len(pids))
	sc.fds = s.fds.Count(ctx, c.ID(), pids, shared.until)
	if sc.diskUsage = s.disk.Last(c.ID()); sc.diskUsage == nil && time.Now().Before(shared.until) {
		// critest expects container_fs_usage_bytes as soon as a container runs.
		sc.diskUsage = s.disk.MeasureFirst(ctx, c)
	}
	// A container that exited while it was read would have zeros.
	_, err = os.Stat("/proc/" + strconv.Itoa(c.Pid))
	return sc, g.Path(), err
}
