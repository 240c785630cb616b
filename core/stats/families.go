package stats

import (
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A family is the samples of one name. The names are those of CRI-O and
// containerd, which are cAdvisor's, whose rules and dashboards go on working.
type family struct {
	name, help string
	keys       []string // of labels, besides those that all have
	kind       runtimeapi.MetricType
	// nanos tells that what is counted are nanoseconds. The CRI has whole
	// numbers only, so the kubelet is told whole seconds.
	nanos bool
	of    subject
	needs func(host) bool // nil for what every host can tell
	read  func(*reading, emit)
}

// A subject is what a family is about.
type subject int

const (
	containers subject = 1 << iota
	pods
)

// emit takes one sample: its value, and those of the labels that only its family has.
type emit func(n uint64, values ...string)

// keys are the labels that all samples have.
var keys = []string{"id", "image", "namespace", "pod", "container"}

// labelKeys returns the keys of all labels of the family.
func (f *family) labelKeys() []string { return slices.Concat(keys, f.keys) }

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// one makes a reader of what is one number.
func one(of func(*reading) uint64) func(*reading, emit) {
	return func(r *reading, emit emit) { emit(of(r)) }
}

// families is all that is told, in the order of the kubelet's documentation.
var families = slices.Concat(cpuFamilies, memoryFamilies, networkFamilies, diskFamilies, processFamilies, specFamilies, hugeFamilies, pressureFamilies, otherFamilies)

var cpuFamilies = []*family{
	{name: "container_cpu_usage_seconds_total", help: "CPU time used, in seconds.", keys: []string{"cpu"}, nanos: true, of: containers | pods,
		read: func(r *reading, emit emit) { emit(r.cpu.total, "total") }},
	{name: "container_cpu_user_seconds_total", help: "CPU time used by the processes themselves, in seconds.", nanos: true, of: containers | pods,
		read: one(func(r *reading) uint64 { return r.cpu.user })},
	{name: "container_cpu_system_seconds_total", help: "CPU time used by the kernel for the processes, in seconds.", nanos: true, of: containers | pods,
		read: one(func(r *reading) uint64 { return r.cpu.system })},
	{name: "container_cpu_cfs_periods_total", help: "Periods in which a CPU limit was enforced.", of: containers | pods,
		read: one(func(r *reading) uint64 { return r.cpu.periods })},
	{name: "container_cpu_cfs_throttled_periods_total", help: "Periods in which the CPU limit was reached.", of: containers | pods,
		read: one(func(r *reading) uint64 { return r.cpu.throttled })},
	{name: "container_cpu_cfs_throttled_seconds_total", help: "Time that processes were held back by the CPU limit, in seconds.", nanos: true, of: containers | pods,
		read: one(func(r *reading) uint64 { return r.cpu.throttledTime })},
}

var memoryFamilies = []*family{
	{name: "container_memory_usage_bytes", help: "Memory in use, page cache included.", kind: gauge, of: containers | pods,
		read: one(func(r *reading) uint64 { return r.memory.usage })},
	{name: "container_memory_working_set_bytes", help: "Memory in use but for inactive page cache.", kind: gauge, of: containers | pods,
		read: one(func(r *reading) uint64 { return less(r.memory.usage, r.memory.inactiveFile) })},
	{name: "container_memory_rss", help: "Anonymous memory, in bytes.", kind: gauge, of: containers | pods,
		read: one(func(r *reading) uint64 { return r.memory.rss })},
	{name: "container_memory_cache", help: "Page cache, in bytes.", kind: gauge, of: containers | pods,
		read: one(func(r *reading) uint64 { return r.memory.cache })},
	{name: "container_memory_kernel_usage", help: "Memory that the kernel uses for the processes, in bytes.", kind: gauge, of: containers | pods,
		read: one(func(r *reading) uint64 { return r.memory.kernel })},
	{name: "container_memory_mapped_file", help: "Files mapped into memory, in bytes.", kind: gauge, of: containers | pods,
		read: one(func(r *reading) uint64 { return r.memory.mapped })},
	{name: "container_memory_swap", help: "Swap in use, in bytes.", kind: gauge, of: containers | pods,
		read: one(func(r *reading) uint64 { return r.memory.swap })},
	{name: "container_memory_max_usage_bytes", help: "The most memory there was in use.", kind: gauge, of: containers | pods,
		read: one(func(r *reading) uint64 { return r.memory.most })},
	{name: "container_memory_failcnt", help: "How often the memory limit was reached.", of: containers | pods,
		read: one(func(r *reading) uint64 { return r.memory.failures })},
	{name: "container_memory_failures_total", help: "Page faults (pgfault) and those that had to read from disk (pgmajfault).", keys: []string{"failure_type", "scope"}, of: containers | pods,
		read: func(r *reading, emit emit) {
			emit(r.memory.ownFaults, "pgfault", "container")
			emit(r.memory.ownMajorFaults, "pgmajfault", "container")
			emit(r.memory.faults, "pgfault", "hierarchy")
			emit(r.memory.majorFaults, "pgmajfault", "hierarchy")
		}},
	{name: "container_memory_total_active_file_bytes", help: "Page cache that is in use.", kind: gauge, of: containers | pods,
		read: one(func(r *reading) uint64 { return r.memory.activeFile })},
	{name: "container_memory_total_inactive_file_bytes", help: "Page cache that is not in use.", kind: gauge, of: containers | pods,
		read: one(func(r *reading) uint64 { return r.memory.inactiveFile })},
	{name: "container_oom_events_total", help: "Processes killed for lack of memory.", of: containers | pods,
		read: one(func(r *reading) uint64 { return r.memory.kills })},
}

var networkFamilies = []*family{
	{name: "container_network_receive_bytes_total", help: "Bytes received.", keys: []string{"interface"}, of: pods, read: traffics(func(c *counters) uint64 { return c.RxBytes })},
	{name: "container_network_receive_packets_total", help: "Packets received.", keys: []string{"interface"}, of: pods, read: traffics(func(c *counters) uint64 { return c.RxPackets })},
	{name: "container_network_receive_packets_dropped_total", help: "Packets dropped while receiving.", keys: []string{"interface"}, of: pods, read: traffics(func(c *counters) uint64 { return c.RxDropped })},
	{name: "container_network_receive_errors_total", help: "Errors while receiving.", keys: []string{"interface"}, of: pods, read: traffics(func(c *counters) uint64 { return c.RxErrors })},
	{name: "container_network_transmit_bytes_total", help: "Bytes sent.", keys: []string{"interface"}, of: pods, read: traffics(func(c *counters) uint64 { return c.TxBytes })},
	{name: "container_network_transmit_packets_total", help: "Packets sent.", keys: []string{"interface"}, of: pods, read: traffics(func(c *counters) uint64 { return c.TxPackets })},
	{name: "container_network_transmit_packets_dropped_total", help: "Packets dropped while sending.", keys: []string{"interface"}, of: pods, read: traffics(func(c *counters) uint64 { return c.TxDropped })},
	{name: "container_network_transmit_errors_total", help: "Errors while sending.", keys: []string{"interface"}, of: pods, read: traffics(func(c *counters) uint64 { return c.TxErrors })},
}

// traffics makes a reader of a counter that every interface has.
func traffics(of func(*counters) uint64) func(*reading, emit) {
	return func(r *reading, emit emit) {
		for i := range r.traffic {
			emit(of(&r.traffic[i]), r.traffic[i].Name)
		}
	}
}

var diskFamilies = []*family{
	{name: "container_fs_usage_bytes", help: "Bytes written to the root file system, to volumes of the image and to the log that Docker keeps, as last measured; not there before.", keys: []string{"device"}, kind: gauge, of: containers,
		read: func(r *reading, emit emit) {
			if r.disk != nil && r.written != nil {
				emit(r.written.bytes, r.disk.device)
			}
		}},
	{name: "container_fs_limit_bytes", help: "Size of the file system that containers are on.", keys: []string{"device"}, kind: gauge, of: containers,
		read: disks(func(r *reading) uint64 { return r.disk.size })},
	{name: "container_fs_inodes_total", help: "Inodes of the file system that containers are on.", keys: []string{"device"}, kind: gauge, of: containers,
		read: disks(func(r *reading) uint64 { return r.disk.inodes })},
	{name: "container_fs_inodes_free", help: "Free inodes of the file system that containers are on.", keys: []string{"device"}, kind: gauge, of: containers,
		read: disks(func(r *reading) uint64 { return r.disk.inodesFree })},
	{name: "container_fs_reads_total", help: "Reads from block devices.", keys: []string{"device"}, of: containers | pods,
		read: transfers(func(d *device) uint64 { return d.Requests["Read"] })},
	{name: "container_fs_writes_total", help: "Writes to block devices.", keys: []string{"device"}, of: containers | pods,
		read: transfers(func(d *device) uint64 { return d.Requests["Write"] })},
	{name: "container_fs_reads_bytes_total", help: "Bytes read from block devices.", keys: []string{"device"}, of: containers | pods,
		read: transfers(func(d *device) uint64 { return d.Bytes["Read"] })},
	{name: "container_fs_writes_bytes_total", help: "Bytes written to block devices.", keys: []string{"device"}, of: containers | pods,
		read: transfers(func(d *device) uint64 { return d.Bytes["Write"] })},
	{name: "container_blkio_device_usage_total", help: "Bytes moved from and to block devices, by operation.", keys: []string{"device", "major", "minor", "operation"}, of: containers | pods,
		read: func(r *reading, emit emit) {
			for i := range r.devices {
				d := &r.devices[i]
				for _, operation := range operations {
					if n, ok := d.Bytes[operation]; ok {
						emit(n, d.name, d.Major, d.Minor, operation)
					}
				}
			}
		}},
}

// disks makes a reader of what is about the file system that containers are on.
func disks(of func(*reading) uint64) func(*reading, emit) {
	return func(r *reading, emit emit) {
		if r.disk != nil {
			emit(of(r), r.disk.device)
		}
	}
}

// operations are all there are.
var operations = []string{"Read", "Write", "Sync", "Async", "Discard", "Total"}

// transfers makes a reader of a counter that every block device has.
func transfers(of func(*device) uint64) func(*reading, emit) {
	return func(r *reading, emit emit) {
		for i := range r.devices {
			emit(of(&r.devices[i]), r.devices[i].name)
		}
	}
}

var processFamilies = []*family{
	{name: "container_processes", help: "Processes.", kind: gauge, of: containers, read: one(func(r *reading) uint64 { return r.processes })},
	{name: "container_threads", help: "Threads of all processes.", kind: gauge, of: containers | pods, read: one(func(r *reading) uint64 { return r.threads })},
	{name: "container_threads_max", help: "The most threads there may be, 0 for no limit.", kind: gauge, of: containers | pods, read: one(func(r *reading) uint64 { return r.threadsMax })},
	{name: "container_file_descriptors", help: "Open file descriptors of all processes.", kind: gauge, of: containers,
		read: func(r *reading, emit emit) {
			if r.opened != nil {
				emit(r.opened.files)
			}
		}},
	{name: "container_sockets", help: "Open sockets of all processes.", kind: gauge, of: containers,
		read: func(r *reading, emit emit) {
			if r.opened != nil {
				emit(r.opened.sockets)
			}
		}},
	{name: "container_ulimits_soft", help: "Soft limits of the first process.", keys: []string{"ulimit"}, kind: gauge, of: containers,
		read: func(r *reading, emit emit) {
			if r.openFiles != nil {
				emit(*r.openFiles, "max_open_files")
			}
		}},
}

var specFamilies = []*family{
	{name: "container_spec_cpu_period", help: "Period of the CPU limit, in microseconds.", kind: gauge, of: containers,
		read: one(func(r *reading) uint64 { return positive(r.asked.GetCpuPeriod(), 100_000) })},
	{name: "container_spec_cpu_quota", help: "CPU time that may be used in each period, in microseconds; not there without a limit.", kind: gauge, of: containers,
		read: func(r *reading, emit emit) {
			if quota := r.asked.GetCpuQuota(); quota > 0 {
				emit(uint64(quota))
			}
		}},
	{name: "container_spec_cpu_shares", help: "Weight beside others who want the CPU.", kind: gauge, of: containers,
		read: one(func(r *reading) uint64 { return positive(r.asked.GetCpuShares(), 1024) })},
	{name: "container_spec_memory_limit_bytes", help: "Memory limit, 0 for none.", kind: gauge, of: containers,
		read: one(func(r *reading) uint64 { return positive(r.asked.GetMemoryLimitInBytes(), 0) })},
	{name: "container_spec_memory_swap_limit_bytes", help: "Limit of memory and swap together with cgroup v1, of swap with cgroup v2; 0 for none.", kind: gauge, of: containers,
		read: one(func(r *reading) uint64 { return r.memory.swapLimit })},
	{name: "container_spec_memory_reservation_limit_bytes", help: "Memory that is left to it where memory is short, 0 for none said.", kind: gauge, of: containers,
		read: one(func(r *reading) uint64 { return r.memory.reserved })},
}

// positive returns n, or what stands for it if it was not said.
func positive(n int64, otherwise uint64) uint64 {
	if n <= 0 {
		return otherwise
	}
	return uint64(n)
}

var hugeFamilies = []*family{
	{name: "container_hugetlb_usage_bytes", help: "Huge pages in use.", keys: []string{"pagesize"}, kind: gauge, of: containers | pods, needs: func(h host) bool { return len(h.pageSizes) > 0 },
		read: func(r *reading, emit emit) {
			for _, p := range r.huge {
				emit(p.usage, p.size)
			}
		}},
	// Version 2 does not remember it.
	{name: "container_hugetlb_max_usage_bytes", help: "The most huge pages there were in use.", keys: []string{"pagesize"}, kind: gauge, of: containers | pods, needs: func(h host) bool { return len(h.pageSizes) > 0 && !h.v2 },
		read: func(r *reading, emit emit) {
			for _, p := range r.huge {
				emit(p.most, p.size)
			}
		}},
}

var pressureFamilies = []*family{
	{name: "container_pressure_cpu_waiting_seconds_total", help: "Time that some tasks waited for the CPU, in seconds.", nanos: true, of: containers | pods, needs: host.pressed,
		read: waiting(func(r *reading) *psiData { return r.pressure.cpu.GetSome() })},
	{name: "container_pressure_cpu_stalled_seconds_total", help: "Time that all tasks waited for the CPU, in seconds.", nanos: true, of: containers | pods, needs: host.pressed,
		read: waiting(func(r *reading) *psiData { return r.pressure.cpu.GetFull() })},
	{name: "container_pressure_memory_waiting_seconds_total", help: "Time that some tasks waited for memory, in seconds.", nanos: true, of: containers | pods, needs: host.pressed,
		read: waiting(func(r *reading) *psiData { return r.pressure.memory.GetSome() })},
	{name: "container_pressure_memory_stalled_seconds_total", help: "Time that all tasks waited for memory, in seconds.", nanos: true, of: containers | pods, needs: host.pressed,
		read: waiting(func(r *reading) *psiData { return r.pressure.memory.GetFull() })},
	{name: "container_pressure_io_waiting_seconds_total", help: "Time that some tasks waited for block devices, in seconds.", nanos: true, of: containers | pods, needs: host.pressed,
		read: waiting(func(r *reading) *psiData { return r.pressure.io.GetSome() })},
	{name: "container_pressure_io_stalled_seconds_total", help: "Time that all tasks waited for block devices, in seconds.", nanos: true, of: containers | pods, needs: host.pressed,
		read: waiting(func(r *reading) *psiData { return r.pressure.io.GetFull() })},
}

type psiData = runtimeapi.PsiData

// waiting makes a reader of a pressure, which the kernel may not tell.
func waiting(of func(*reading) *psiData) func(*reading, emit) {
	return func(r *reading, emit emit) {
		if p := of(r); p != nil {
			emit(p.GetTotal())
		}
	}
}

var otherFamilies = []*family{
	{name: "container_last_seen", help: "When this was read, in seconds since 1970.", kind: gauge, nanos: true, of: containers | pods,
		read: one(func(r *reading) uint64 { return uint64(max(r.at.UnixNano(), 0)) })},
	{name: "container_start_time_seconds", help: "When it was started, in seconds since 1970.", kind: gauge, nanos: true, of: containers | pods,
		read: one(func(r *reading) uint64 { return uint64(max(r.startedAt, 0)) })},
}

// A reading is what is known of a container or pod at one time.
type reading struct {
	at        time.Time
	startedAt int64 // Unix nanoseconds

	cpu    cpuReading
	memory memoryReading
	huge   []hugeReading

	pressure struct{ cpu, memory, io *runtimeapi.PsiStats }
	devices  []device
	traffic  []counters

	threads, threadsMax uint64

	// Of containers only.
	processes uint64
	opened    *open    // nil if nothing has been counted yet
	openFiles *uint64  // the most files that its first process may open, nil for no limit
	written   *written // nil before the first measurement
	disk      *disk    // nil where it cannot be looked at
	asked     *runtimeapi.LinuxContainerResources
}
