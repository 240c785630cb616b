package stats

import (
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/core/panics"
	"berth/core/stats/cgroupstats"
	"berth/core/stats/diskusage"
	"berth/network/netns"
)

// containerStats returns the statistics of a running container, which are no older than maxAge and must not be
// changed.
func (s *Service) containerStats(c *cache.Container, maxAge time.Duration) (*runtimeapi.ContainerStats, error) {
	g, err := s.group(c.ID(), c.Pid)
	if err != nil {
		return nil, err
	}
	key := cgroupKey{procKey: procKey{c.ID(), c.Pid}}
	kept, err := s.read(key, g, cgroupstats.Usage, maxAge)
	if err != nil {
		return nil, err
	}
	layer := s.disk.Last(c.ID())
	if a := kept.container; a != nil && a.container == c && a.layer == layer {
		return a.stats, nil
	}
	r, stats := kept.reading, s.exitedStats(c)
	stats.Cpu = s.cpuUsage(r, c.ID())
	stats.Memory, stats.Swap, stats.Io = memoryUsage(r), swapUsage(r), ioUsage(r)
	s.keepContainer(key, r, &containerAnswer{c, layer, stats})
	return stats, nil
}

// exitedStats returns the statistics of a container that is not running.
func (s *Service) exitedStats(c *cache.Container) *runtimeapi.ContainerStats {
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id: c.ID(), Metadata: c.Row.GetMetadata(), Labels: c.Row.GetLabels(), Annotations: c.Row.GetAnnotations(),
		},
		WritableLayer: s.writableLayer(c.ID()),
	}
}

// writableLayer returns the disk usage of a container, nil before the first measurement:
// the kubelet would take 0 for a measured value.
func (s *Service) writableLayer(id string) *runtimeapi.FilesystemUsage {
	docker, err := s.docker.LastConn()
	if err != nil {
		return nil
	}
	return filesystemUsage(s.disk.Last(id), docker.Features.ImageFS())
}

// podStats returns the statistics of a pod with the given running containers, which are no older than maxAge and
// must not be changed. Those of the pod itself are of its cgroup, which also counts what the kubelet does for the
// pod. A pod without a cgroup of its own has the sums over its pause process and containers.
func (s *Service) podStats(pod *cache.Sandbox, containers []*cache.Container, maxAge time.Duration) (*runtimeapi.PodSandboxStats, error) {
	g, err := s.group(pod.ID(), pod.Pid)
	if err != nil {
		return nil, err
	}
	key := cgroupKey{procKey{pod.ID(), pod.Pid}, hasOwnCgroup(pod)}
	kept, err := s.read(key, g, cgroupstats.PodUsage, maxAge)
	if err != nil {
		return nil, err
	}
	list := make([]*runtimeapi.ContainerStats, 0, len(containers))
	for _, c := range containers {
		_ = panics.Try(s.log, func() error { // Try logs a panic; the others are read
			list = s.appendStats(list, c, maxAge)
			return nil
		})
	}
	if known := kept.pod.of(pod, list); known != nil {
		return known, nil
	}
	stats := &runtimeapi.LinuxPodSandboxStats{Containers: list}
	s.addCgroupStats(stats, kept.reading, pod)
	if !hasOwnCgroup(pod) {
		s.addSummedStats(stats, pod, containers)
	}
	if !pod.HostNetwork {
		interfaces, err := podInterfaces(pod.Pid)
		if err != nil {
			return nil, err
		}
		stats.Network = networkUsage(interfaces)
	}
	out := &runtimeapi.PodSandboxStats{Attributes: podAttributes(pod), Linux: stats}
	s.keepPod(key, kept.reading, &podAnswer{pod, out})
	return out, nil
}

// addCgroupStats adds to stats those of a reading of a pod's cgroup.
func (s *Service) addCgroupStats(stats *runtimeapi.LinuxPodSandboxStats, r *cgroupstats.Reading, pod *cache.Sandbox) {
	stats.Cpu, stats.Memory, stats.Io = s.cpuUsage(r, pod.ID()), memoryUsage(r), ioUsage(r)
	stats.Process = &runtimeapi.ProcessUsage{Timestamp: r.At.UnixNano(), ProcessCount: uint64Value(r.Threads)}
}

// addSummedStats adds to the statistics of the pause process of a pod, which stats has, those of its containers,
// which stats has as well.
func (s *Service) addSummedStats(stats *runtimeapi.LinuxPodSandboxStats, pod *cache.Sandbox, containers []*cache.Container) {
	stats.Io = nil
	stats.Memory.AvailableBytes = nil          // the pod has no limit
	stats.Cpu.Psi, stats.Memory.Psi = nil, nil // pressure cannot be summed
	for _, c := range stats.GetContainers() {
		addTo(stats.Cpu.GetUsageCoreNanoSeconds(), c.GetCpu().GetUsageCoreNanoSeconds())
		addTo(stats.Memory.GetUsageBytes(), c.GetMemory().GetUsageBytes())
		addTo(stats.Memory.GetWorkingSetBytes(), c.GetMemory().GetWorkingSetBytes())
		addTo(stats.Memory.GetRssBytes(), c.GetMemory().GetRssBytes())
		addTo(stats.Memory.GetPageFaults(), c.GetMemory().GetPageFaults())
		addTo(stats.Memory.GetMajorPageFaults(), c.GetMemory().GetMajorPageFaults())
	}
	stats.Cpu.UsageNanoCores = s.updateRate(podSumKey(pod.ID()), time.Unix(0, stats.Cpu.GetTimestamp()), stats.Cpu.GetUsageCoreNanoSeconds().GetValue())
	for _, c := range containers {
		g, err := s.group(c.ID(), c.Pid)
		if err != nil {
			continue // exited
		}
		if n, err := cgroupstats.Threads(g); err == nil {
			stats.Process.ProcessCount.Value += n
		}
	}
}

