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
	// Usage reads what CRI statistics carry.
	Usage Detail = iota
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

	// The fields below are read with All only.

	// Devices are the block devices that the cgroup has used.
	Devices []Device
	// HugePages has one entry for each page size that the controller hugetlb counts.
	HugePages []HugePages
	// Threads counts processes and their threads, as the kernel limits them.
	Threads, ThreadLimit uint64
}

// CPU is CPU time. With Usage only Total is read on cgroup v1.
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

// Read reads the cgroup g. The error is one for which IsGone is true if g does not exist.
func Read(g cgroup.Group, detail Detail) (*Reading, error) {
	r := &Reading{At: time.Now()}
	var err error
	if r.CPU, err = readCPU(g, detail); err != nil {
		return nil, err
	}
	if r.Memory, err = readMemory(g, detail); err != nil {
		return nil, err
	}
	if r.Pressure, err = readPressure(g); err != nil {
		return nil, err
	}
	if detail != All {
		return r, nil
	}
	if r.Devices, err = readDevices(g); err != nil {
		return nil, err
	}
	if r.Threads, err = Threads(g); err != nil {
		return nil, err
	}
	if r.ThreadLimit, err = readThreadLimit(g); err != nil {
		return nil, err
	}
	r.HugePages, err = readHugePages(g, ThisHost().PageSizes)
	return r, err
}

// CPUTime returns the CPU time that g has used, in nanoseconds.
func CPUTime(g cgroup.Group) (uint64, error) {
	cpu, err := readCPU(g, Usage)
	return cpu.Total, err
}

// clockTick is the unit of cpuacct.stat in nanoseconds: USER_HZ, which is 100 Hz on all
// architectures that Docker supports, independent of CONFIG_HZ (time(7)).
const clockTick = 10_000_000

