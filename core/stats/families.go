package stats

import (
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cgroup"
	"berth/core/stats/cgroupstats"
	"berth/network/netns"
)

// A family is all metrics of one name. The names are those of cAdvisor, which CRI-O and
// containerd use too, so that existing rules and dashboards work.
type family struct {
	name, help string
	labels     []string // besides commonLabels
	kind       runtimeapi.MetricType
	// nanos means that values are in nanoseconds. CRI metrics have integers only, so they
	// get whole seconds.
	nanos   bool
	subject subject
	needs   func(cgroupstats.Host) bool // nil if every node has values
	read    func(*scrape, emitFunc)
}

// A subject is what a family has metrics of.
type subject int

const (
	onContainers subject = 1 << iota
	onPods
)

// An emitFunc takes one value of a family and the values of its labels.
type emitFunc func(value uint64, labelValues ...string)

// commonLabels are the labels that all families have.
var commonLabels = []string{"id", "image", "namespace", "pod", "container"}

// labelKeys returns the keys of all labels of the family.
func (f *family) labelKeys() []string { return slices.Concat(commonLabels, f.labels) }

// needsCgroup reports whether the values of the family come from a cgroup.
func (f *family) needsCgroup() bool { return f.subject != onPods && !slices.Contains(otherFamilies, f) }

// collect appends the metrics of sc. commonValues are the values of commonLabels.
func (f *family) collect(to []metric, sc *scrape, commonValues ...string) []metric {
	f.read(sc, func(value uint64, labelValues ...string) {
		to = append(to, metric{family: f, labelValues: slices.Concat(commonValues, labelValues), value: value})
	})
	return to
}

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// single reads a family that has one value and no labels of its own.
func single(value func(*scrape) uint64) func(*scrape, emitFunc) {
	return func(s *scrape, emit emitFunc) { emit(value(s)) }
}

// zeroIfUnlimited returns n, or 0 for no limit, as cAdvisor does.
func zeroIfUnlimited(n uint64) uint64 {
	if n == cgroup.Unlimited {
		return 0
	}
	return n
}

// families are all families, in the order of the kubelet's documentation.
var families = slices.Concat(cpuFamilies, memoryFamilies, networkFamilies, diskFamilies, processFamilies, specFamilies, hugePageFamilies, pressureFamilies, otherFamilies)

var cpuFamilies = []*family{
	{name: "container_cpu_usage_seconds_total", help: "CPU time used, in seconds.", labels: []string{"cpu"}, nanos: true, subject: onContainers | onPods,
		read: func(s *scrape, emit emitFunc) { emit(s.cgroup.CPU.Total, "total") }},
	{name: "container_cpu_user_seconds_total", help: "CPU time used in user mode, in seconds.", nanos: true, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.CPU.User })},
	{name: "container_cpu_system_seconds_total", help: "CPU time used in kernel mode, in seconds.", nanos: true, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.CPU.System })},
	{name: "container_cpu_cfs_periods_total", help: "Enforcement periods of the CPU limit.", subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.CPU.Periods })},
	{name: "container_cpu_cfs_throttled_periods_total", help: "Periods in which the CPU limit throttled processes.", subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.CPU.ThrottledPeriods })},
	{name: "container_cpu_cfs_throttled_seconds_total", help: "Time that the CPU limit throttled processes, in seconds.", nanos: true, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.CPU.ThrottledTime })},
}

var memoryFamilies = []*family{
	{name: "container_memory_usage_bytes", help: "Memory in use, page cache included.", kind: gauge, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.Memory.Usage })},
	{name: "container_memory_working_set_bytes", help: "Memory in use without inactive page cache.", kind: gauge, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.Memory.WorkingSet() })},
	{name: "container_memory_rss", help: "Anonymous memory, in bytes.", kind: gauge, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.Memory.RSS })},
	{name: "container_memory_cache", help: "Page cache, in bytes.", kind: gauge, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.Memory.Cache })},
	{name: "container_memory_kernel_usage", help: "Kernel memory of the processes, in bytes.", kind: gauge, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.Memory.Kernel })},
	{name: "container_memory_mapped_file", help: "Files mapped into memory, in bytes.", kind: gauge, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.Memory.MappedFile })},
	{name: "container_memory_swap", help: "Swap in use, in bytes.", kind: gauge, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.Memory.Swap })},
	{name: "container_memory_max_usage_bytes", help: "Highest memory usage so far, in bytes.", kind: gauge, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.Memory.Peak })},
	{name: "container_memory_failcnt", help: "Number of times the memory limit was reached.", subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.Memory.LimitReached })},
	{name: "container_memory_failures_total", help: "Page faults (pgfault) and major page faults (pgmajfault).", labels: []string{"failure_type", "scope"}, subject: onContainers | onPods,
		read: func(s *scrape, emit emitFunc) {
			emit(s.cgroup.Memory.OwnPageFaults, "pgfault", "container")
			emit(s.cgroup.Memory.OwnMajorPageFaults, "pgmajfault", "container")
			emit(s.cgroup.Memory.PageFaults, "pgfault", "hierarchy")
			emit(s.cgroup.Memory.MajorPageFaults, "pgmajfault", "hierarchy")
		}},
	{name: "container_memory_total_active_file_bytes", help: "Active page cache, in bytes.", kind: gauge, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.Memory.ActiveFile })},
	{name: "container_memory_total_inactive_file_bytes", help: "Inactive page cache, in bytes.", kind: gauge, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.Memory.InactiveFile })},
	{name: "container_oom_events_total", help: "Processes killed by the OOM killer.", subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return s.cgroup.Memory.OOMKills })},
}

