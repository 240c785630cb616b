package stats

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/network/netns"
)

// container reads what a running container uses.
func (s *Service) container(c *cache.Container) (*runtimeapi.ContainerStats, error) {
	g, err := s.group(c.ID(), c.Pid)
	if err != nil {
		return nil, err
	}
	used := s.atRest(c)
	if used.Cpu, err = s.cpu(g, c.ID()); err != nil {
		return nil, err
	}
	if used.Memory, used.Swap, err = memory(g); err != nil {
		return nil, err
	}
	used.Io, err = io(g)
	return used, err
}

// atRest is what is known of a container that does not run.
func (s *Service) atRest(c *cache.Container) *runtimeapi.ContainerStats {
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id: c.ID(), Metadata: c.Row.GetMetadata(), Labels: c.Row.GetLabels(), Annotations: c.Row.GetAnnotations(),
		},
		WritableLayer: s.writable(c.ID()),
	}
}

func podAttributes(pod *cache.Sandbox) *runtimeapi.PodSandboxAttributes {
	return &runtimeapi.PodSandboxAttributes{
		Id: pod.ID(), Metadata: pod.Row.GetMetadata(), Labels: pod.Row.GetLabels(), Annotations: pod.Row.GetAnnotations(),
	}
}

// sandbox reads what a pod of the containers in list uses: what its cgroup says, which counts what the
// kubelet does for it as well. A pod without a cgroup of its own, as crictl
// makes them, uses what its processes do.
func (s *Service) sandbox(pod *cache.Sandbox, list []*cache.Container) (*runtimeapi.PodSandboxStats, error) {
	g, err := s.group(pod.ID(), pod.Pid)
	if err != nil {
		return nil, err
	}
	used := &runtimeapi.LinuxPodSandboxStats{Containers: s.each(list)}
	if pod.Config.GetLinux().GetCgroupParent() != "" {
		err = s.ofGroup(used, g.Parent(), pod)
	} else {
		err = s.ofSum(used, g, pod, list)
	}
	if err != nil {
		return nil, err
	}
	if !pod.HostNetwork {
		if used.Network, err = traffic(pod.Pid); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.PodSandboxStats{Attributes: podAttributes(pod), Linux: used}, nil
}

// ofGroup fills used with what the cgroup of a pod says.
func (s *Service) ofGroup(used *runtimeapi.LinuxPodSandboxStats, g cgroup.Group, pod *cache.Sandbox) (err error) {
	if used.Cpu, err = s.cpu(g, pod.ID()); err != nil {
		return err
	}
	if used.Memory, _, err = memory(g); err != nil {
		return err
	}
	if used.Io, err = io(g); err != nil {
		return err
	}
	count, err := processes(g)
	if err != nil {
		return err
	}
	used.Process = &runtimeapi.ProcessUsage{Timestamp: time.Now().UnixNano(), ProcessCount: number(count)}
	return nil
}

// ofSum fills used with what the processes of a pod use together: its pause
// process, with cgroup g, and its containers.
func (s *Service) ofSum(used *runtimeapi.LinuxPodSandboxStats, g cgroup.Group, pod *cache.Sandbox, list []*cache.Container) error {
	own := &runtimeapi.LinuxPodSandboxStats{}
	if err := s.ofGroup(own, g, pod); err != nil {
		return err
	}
	used.Cpu, used.Memory, used.Process = own.GetCpu(), own.GetMemory(), own.GetProcess()
	used.Memory.AvailableBytes = nil
	// Pressure cannot be summed up.
	used.Cpu.Psi, used.Memory.Psi = nil, nil
	for _, c := range used.GetContainers() {
		add(used.Cpu.GetUsageCoreNanoSeconds(), c.GetCpu().GetUsageCoreNanoSeconds())
		add(used.Memory.GetUsageBytes(), c.GetMemory().GetUsageBytes())
		add(used.Memory.GetWorkingSetBytes(), c.GetMemory().GetWorkingSetBytes())
		add(used.Memory.GetRssBytes(), c.GetMemory().GetRssBytes())
		add(used.Memory.GetPageFaults(), c.GetMemory().GetPageFaults())
		add(used.Memory.GetMajorPageFaults(), c.GetMemory().GetMajorPageFaults())
	}
	used.Cpu.UsageNanoCores = s.speed(pod.ID()+"/sum", time.Unix(0, used.Cpu.GetTimestamp()), used.Cpu.GetUsageCoreNanoSeconds().GetValue())
	for _, c := range list {
		g, err := s.group(c.ID(), c.Pid)
		if err != nil {
			continue // ended
		}
		if n, err := processes(g); err == nil {
			used.Process.ProcessCount.Value += n
		}
	}
	return nil
}

func add(to, n *runtimeapi.UInt64Value) {
	if to != nil {
		to.Value += n.GetValue()
	}
}

func number(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

// cpu reads the CPU time that g has used. It is known as id.
func (s *Service) cpu(g cgroup.Group, id string) (*runtimeapi.CpuUsage, error) {
	at := time.Now()
	used, err := cpuTime(g)
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.CpuUsage{
		Timestamp: at.UnixNano(), UsageCoreNanoSeconds: number(used), UsageNanoCores: s.speed(id, at, used),
	}
	if g.V2 != "" {
		out.Psi, err = pressure(g.V2, "cpu.pressure")
	}
	return out, err
}

// cpuTime returns the CPU time that g has used, in nanoseconds.
func cpuTime(g cgroup.Group) (uint64, error) {
	if g.V2 != "" {
		stat, err := cgroup.Numbers(g.V2, "cpu.stat", "usage_usec")
		return stat["usage_usec"] * 1000, err
	}
	dir, ok := g.Dir("cpuacct")
	if !ok {
		return 0, errors.New("no cgroup counts CPU time: the controller cpuacct is not mounted")
	}
	return cgroup.Number(dir, "cpuacct.usage")
}

// memory reads the memory and swap that g uses.
func memory(g cgroup.Group) (*runtimeapi.MemoryUsage, *runtimeapi.SwapUsage, error) {
	if g.V2 != "" {
		return memoryV2(g.V2)
	}
	dir, ok := g.Dir("memory")
	if !ok {
		return nil, nil, errors.New("no cgroup counts memory: the controller memory is not mounted")
	}
	return memoryV1(dir)
}

func memoryV1(dir string) (*runtimeapi.MemoryUsage, *runtimeapi.SwapUsage, error) {
	at := time.Now().UnixNano()
	usage, err := cgroup.Number(dir, "memory.usage_in_bytes")
	if err != nil {
		return nil, nil, err
	}
	stat, err := cgroup.Numbers(dir, "memory.stat", "total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault")
	if err != nil {
		return nil, nil, err
	}
	limit, err := cgroup.Number(dir, "memory.limit_in_bytes")
	if err != nil {
		return nil, nil, err
	}
	out := &runtimeapi.MemoryUsage{
		Timestamp: at, UsageBytes: number(usage), WorkingSetBytes: number(less(usage, stat["total_inactive_file"])),
		RssBytes: number(stat["total_rss"]), PageFaults: number(stat["total_pgfault"]), MajorPageFaults: number(stat["total_pgmajfault"]),
	}
	available(out, limit)
	swap := &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: number(0), SwapAvailableBytes: number(0)}
	both, err := cgroup.Number(dir, "memory.memsw.usage_in_bytes")
	if errors.Is(err, fs.ErrNotExist) {
		return out, swap, nil // the kernel does not count swap
	}
	if err != nil {
		return nil, nil, err
	}
	most, err := cgroup.Number(dir, "memory.memsw.limit_in_bytes")
	if err != nil {
		return nil, nil, err
	}
	swap.SwapUsageBytes.Value = less(both, usage)
	swap.SwapAvailableBytes.Value = min(less(most, both), freeSwap())
	return out, swap, nil
}

func memoryV2(dir string) (*runtimeapi.MemoryUsage, *runtimeapi.SwapUsage, error) {
	at := time.Now().UnixNano()
	usage, err := cgroup.Number(dir, "memory.current")
	if err != nil {
		return nil, nil, err
	}
	stat, err := cgroup.Numbers(dir, "memory.stat", "inactive_file", "anon", "pgfault", "pgmajfault")
	if err != nil {
		return nil, nil, err
	}
	limit, err := cgroup.Number(dir, "memory.max")
	if err != nil {
		return nil, nil, err
	}
	out := &runtimeapi.MemoryUsage{
		Timestamp: at, UsageBytes: number(usage), WorkingSetBytes: number(less(usage, stat["inactive_file"])),
		RssBytes: number(stat["anon"]), PageFaults: number(stat["pgfault"]), MajorPageFaults: number(stat["pgmajfault"]),
	}
	available(out, limit)
	if out.Psi, err = pressure(dir, "memory.pressure"); err != nil {
		return nil, nil, err
	}
	swap := &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: number(0), SwapAvailableBytes: number(0)}
	swapped, err := cgroup.Number(dir, "memory.swap.current")
	if errors.Is(err, fs.ErrNotExist) {
		return out, swap, nil
	}
	if err != nil {
		return nil, nil, err
	}
	most, err := cgroup.Number(dir, "memory.swap.max")
	if err != nil {
		return nil, nil, err
	}
	swap.SwapUsageBytes.Value = swapped
	swap.SwapAvailableBytes.Value = min(less(most, swapped), freeSwap())
	return out, swap, nil
}

