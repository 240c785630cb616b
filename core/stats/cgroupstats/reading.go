// Package cgroupstats reads what a container, a pod and the node use: cgroup files of both
// versions, and files below /proc and /sys.
//
// Read fills a Reading, a plain struct without types of the CRI; core/stats encodes it as
// CRI statistics and as CRI metrics. Errors keep the kind of the system call: IsExited
// distinguishes the end of a cgroup or process from a failure. A file that the kernel does not have,
// because it is old or a controller is off, counts as zero only where that is documented
// here: a cgroup that is removed while it is read must never be reported as an idle one.
//
// The package does not call Docker and keeps no state but the counts of an FDCounter and
// the node's free swap, which it caches for a second.
package cgroupstats

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"berth/core/cgroup"
)

// Detail selects how many files Read reads.
type Detail int

const (
	// Usage reads what CRI statistics of containers carry.
	Usage Detail = iota
	// PodUsage reads what CRI statistics of pods carry: Threads as well.
	PodUsage
	// All reads also what only CRI metrics carry, about twice as many files.
	All
)

// A Reading is the content of the files of one cgroup. Sizes are in bytes, times of the
// CPU in nanoseconds. Limits are cgroup.Unlimited where there is none.
type Reading struct {
	// At is the time just before the first file was read.
	At       time.Time
	CPU      CPU
	Memory   Memory
	Pressure Pressure
	// Threads counts processes and their threads, as the kernel limits them. It is not read with Usage.
	Threads uint64

	// The fields below are read with All only.

	// Devices are the block devices that the cgroup has used.
	Devices []Device
	// HugePages has one entry for each page size that the controller hugetlb counts.
	HugePages []HugePages
	// ThreadLimit is the limit of Threads.
	ThreadLimit uint64

	detail Detail
}

// CPU is CPU time. Without All only Total is read on cgroup v1.
type CPU struct {
	Total, User, System uint64
	// Periods are those in which a CPU limit was enforced.
	Periods, ThrottledPeriods, ThrottledTime uint64
}

// Memory is memory and swap.
type Memory struct {
	Usage, Limit                              uint64
	RSS, Cache, Kernel, MappedFile            uint64
	ActiveFile, InactiveFile                  uint64
	PageFaults, MajorPageFaults               uint64 // cgroups below included
	OwnPageFaults, OwnMajorPageFaults         uint64 // of this cgroup alone; cgroup v2 counts only both together
	Swap                                      uint64
	SwapLimit                                 uint64 // of memory and swap together on cgroup v1; 0 if swap is not counted
	SwapHeadroom                              uint64 // what SwapLimit leaves; 0 if swap is not counted
	Peak, Reservation, LimitReached, OOMKills uint64 // with All only
}

// WorkingSet returns the memory in use without inactive page cache, as the kubelet defines
// it for eviction.
func (m Memory) WorkingSet() uint64 { return satSub(m.Usage, m.InactiveFile) }

// Pressure is pressure stall information. A field is nil on cgroup v1 and where the kernel
// does not provide it (built without CONFIG_PSI, or booted with psi=0).
type Pressure struct {
	CPU, Memory, IO *PSI
}

// PSI is the content of one pressure file. A missing line is nil.
type PSI struct {
	Some, Full *cgroup.Pressure
}

// HugePages is the use of huge pages of one size.
type HugePages struct {
	Size        string // as cgroup files are named: 2MB
	Usage, Peak uint64 // cgroup v2 has no peak
}

// A Device is a block device with the I/O that a cgroup has done on it.
type Device struct {
	Name         string // as /dev/sda, or "8:0" if the device is gone
	Major, Minor string
	// Bytes and Requests are by operation: "Read", "Write" and what else the kernel counts.
	Bytes, Requests map[string]uint64
}

// IsExited reports whether err says that a process or its cgroup does not exist any more.
func IsExited(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV)
}

// Read reads the cgroup g. The error is one for which IsExited is true if g does not exist.
func Read(g cgroup.Group, detail Detail) (*Reading, error) {
	r := &Reading{At: time.Now()}
	var err error
	if r.CPU, err = readCPU(g); err != nil {
		return nil, err
	}
	if r.Memory, err = readMemory(g); err != nil {
		return nil, err
	}
	if r.Pressure, err = readPressure(g); err != nil {
		return nil, err
	}
	return r.Complete(g, detail)
}

