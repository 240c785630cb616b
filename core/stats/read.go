package stats

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth/core/cgroup"
)

// A host is what this machine can tell.
type host struct {
	v2        bool
	pressure  bool
	pageSizes []string // of huge pages, as cgroups name them
}

func (h host) pressed() bool { return h.pressure }

// thisHost is decided once: the kubelet asks only once what there will be.
var thisHost = sync.OnceValue(func() host { return hostAt("/") })

// hostAt looks at the machine whose files are at root.
func hostAt(root string) host {
	at := func(path string) string { return filepath.Join(root, path) }
	controllers, err := os.ReadFile(at(cgroup.Root + "/cgroup.controllers"))
	h := host{v2: err == nil}
	huge := slices.Contains(strings.Fields(string(controllers)), "hugetlb")
	if h.v2 {
		// Pressure may be built in but off; then its files cannot be read.
		_, err := os.ReadFile(at("/proc/pressure/memory"))
		h.pressure = err == nil
	} else {
		_, err := os.Stat(at(cgroup.Root + "/hugetlb"))
		huge = err == nil
	}
	if !huge {
		return h
	}
	entries, err := os.ReadDir(at("/sys/kernel/mm/hugepages"))
	if err != nil {
		return h // the kernel has none
	}
	for _, e := range entries {
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err == nil {
			h.pageSizes = append(h.pageSizes, pageSize(kib))
		}
	}
	return h
}

// pageSize names a page size as cgroups do.
func pageSize(kib uint64) string {
	switch {
	case kib >= 1<<20:
		return strconv.FormatUint(kib>>20, 10) + "GB"
	case kib >= 1<<10:
		return strconv.FormatUint(kib>>10, 10) + "MB"
	default:
		return strconv.FormatUint(kib, 10) + "KB"
	}
}

// A cpuReading has times in nanoseconds.
type cpuReading struct {
	total, user, system               uint64
	periods, throttled, throttledTime uint64
}

// tick of the clock that cpuacct.stat counts in: Linux shows all programs
// 100 Hz, whatever its own is.
const clockTick = 10_000_000

func readCPU(g cgroup.Group) (r cpuReading, err error) {
	if g.V2 != "" {
		stat, err := cgroup.Numbers(g.V2, "cpu.stat", "usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec")
		return cpuReading{
			total: stat["usage_usec"] * 1000, user: stat["user_usec"] * 1000, system: stat["system_usec"] * 1000,
			periods: stat["nr_periods"], throttled: stat["nr_throttled"], throttledTime: stat["throttled_usec"] * 1000,
		}, err
	}
	if r.total, err = cpuTime(g); err != nil {
		return r, err
	}
	times, err := cgroup.Numbers(g.V1["cpuacct"], "cpuacct.stat", "user", "system")
	if err != nil {
		return r, err
	}
	r.user, r.system = times["user"]*clockTick, times["system"]*clockTick
	if dir, ok := g.V1["cpu"]; ok {
		stat, err := cgroup.Numbers(dir, "cpu.stat", "nr_periods", "nr_throttled", "throttled_time")
		if err != nil {
			return r, err
		}
		r.periods, r.throttled, r.throttledTime = stat["nr_periods"], stat["nr_throttled"], stat["throttled_time"]
	}
	return r, nil
}

// A memoryReading has numbers of bytes and of events.
type memoryReading struct {
	usage, most, rss, cache, kernel, mapped, swap uint64
	activeFile, inactiveFile, reserved            uint64
	failures, kills                               uint64
	swapLimit                                     uint64 // with memory on v1, 0 for none
	ownFaults, ownMajorFaults                     uint64
	faults, majorFaults                           uint64 // with what is below
}

// sure makes a number of one that the kernel may not know: none is 0.
func sure(n uint64, err error) (uint64, error) {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) {
		return 0, nil
	}
	return n, err
}

func readMemory(g cgroup.Group) (memoryReading, error) {
	if g.V2 != "" {
		return readMemoryV2(g.V2)
	}
	dir, ok := g.Dir("memory")
	if !ok {
		return memoryReading{}, errors.New("no cgroup counts memory: the controller memory is not mounted")
	}
	return readMemoryV1(dir)
}

func readMemoryV1(dir string) (r memoryReading, err error) {
	stat, err := cgroup.Numbers(dir, "memory.stat", "total_rss", "total_cache", "total_mapped_file", "total_active_file", "total_inactive_file",
		"pgfault", "pgmajfault", "total_pgfault", "total_pgmajfault")
	if err != nil {
		return r, err
	}
	r = memoryReading{
		rss: stat["total_rss"], cache: stat["total_cache"], mapped: stat["total_mapped_file"],
		activeFile: stat["total_active_file"], inactiveFile: stat["total_inactive_file"],
		ownFaults: stat["pgfault"], ownMajorFaults: stat["pgmajfault"], faults: stat["total_pgfault"], majorFaults: stat["total_pgmajfault"],
	}
	if r.usage, err = cgroup.Number(dir, "memory.usage_in_bytes"); err != nil {
		return r, err
	}
	var both uint64
	for file, to := range map[string]*uint64{
		"memory.max_usage_in_bytes": &r.most, "memory.failcnt": &r.failures, "memory.kmem.usage_in_bytes": &r.kernel,
		"memory.soft_limit_in_bytes": &r.reserved, "memory.memsw.usage_in_bytes": &both,
		"memory.memsw.limit_in_bytes": &r.swapLimit,
	} {
		if *to, err = sure(cgroup.Number(dir, file)); err != nil {
			return r, err
		}
	}
	r.swap = less(both, r.usage)
	if r.reserved >= 1<<62 {
		r.reserved = 0 // version 1 writes the largest number of whole pages for none
	}
	if r.swapLimit >= 1<<62 {
		r.swapLimit = 0
	}
	control, err := cgroup.Numbers(dir, "memory.oom_control", "oom_kill")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	r.kills = control["oom_kill"]
	return r, nil
}