func addTo(sum, n *runtimeapi.UInt64Value) {
	if sum != nil {
		sum.Value += n.GetValue()
	}
}

func uint64Value(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

// cpuUsage encodes r, with the rate of the CPU time that is kept for id.
func (s *Service) cpuUsage(r *cgroupstats.Reading, id string) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{
		Timestamp: r.At.UnixNano(), UsageCoreNanoSeconds: uint64Value(r.CPU.Total), UsageNanoCores: s.updateRate(id, r.At, r.CPU.Total),
		Psi: psiStats(r.Pressure.CPU),
	}
}

func memoryUsage(r *cgroupstats.Reading) *runtimeapi.MemoryUsage {
	m := r.Memory
	usage := &runtimeapi.MemoryUsage{
		Timestamp: r.At.UnixNano(), UsageBytes: uint64Value(m.Usage), WorkingSetBytes: uint64Value(m.WorkingSet()),
		RssBytes: uint64Value(m.RSS), PageFaults: uint64Value(m.PageFaults), MajorPageFaults: uint64Value(m.MajorPageFaults),
		Psi: psiStats(r.Pressure.Memory),
	}
	if m.Limit != cgroup.Unlimited {
		usage.AvailableBytes = uint64Value(m.Limit - min(m.Limit, m.WorkingSet()))
	}
	return usage
}

func swapUsage(r *cgroupstats.Reading) *runtimeapi.SwapUsage {
	return &runtimeapi.SwapUsage{
		Timestamp: r.At.UnixNano(), SwapUsageBytes: uint64Value(r.Memory.Swap),
		SwapAvailableBytes: uint64Value(min(r.Memory.SwapHeadroom, cgroupstats.FreeSwap())),
	}
}

// ioUsage returns nil where there is no I/O pressure, which is all that IoUsage has.
func ioUsage(r *cgroupstats.Reading) *runtimeapi.IoUsage {
	psi := psiStats(r.Pressure.IO)
	if psi == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: r.At.UnixNano(), Psi: psi}
}

func psiStats(p *cgroupstats.PSI) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	return &runtimeapi.PsiStats{Some: psiData(p.Some), Full: psiData(p.Full)}
}

func psiData(p *cgroup.Pressure) *runtimeapi.PsiData {
	if p == nil {
		return nil
	}
	return &runtimeapi.PsiData{Total: p.Total, Avg10: p.Avg10, Avg60: p.Avg60, Avg300: p.Avg300}
}

// filesystemUsage encodes a measurement, which may be nil, on the file system that is
// mounted at mountpoint.
func filesystemUsage(u *diskusage.Usage, mountpoint string) *runtimeapi.FilesystemUsage {
	if u == nil {
		return nil
	}
	usage := &runtimeapi.FilesystemUsage{
		Timestamp: u.At.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: mountpoint}, UsedBytes: uint64Value(u.Bytes),
	}
	if u.HasInodes {
		usage.InodesUsed = uint64Value(u.Inodes)
	}
	return usage
}

// defaultInterface is the name that CRI runtimes give to the pod's interface in the CNI
// network.
const defaultInterface = "eth0"

// maxInterfaces bounds how many interfaces of a pod are reported: a privileged pod can
// create any number, and each has several metrics.
const maxInterfaces = 64

// podInterfaces reads the counters of a pod's interfaces from /proc/PID/net/dev, at most
// maxInterfaces of them.
func podInterfaces(pid int) ([]netns.Counters, error) {
	all, err := netns.Traffic(pid)
	return limitInterfaces(all), err
}

// limitInterfaces returns at most maxInterfaces of all, the default interface among them.
func limitInterfaces(all []netns.Counters) []netns.Counters {
	if len(all) <= maxInterfaces {
		return all
	}
	if i := slices.IndexFunc(all, func(c netns.Counters) bool { return c.Name == defaultInterface }); i > 0 {
		all[0], all[i] = all[i], all[0]
	}
	return all[:maxInterfaces]
}

// networkUsage returns nil for a pod without the default interface, which is so while its
// network is torn down: kubelet 1.37 with the feature gate PodAndContainerStatsFromCRI
// crashes on network statistics without DefaultInterface.
func networkUsage(interfaces []netns.Counters) *runtimeapi.NetworkUsage {
	usage := &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for _, c := range interfaces {
		i := &runtimeapi.NetworkInterfaceUsage{
			Name: c.Name, RxBytes: uint64Value(c.RxBytes), RxErrors: uint64Value(c.RxErrors), TxBytes: uint64Value(c.TxBytes), TxErrors: uint64Value(c.TxErrors),
		}
		if c.Name == defaultInterface {
			usage.DefaultInterface = i
		} else {
			usage.Interfaces = append(usage.Interfaces, i)
		}
	}
	if usage.DefaultInterface == nil {
		return nil
	}
	return usage
}