// Complete returns r, a reading of g, with the given detail. It reads the files that have not been
// read for r, and does not change r.
func (r *Reading) Complete(g cgroup.Group, detail Detail) (_ *Reading, err error) {
	if r.detail >= detail {
		return r, nil
	}
	more := *r
	more.detail = detail
	if r.detail == Usage {
		if more.Threads, err = Threads(g); err != nil {
			return nil, err
		}
	}
	if detail != All {
		return &more, nil
	}
	if err = readCPUDetail(g, &more.CPU); err != nil {
		return nil, err
	}
	if err = readMemoryDetail(g, &more.Memory); err != nil {
		return nil, err
	}
	if more.Devices, err = readDevices(g); err != nil {
		return nil, err
	}
	if more.ThreadLimit, err = readThreadLimit(g); err != nil {
		return nil, err
	}
	more.HugePages, err = readHugePages(g, ThisHost().PageSizes)
	return &more, err
}

// CPUTime returns the CPU time that g has used, in nanoseconds.
func CPUTime(g cgroup.Group) (uint64, error) {
	cpu, err := readCPU(g)
	return cpu.Total, err
}

// clockTick is the unit of cpuacct.stat in nanoseconds: USER_HZ, which is 100 Hz on all
// architectures that Docker supports, independent of CONFIG_HZ (time(7)).
const clockTick = 10_000_000

// The names in the files below, in the order of the values that are read.
var (
	cpuStatV2    = []string{"usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"}
	cpuStatV1    = []string{"nr_periods", "nr_throttled", "throttled_time"}
	cpuacctStat  = []string{"user", "system"}
	memoryStatV1 = []string{
		"total_rss", "total_cache", "total_mapped_file", "total_active_file", "total_inactive_file",
		"pgfault", "pgmajfault", "total_pgfault", "total_pgmajfault",
	}
	memoryStatV2 = []string{
		"anon", "file", "kernel", "file_mapped", "active_file", "inactive_file", "pgfault", "pgmajfault",
		"kernel_stack", "slab", "pagetables", "percpu", "sock",
	}
)

// kernelV2 is the index of "kernel" in memoryStatV2, which Linux before 5.18 does not have.
const kernelV2 = 2

// readCPU reads the CPU time: on cgroup v1 the total, on v2 all of CPU, which is in one file.
func readCPU(g cgroup.Group) (c CPU, err error) {
	if g.V2 != "" {
		var v [6]uint64
		_, err := cgroup.ReadNumbers(g.V2, "cpu.stat", cpuStatV2, v[:])
		return CPU{
			Total: v[0] * 1000, User: v[1] * 1000, System: v[2] * 1000,
			Periods: v[3], ThrottledPeriods: v[4], ThrottledTime: v[5] * 1000,
		}, err
	}
	dir, ok := g.Dir("cpuacct")
	if !ok {
		return c, errors.New("CPU time is not counted: the cgroup controller cpuacct is not mounted")
	}
	c.Total, err = cgroup.ReadUint(dir, "cpuacct.usage")
	return c, err
}

// readCPUDetail adds what readCPU has not read.
func readCPUDetail(g cgroup.Group, c *CPU) error {
	if g.V2 != "" {
		return nil
	}
	dir, _ := g.Dir("cpuacct")
	var times [2]uint64
	if _, err := cgroup.ReadNumbers(dir, "cpuacct.stat", cpuacctStat, times[:]); err != nil {
		return err
	}
	c.User, c.System = times[0]*clockTick, times[1]*clockTick
	dir, ok := g.Dir("cpu")
	if !ok {
		return nil
	}
	var v [3]uint64
	_, err := cgroup.ReadNumbers(dir, "cpu.stat", cpuStatV1, v[:])
	c.Periods, c.ThrottledPeriods, c.ThrottledTime = v[0], v[1], v[2]
	return err
}