func readCPU(g cgroup.Group, detail Detail) (c CPU, err error) {
	if g.V2 != "" {
		stat, err := cgroup.ReadKeyed(g.V2, "cpu.stat", "usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec")
		return CPU{
			Total: stat["usage_usec"] * 1000, User: stat["user_usec"] * 1000, System: stat["system_usec"] * 1000,
			Periods: stat["nr_periods"], ThrottledPeriods: stat["nr_throttled"], ThrottledTime: stat["throttled_usec"] * 1000,
		}, err
	}
	dir, ok := g.Dir("cpuacct")
	if !ok {
		return c, errors.New("CPU time is not counted: the cgroup controller cpuacct is not mounted")
	}
	if c.Total, err = cgroup.ReadUint(dir, "cpuacct.usage"); err != nil || detail != All {
		return c, err
	}
	times, err := cgroup.ReadKeyed(dir, "cpuacct.stat", "user", "system")
	if err != nil {
		return c, err
	}
	c.User, c.System = times["user"]*clockTick, times["system"]*clockTick
	if dir, ok := g.Dir("cpu"); ok {
		stat, err := cgroup.ReadKeyed(dir, "cpu.stat", "nr_periods", "nr_throttled", "throttled_time")
		if err != nil {
			return c, err
		}
		c.Periods, c.ThrottledPeriods, c.ThrottledTime = stat["nr_periods"], stat["nr_throttled"], stat["throttled_time"]
	}
	return c, nil
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

func readMemory(g cgroup.Group, detail Detail) (Memory, error) {
	if g.V2 != "" {
		return readMemoryV2(g.V2, detail)
	}
	dir, ok := g.Dir("memory")
	if !ok {
		return Memory{}, errors.New("memory is not counted: the cgroup controller memory is not mounted")
	}
	return readMemoryV1(dir, detail)
}

// unlimitedV1 returns n, or cgroup.Unlimited for the value that cgroup v1 shows where there
// is no limit: the largest multiple of the page size.
func unlimitedV1(n uint64) uint64 {
	if n >= 1<<62 {
		return cgroup.Unlimited
	}
	return n
}

func readMemoryV1(dir string, detail Detail) (m Memory, err error) {
	if m.Usage, err = cgroup.ReadUint(dir, "memory.usage_in_bytes"); err != nil {
		return m, err
	}
	stat, err := cgroup.ReadKeyed(dir, "memory.stat", "total_rss", "total_cache", "total_mapped_file", "total_active_file", "total_inactive_file",
		"pgfault", "pgmajfault", "total_pgfault", "total_pgmajfault")
	if err != nil {
		return m, err
	}
	m.RSS, m.Cache, m.MappedFile = stat["total_rss"], stat["total_cache"], stat["total_mapped_file"]
	m.ActiveFile, m.InactiveFile = stat["total_active_file"], stat["total_inactive_file"]
	m.OwnPageFaults, m.OwnMajorPageFaults = stat["pgfault"], stat["pgmajfault"]
	m.PageFaults, m.MajorPageFaults = stat["total_pgfault"], stat["total_pgmajfault"]
	if m.Limit, err = cgroup.ReadUint(dir, "memory.limit_in_bytes"); err != nil {
		return m, err
	}
	m.Limit = unlimitedV1(m.Limit)
	used, limit, err := readSwap(dir, "memory.memsw.usage_in_bytes", "memory.memsw.limit_in_bytes")
	if err != nil {
		return m, err
	}
	m.Swap, m.SwapLimit, m.SwapHeadroom = satSub(used, m.Usage), unlimitedV1(limit), satSub(limit, used)
	if detail != All {
		return m, nil
	}
	for _, f := range []struct {
		name string
		to   *uint64
	}{
		{"memory.max_usage_in_bytes", &m.Peak}, {"memory.failcnt", &m.LimitReached},
		{"memory.kmem.usage_in_bytes", &m.Kernel}, {"memory.soft_limit_in_bytes", &m.Reservation},
	} {
		if *f.to, err = zeroIfUnsupported(cgroup.ReadUint(dir, f.name)); err != nil {
			return m, err
		}
	}
	m.Reservation = unlimitedV1(m.Reservation)
	control, err := cgroup.ReadKeyed(dir, "memory.oom_control", "oom_kill")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	m.OOMKills = control["oom_kill"]
	return m, nil
}

func readMemoryV2(dir string, detail Detail) (m Memory, err error) {
	if m.Usage, err = cgroup.ReadUint(dir, "memory.current"); err != nil {
		return m, err
	}
	stat, err := cgroup.ReadKeyed(dir, "memory.stat", "anon", "file", "kernel", "file_mapped", "active_file", "inactive_file", "pgfault", "pgmajfault",
		"kernel_stack", "slab", "pagetables", "percpu", "sock")
	if err != nil {
		return m, err
	}
	m.RSS, m.Cache, m.Kernel, m.MappedFile = stat["anon"], stat["file"], stat["kernel"], stat["file_mapped"]
	if _, ok := stat["kernel"]; !ok { // Linux < 5.18
		m.Kernel = stat["kernel_stack"] + stat["slab"] + stat["pagetables"] + stat["percpu"] + stat["sock"]
	}
	m.ActiveFile, m.InactiveFile = stat["active_file"], stat["inactive_file"]
	m.PageFaults, m.MajorPageFaults = stat["pgfault"], stat["pgmajfault"]
	m.OwnPageFaults, m.OwnMajorPageFaults = m.PageFaults, m.MajorPageFaults
	if m.Limit, err = cgroup.ReadUint(dir, "memory.max"); err != nil {
		return m, err
	}
	if m.Swap, m.SwapLimit, err = readSwap(dir, "memory.swap.current", "memory.swap.max"); err != nil {
		return m, err
	}
	m.SwapHeadroom = satSub(m.SwapLimit, m.Swap)
	if detail != All {
		return m, nil
	}
	if m.Peak, err = zeroIfUnsupported(cgroup.ReadUint(dir, "memory.peak")); err != nil {
		return m, err
	}
	m.Peak = max(m.Peak, m.Usage) // Linux < 5.19 has no peak; current usage is a lower bound
	if m.Reservation, err = zeroIfUnsupported(cgroup.ReadUint(dir, "memory.low")); err != nil {
		return m, err
	}
	events, err := cgroup.ReadKeyed(dir, "memory.events", "max", "oom_kill")
	m.LimitReached, m.OOMKills = events["max"], events["oom_kill"]
	return m, err
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