var networkFamilies = []*family{
	{name: "container_network_receive_bytes_total", help: "Bytes received.", labels: []string{"interface"}, subject: onPods, read: perInterface(func(c *netns.Counters) uint64 { return c.RxBytes })},
	{name: "container_network_receive_packets_total", help: "Packets received.", labels: []string{"interface"}, subject: onPods, read: perInterface(func(c *netns.Counters) uint64 { return c.RxPackets })},
	{name: "container_network_receive_packets_dropped_total", help: "Packets dropped while receiving.", labels: []string{"interface"}, subject: onPods, read: perInterface(func(c *netns.Counters) uint64 { return c.RxDropped })},
	{name: "container_network_receive_errors_total", help: "Errors while receiving.", labels: []string{"interface"}, subject: onPods, read: perInterface(func(c *netns.Counters) uint64 { return c.RxErrors })},
	{name: "container_network_transmit_bytes_total", help: "Bytes sent.", labels: []string{"interface"}, subject: onPods, read: perInterface(func(c *netns.Counters) uint64 { return c.TxBytes })},
	{name: "container_network_transmit_packets_total", help: "Packets sent.", labels: []string{"interface"}, subject: onPods, read: perInterface(func(c *netns.Counters) uint64 { return c.TxPackets })},
	{name: "container_network_transmit_packets_dropped_total", help: "Packets dropped while sending.", labels: []string{"interface"}, subject: onPods, read: perInterface(func(c *netns.Counters) uint64 { return c.TxDropped })},
	{name: "container_network_transmit_errors_total", help: "Errors while sending.", labels: []string{"interface"}, subject: onPods, read: perInterface(func(c *netns.Counters) uint64 { return c.TxErrors })},
}

// perInterface reads a family with one value for each network interface.
func perInterface(value func(*netns.Counters) uint64) func(*scrape, emitFunc) {
	return func(s *scrape, emit emitFunc) {
		for i := range s.interfaces {
			emit(value(&s.interfaces[i]), s.interfaces[i].Name)
		}
	}
}

var diskFamilies = []*family{
	{name: "container_fs_usage_bytes", help: "Bytes written to the writable layer, to anonymous volumes and to the log that Docker keeps, as last measured; missing before the first measurement.", labels: []string{"device"}, kind: gauge, subject: onContainers,
		read: func(s *scrape, emit emitFunc) {
			if s.filesystem != nil && s.diskUsage != nil {
				emit(s.diskUsage.Bytes, s.filesystem.Device)
			}
		}},
	{name: "container_fs_limit_bytes", help: "Size of the file system that containers are on.", labels: []string{"device"}, kind: gauge, subject: onContainers,
		read: ofFilesystem(func(s *scrape) uint64 { return s.filesystem.Size })},
	{name: "container_fs_inodes_total", help: "Inodes of the file system that containers are on.", labels: []string{"device"}, kind: gauge, subject: onContainers,
		read: ofFilesystem(func(s *scrape) uint64 { return s.filesystem.Inodes })},
	{name: "container_fs_inodes_free", help: "Free inodes of the file system that containers are on.", labels: []string{"device"}, kind: gauge, subject: onContainers,
		read: ofFilesystem(func(s *scrape) uint64 { return s.filesystem.InodesFree })},
	{name: "container_fs_reads_total", help: "Reads from block devices.", labels: []string{"device"}, subject: onContainers | onPods,
		read: perDevice(func(d *cgroupstats.Device) uint64 { return d.Requests["Read"] })},
	{name: "container_fs_writes_total", help: "Writes to block devices.", labels: []string{"device"}, subject: onContainers | onPods,
		read: perDevice(func(d *cgroupstats.Device) uint64 { return d.Requests["Write"] })},
	{name: "container_fs_reads_bytes_total", help: "Bytes read from block devices.", labels: []string{"device"}, subject: onContainers | onPods,
		read: perDevice(func(d *cgroupstats.Device) uint64 { return d.Bytes["Read"] })},
	{name: "container_fs_writes_bytes_total", help: "Bytes written to block devices.", labels: []string{"device"}, subject: onContainers | onPods,
		read: perDevice(func(d *cgroupstats.Device) uint64 { return d.Bytes["Write"] })},
	{name: "container_blkio_device_usage_total", help: "Bytes transferred from and to block devices, by operation.", labels: []string{"device", "major", "minor", "operation"}, subject: onContainers | onPods,
		read: func(s *scrape, emit emitFunc) {
			for i := range s.cgroup.Devices {
				d := &s.cgroup.Devices[i]
				for _, operation := range operations {
					if n, ok := d.Bytes[operation]; ok {
						emit(n, d.Name, d.Major, d.Minor, operation)
					}
				}
			}
		}},
}