func readMemoryV2(dir string) (r memoryReading, err error) {
	stat, err := cgroup.Numbers(dir, "memory.stat", "anon", "file", "kernel", "file_mapped", "active_file", "inactive_file", "pgfault", "pgmajfault",
		"kernel_stack", "slab", "pagetables", "percpu", "sock")
	if err != nil {
		return r, err
	}
	r = memoryReading{
		rss: stat["anon"], cache: stat["file"], kernel: stat["kernel"], mapped: stat["file_mapped"],
		activeFile: stat["active_file"], inactiveFile: stat["inactive_file"],
		ownFaults: stat["pgfault"], ownMajorFaults: stat["pgmajfault"], faults: stat["pgfault"], majorFaults: stat["pgmajfault"],
	}
	if _, ok := stat["kernel"]; !ok { // before Linux 5.18
		r.kernel = stat["kernel_stack"] + stat["slab"] + stat["pagetables"] + stat["percpu"] + stat["sock"]
	}
	if r.usage, err = cgroup.Number(dir, "memory.current"); err != nil {
		return r, err
	}
	for file, to := range map[string]*uint64{"memory.peak": &r.most, "memory.swap.current": &r.swap, "memory.low": &r.reserved, "memory.swap.max": &r.swapLimit} {
		if *to, err = sure(cgroup.Number(dir, file)); err != nil {
			return r, err
		}
	}
	// Before Linux 5.19 there is no peak; what is in use now is the least that
	// it can be.
	r.most = max(r.most, r.usage)
	if r.reserved == cgroup.Unlimited {
		r.reserved = 0
	}
	if r.swapLimit == cgroup.Unlimited {
		r.swapLimit = 0
	}
	events, err := cgroup.Numbers(dir, "memory.events", "max", "oom_kill")
	r.failures, r.kills = events["max"], events["oom_kill"]
	return r, err
}

// A hugeReading is about huge pages of one size.
type hugeReading struct {
	size        string
	usage, most uint64
}

func readHuge(g cgroup.Group, sizes []string) (all []hugeReading, err error) {
	dir, ok := g.Dir("hugetlb")
	if !ok {
		return nil, nil
	}
	usage, most := ".usage_in_bytes", ".max_usage_in_bytes"
	if g.V2 != "" {
		usage, most = ".current", ""
	}
	for _, size := range sizes {
		r := hugeReading{size: size}
		r.usage, err = cgroup.Number(dir, "hugetlb."+size+usage)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the controller is off for this group
		}
		if err == nil && most != "" {
			r.most, err = cgroup.Number(dir, "hugetlb."+size+most)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// A device is a block device and what has been moved from and to it.
type device struct {
	cgroup.Device
	name string
}

func readDevices(g cgroup.Group) ([]device, error) {
	found, err := cgroup.Devices(g)
	all := make([]device, 0, len(found))
	for _, d := range found {
		all = append(all, device{d, deviceName(d.Major + ":" + d.Minor)})
	}
	return all, err
}

// deviceName returns the path of a block device, or its number if it has gone.
func deviceName(number string) string {
	target, err := os.Readlink("/sys/dev/block/" + number)
	if err != nil {
		return number
	}
	return "/dev/" + filepath.Base(target)
}

// A disk is the file system that containers are on.
type disk struct {
	device                   string
	size, inodes, inodesFree uint64
}

func readDisk(dir string) (*disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	d := &disk{size: st.Blocks * uint64(max(st.Bsize, 0)), inodes: st.Files, inodesFree: st.Ffree}
	var info unix.Stat_t
	if err := unix.Stat(dir, &info); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	d.device = deviceName(strconv.FormatUint(uint64(unix.Major(info.Dev)), 10) + ":" + strconv.FormatUint(uint64(unix.Minor(info.Dev)), 10))
	return d, nil
}

// readOpenFiles returns how many files the process pid may open, nil for no limit.
func readOpenFiles(pid int) (*uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/limits")
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(data) {
		rest, ok := bytes.CutPrefix(line, []byte("Max open files"))
		if !ok {
			continue
		}
		fields := bytes.Fields(rest) // soft, hard, unit
		if len(fields) == 0 {
			break
		}
		n, err := strconv.ParseUint(string(fields[0]), 10, 64)
		if err != nil {
			return nil, nil // unlimited
		}
		return &n, nil
	}
	return nil, nil
}