// available says how much there is left of a limit, if there is one: v1 writes
// the largest number of whole pages for none.
func available(m *runtimeapi.MemoryUsage, limit uint64) {
	if limit < 1<<62 {
		m.AvailableBytes = number(less(limit, m.GetWorkingSetBytes().GetValue()))
	}
}

// less returns a - b, or 0 if that is below 0: files are read one after the other.
func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// freeSwap returns how much swap the node has left, in bytes, as it was within the last second.
var freeSwap = func() func() uint64 {
	var mu sync.Mutex // guards following
	var at time.Time
	var free uint64
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(at) > time.Second {
			at, free = time.Now(), readFreeSwap()
		}
		return free
	}
}()

func readFreeSwap() uint64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "SwapFree:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

// io reads how long g has waited for block devices; nil on v1.
func io(g cgroup.Group) (*runtimeapi.IoUsage, error) {
	if g.V2 == "" {
		return nil, nil
	}
	psi, err := pressure(g.V2, "io.pressure")
	if err != nil || psi == nil {
		return nil, err
	}
	return &runtimeapi.IoUsage{Timestamp: time.Now().UnixNano(), Psi: psi}, nil
}

// pressure reads a pressure stall file; nil where the kernel does not tell.
func pressure(dir, file string) (*runtimeapi.PsiStats, error) {
	some, full, err := cgroup.Pressures(dir, file)
	if err != nil || (some == nil && full == nil) {
		return nil, err
	}
	return &runtimeapi.PsiStats{Some: psi(some), Full: psi(full)}, nil
}