// ofFilesystem reads a family of the file system that containers are on.
func ofFilesystem(value func(*scrape) uint64) func(*scrape, emitFunc) {
	return func(s *scrape, emit emitFunc) {
		if s.filesystem != nil {
			emit(value(s), s.filesystem.Device)
		}
	}
}

// operations are those that cgroup files count.
var operations = []string{"Read", "Write", "Sync", "Async", "Discard", "Total"}

// perDevice reads a family with one value for each block device.
func perDevice(value func(*cgroupstats.Device) uint64) func(*scrape, emitFunc) {
	return func(s *scrape, emit emitFunc) {
		for i := range s.cgroup.Devices {
			emit(value(&s.cgroup.Devices[i]), s.cgroup.Devices[i].Name)
		}
	}
}

var processFamilies = []*family{
	{name: "container_processes", help: "Processes.", kind: gauge, subject: onContainers, read: single(func(s *scrape) uint64 { return s.processes })},
	{name: "container_threads", help: "Threads of all processes.", kind: gauge, subject: onContainers | onPods, read: single(func(s *scrape) uint64 { return s.cgroup.Threads })},
	{name: "container_threads_max", help: "Limit of processes and threads, 0 for no limit.", kind: gauge, subject: onContainers | onPods, read: single(func(s *scrape) uint64 { return zeroIfUnlimited(s.cgroup.ThreadLimit) })},
	{name: "container_file_descriptors", help: "Open file descriptors of all processes.", kind: gauge, subject: onContainers,
		read: func(s *scrape, emit emitFunc) {
			if s.fds != nil {
				emit(s.fds.Files)
			}
		}},
	{name: "container_sockets", help: "Open sockets of all processes.", kind: gauge, subject: onContainers,
		read: func(s *scrape, emit emitFunc) {
			if s.fds != nil {
				emit(s.fds.Sockets)
			}
		}},
	{name: "container_ulimits_soft", help: "Soft ulimits of the first process.", labels: []string{"ulimit"}, kind: gauge, subject: onContainers,
		read: func(s *scrape, emit emitFunc) {
			if s.openFileLimit != nil {
				emit(*s.openFileLimit, "max_open_files")
			}
		}},
}

var specFamilies = []*family{
	{name: "container_spec_cpu_period", help: "Period of the CPU limit, in microseconds.", kind: gauge, subject: onContainers,
		read: single(func(s *scrape) uint64 { return orDefault(s.resources.GetCpuPeriod(), 100_000) })},
	{name: "container_spec_cpu_quota", help: "CPU time allowed in each period, in microseconds; missing without a limit.", kind: gauge, subject: onContainers,
		read: func(s *scrape, emit emitFunc) {
			if quota := s.resources.GetCpuQuota(); quota > 0 {
				emit(uint64(quota))
			}
		}},
	{name: "container_spec_cpu_shares", help: "CPU shares: weight relative to other containers.", kind: gauge, subject: onContainers,
		read: single(func(s *scrape) uint64 { return orDefault(s.resources.GetCpuShares(), 1024) })},
	{name: "container_spec_memory_limit_bytes", help: "Memory limit, 0 for none.", kind: gauge, subject: onContainers,
		read: single(func(s *scrape) uint64 { return orDefault(s.resources.GetMemoryLimitInBytes(), 0) })},
	{name: "container_spec_memory_swap_limit_bytes", help: "Limit of memory and swap together on cgroup v1, of swap on cgroup v2; 0 for none.", kind: gauge, subject: onContainers,
		read: single(func(s *scrape) uint64 { return zeroIfUnlimited(s.cgroup.Memory.SwapLimit) })},
	{name: "container_spec_memory_reservation_limit_bytes", help: "Memory reservation, 0 for none.", kind: gauge, subject: onContainers,
		read: single(func(s *scrape) uint64 { return zeroIfUnlimited(s.cgroup.Memory.Reservation) })},
}