// isUnsupported reports whether err says that the kernel does not count something.
func isUnsupported(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP)
}

// zeroIfUnsupported replaces the error of a file that not every kernel has by 0.
func zeroIfUnsupported(n uint64, err error) (uint64, error) {
	if isUnsupported(err) {
		return 0, nil
	}
	return n, err
}

// satSub returns a - b, or 0 if b is larger: the two come from files that are read one
// after the other.
func satSub(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

func readMemory(g cgroup.Group) (Memory, error) {
	if g.V2 != "" {
		return readMemoryV2(g.V2)
	}
	dir, ok := g.Dir("memory")
	if !ok {
		return Memory{}, errors.New("memory is not counted: the cgroup controller memory is not mounted")
	}
	return readMemoryV1(dir)
}

// readMemoryDetail adds what readMemory has not read.
func readMemoryDetail(g cgroup.Group, m *Memory) error {
	if g.V2 != "" {
		return readMemoryDetailV2(g.V2, m)
	}
	dir, _ := g.Dir("memory")
	return readMemoryDetailV1(dir, m)
}

// unlimitedV1 returns n, or cgroup.Unlimited for the value that cgroup v1 shows where there
// is no limit: the largest multiple of the page size.
func unlimitedV1(n uint64) uint64 {
	if n >= 1<<62 {
		return cgroup.Unlimited
	}
	return n
}

func readMemoryV1(dir string) (m Memory, err error) {
	if m.Usage, err = cgroup.ReadUint(dir, "memory.usage_in_bytes"); err != nil {
		return m, err
	}
	var v [9]uint64
	if _, err = cgroup.ReadNumbers(dir, "memory.stat", memoryStatV1, v[:]); err != nil {
		return m, err
	}
	m.RSS, m.Cache, m.MappedFile, m.ActiveFile, m.InactiveFile = v[0], v[1], v[2], v[3], v[4]
	m.OwnPageFaults, m.OwnMajorPageFaults, m.PageFaults, m.MajorPageFaults = v[5], v[6], v[7], v[8]
	if m.Limit, err = cgroup.ReadUint(dir, "memory.limit_in_bytes"); err != nil {
		return m, err
	}
	m.Limit = unlimitedV1(m.Limit)
	used, limit, err := readSwap(dir, "memory.memsw.usage_in_bytes", "memory.memsw.limit_in_bytes")
	if err != nil {
		return m, err
	}
	m.Swap, m.SwapLimit, m.SwapHeadroom = satSub(used, m.Usage), unlimitedV1(limit), satSub(limit, used)
	return m, nil
}

func readMemoryDetailV1(dir string, m *Memory) (err error) {
	for _, f := range []struct {
		name string
		to   *uint64
	}{
		{"memory.max_usage_in_bytes", &m.Peak}, {"memory.failcnt", &m.LimitReached},
		{"memory.kmem.usage_in_bytes", &m.Kernel}, {"memory.soft_limit_in_bytes", &m.Reservation},
	} {
		if *f.to, err = zeroIfUnsupported(cgroup.ReadUint(dir, f.name)); err != nil {
			return err
		}
	}
	m.Reservation = unlimitedV1(m.Reservation)
	control, err := cgroup.ReadKeyed(dir, "memory.oom_control", "oom_kill")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	m.OOMKills = control["oom_kill"]
	return nil
}

func readMemoryV2(dir string) (m Memory, err error) {
	if m.Usage, err = cgroup.ReadUint(dir, "memory.current"); err != nil {
		return m, err
	}
	var v [13]uint64
	found, err := cgroup.ReadNumbers(dir, "memory.stat", memoryStatV2, v[:])
	if err != nil {
		return m, err
	}
	m.RSS, m.Cache, m.Kernel, m.MappedFile, m.ActiveFile, m.InactiveFile = v[0], v[1], v[kernelV2], v[3], v[4], v[5]
	m.PageFaults, m.MajorPageFaults = v[6], v[7]
	if found&(1<<kernelV2) == 0 { // Linux < 5.18
		m.Kernel = v[8] + v[9] + v[10] + v[11] + v[12]
	}
	m.OwnPageFaults, m.OwnMajorPageFaults = m.PageFaults, m.MajorPageFaults
	if m.Limit, err = cgroup.ReadUint(dir, "memory.max"); err != nil {
		return m, err
	}
	if m.Swap, m.SwapLimit, err = readSwap(dir, "memory.swap.current", "memory.swap.max"); err != nil {
		return m, err
	}
	m.SwapHeadroom = satSub(m.SwapLimit, m.Swap)
	return m, nil
}

func readMemoryDetailV2(dir string, m *Memory) (err error) {
	if m.Peak, err = zeroIfUnsupported(cgroup.ReadUint(dir, "memory.peak")); err != nil {
		return err
	}
	m.Peak = max(m.Peak, m.Usage) // Linux < 5.19 has no peak; current usage is a lower bound
	if m.Reservation, err = zeroIfUnsupported(cgroup.ReadUint(dir, "memory.low")); err != nil {
		return err
	}
	events, err := cgroup.ReadKeyed(dir, "memory.events", "max", "oom_kill")
	m.LimitReached, m.OOMKills = events["max"], events["oom_kill"]
	return err
}

// readSwap returns the values of a pair of swap files, both 0 if the kernel does not count
// swap. It creates both files or none, so only the first may be missing: a limit that is
// missing beside a usage means that the cgroup is being removed.
func readSwap(dir, usageFile, limitFile string) (usage, limit uint64, err error) {
	usage, err = cgroup.ReadUint(dir, usageFile)
	if isUnsupported(err) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	limit, err = cgroup.ReadUint(dir, limitFile)
	return usage, limit, err
}

func readPressure(g cgroup.Group) (p Pressure, err error) {
	if g.V2 == "" {
		return p, nil
	}
	for _, f := range []struct {
		name string
		to   **PSI
	}{{"cpu.pressure", &p.CPU}, {"memory.pressure", &p.Memory}, {"io.pressure", &p.IO}} {
		some, full, err := cgroup.ReadPressure(g.V2, f.name)
		if err != nil {
			return p, err
		}
		if some != nil || full != nil {
			*f.to = &PSI{Some: some, Full: full}
		}
	}
	return p, nil
}

// Threads returns the number of processes and threads in g. Without the controller pids,
// which the kubelet requires as well, it is an error.
func Threads(g cgroup.Group) (uint64, error) {
	dir, ok := g.Dir("pids")
	if !ok {
		return 0, errors.New("processes are not counted: the cgroup controller pids is not mounted")
	}
	return cgroup.ReadUint(dir, "pids.current")
}

func readThreadLimit(g cgroup.Group) (uint64, error) {
	dir, _ := g.Dir("pids")
	return zeroIfUnsupported(cgroup.ReadUint(dir, "pids.max"))
}

func readHugePages(g cgroup.Group, sizes []string) (all []HugePages, err error) {
	dir, ok := g.Dir("hugetlb")
	if !ok {
		return nil, nil
	}
	usage, peak := ".usage_in_bytes", ".max_usage_in_bytes"
	if g.V2 != "" {
		usage, peak = ".current", ""
	}
	for _, size := range sizes {
		h := HugePages{Size: size}
		h.Usage, err = cgroup.ReadUint(dir, "hugetlb."+size+usage)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the controller is off for this cgroup
		}
		if err == nil && peak != "" {
			h.Peak, err = cgroup.ReadUint(dir, "hugetlb."+size+peak)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, h)
	}
	return all, nil
}

func readDevices(g cgroup.Group) ([]Device, error) {
	found, err := cgroup.ReadDeviceIO(g)
	all := make([]Device, 0, len(found))
	for _, d := range found {
		all = append(all, Device{Name: deviceName(d.Major + ":" + d.Minor), Major: d.Major, Minor: d.Minor, Bytes: d.Bytes, Requests: d.Requests})
	}
	return all, err
}

// deviceName returns the path of the block device with a number like 8:0, or the number
// itself if the device is gone.
func deviceName(number string) string {
	target, err := os.Readlink("/sys/dev/block/" + number)
	if err != nil {
		return number
	}
	return "/dev/" + filepath.Base(target)
}