func psi(p *cgroup.Pressure) *runtimeapi.PsiData {
	if p == nil {
		return nil
	}
	return &runtimeapi.PsiData{Total: p.Total, Avg10: p.Avg10, Avg60: p.Avg60, Avg300: p.Avg300}
}

// processes counts the processes and threads in g, as the kernel limits them.
func processes(g cgroup.Group) (uint64, error) {
	dir, ok := g.Dir("pids")
	if !ok {
		return 0, errors.New("no cgroup counts processes: the controller pids is not mounted")
	}
	return cgroup.Number(dir, "pids.current")
}

// defaultInterface is the interface that CNI makes for a pod.
const defaultInterface = "eth0"

// traffic reads the counters of a pod's interfaces.
func traffic(pid int) (*runtimeapi.NetworkUsage, error) {
	all, err := interfaces(pid)
	if err != nil {
		return nil, err
	}
	return usage(all), nil
}

// mostInterfaces bounds how many interfaces of a pod are reported. Who may make interfaces
// in a pod can make any number, and each is several samples.
const mostInterfaces = 64

// interfaces reads the counters of a pod's interfaces, at most mostInterfaces of them and
// the one of CNI in any case.
func interfaces(pid int) ([]netns.Counters, error) {
	all, err := netns.Traffic(pid)
	return fewer(all), err
}

func fewer(all []netns.Counters) []netns.Counters {
	if len(all) <= mostInterfaces {
		return all
	}
	if i := slices.IndexFunc(all, func(c netns.Counters) bool { return c.Name == defaultInterface }); i > 0 {
		all[0], all[i] = all[i], all[0]
	}
	return all[:mostInterfaces]
}

// usage says it in the words of the CRI, or not at all for a pod without the
// interface of CNI, as it is when its network is taken down: a kubelet of 1.37
// with the gate PodAndContainerStatsFromCRI crashes when there is no default.
func usage(all []netns.Counters) *runtimeapi.NetworkUsage {
	used := &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for _, c := range all {
		one := &runtimeapi.NetworkInterfaceUsage{
			Name: c.Name, RxBytes: number(c.RxBytes), RxErrors: number(c.RxErrors), TxBytes: number(c.TxBytes), TxErrors: number(c.TxErrors),
		}
		if c.Name == defaultInterface {
			used.DefaultInterface = one
		} else {
			used.Interfaces = append(used.Interfaces, one)
		}
	}
	if used.DefaultInterface == nil {
		return nil
	}
	return used
}