// orDefault returns n, or the default value if n is not set.
func orDefault(n int64, value uint64) uint64 {
	if n <= 0 {
		return value
	}
	return uint64(n)
}

var hugePageFamilies = []*family{
	{name: "container_hugetlb_usage_bytes", help: "Huge pages in use, in bytes.", labels: []string{"pagesize"}, kind: gauge, subject: onContainers | onPods, needs: hasHugePages,
		read: func(s *scrape, emit emitFunc) {
			for _, h := range s.cgroup.HugePages {
				emit(h.Usage, h.Size)
			}
		}},
	// Cgroup v2 has no peak.
	{name: "container_hugetlb_max_usage_bytes", help: "Highest usage of huge pages so far, in bytes.", labels: []string{"pagesize"}, kind: gauge, subject: onContainers | onPods, needs: func(h cgroupstats.Host) bool { return hasHugePages(h) && !h.CgroupV2 },
		read: func(s *scrape, emit emitFunc) {
			for _, h := range s.cgroup.HugePages {
				emit(h.Peak, h.Size)
			}
		}},
}

var pressureFamilies = []*family{
	{name: "container_pressure_cpu_waiting_seconds_total", help: "Time that some tasks waited for the CPU, in seconds.", nanos: true, subject: onContainers | onPods, needs: hasPressure,
		read: totalOf(func(s *scrape) *cgroup.Pressure { return some(s.cgroup.Pressure.CPU) })},
	{name: "container_pressure_cpu_stalled_seconds_total", help: "Time that all tasks waited for the CPU, in seconds.", nanos: true, subject: onContainers | onPods, needs: hasPressure,
		read: totalOf(func(s *scrape) *cgroup.Pressure { return full(s.cgroup.Pressure.CPU) })},
	{name: "container_pressure_memory_waiting_seconds_total", help: "Time that some tasks waited for memory, in seconds.", nanos: true, subject: onContainers | onPods, needs: hasPressure,
		read: totalOf(func(s *scrape) *cgroup.Pressure { return some(s.cgroup.Pressure.Memory) })},
	{name: "container_pressure_memory_stalled_seconds_total", help: "Time that all tasks waited for memory, in seconds.", nanos: true, subject: onContainers | onPods, needs: hasPressure,
		read: totalOf(func(s *scrape) *cgroup.Pressure { return full(s.cgroup.Pressure.Memory) })},
	{name: "container_pressure_io_waiting_seconds_total", help: "Time that some tasks waited for block devices, in seconds.", nanos: true, subject: onContainers | onPods, needs: hasPressure,
		read: totalOf(func(s *scrape) *cgroup.Pressure { return some(s.cgroup.Pressure.IO) })},
	{name: "container_pressure_io_stalled_seconds_total", help: "Time that all tasks waited for block devices, in seconds.", nanos: true, subject: onContainers | onPods, needs: hasPressure,
		read: totalOf(func(s *scrape) *cgroup.Pressure { return full(s.cgroup.Pressure.IO) })},
}

func hasPressure(h cgroupstats.Host) bool { return h.Pressure }

func hasHugePages(h cgroupstats.Host) bool { return len(h.PageSizes) > 0 }

func some(p *cgroupstats.PSI) *cgroup.Pressure {
	if p == nil {
		return nil
	}
	return p.Some
}

func full(p *cgroupstats.PSI) *cgroup.Pressure {
	if p == nil {
		return nil
	}
	return p.Full
}

// totalOf reads a family of one line of a pressure file, which may be missing.
func totalOf(line func(*scrape) *cgroup.Pressure) func(*scrape, emitFunc) {
	return func(s *scrape, emit emitFunc) {
		if p := line(s); p != nil {
			emit(p.Total)
		}
	}
}

var otherFamilies = []*family{
	{name: "container_last_seen", help: "Time of this reading, in seconds since 1970.", kind: gauge, nanos: true, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return uint64(max(s.at.UnixNano(), 0)) })},
	{name: "container_start_time_seconds", help: "Start time, in seconds since 1970.", kind: gauge, nanos: true, subject: onContainers | onPods,
		read: single(func(s *scrape) uint64 { return uint64(max(s.startedAt, 0)) })},
}
