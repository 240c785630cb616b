package cgroupstats

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"berth/core/cgroup"
)

// A Host says what the kernel of the node counts.
type Host struct {
	CgroupV2  bool
	Pressure  bool     // pressure stall information for cgroups
	PageSizes []string // sizes of huge pages that cgroups count, named as in cgroup files
}

// ThisHost describes this node. It is determined once: the kubelet reads the metric
// descriptors only at its start.
var ThisHost = sync.OnceValue(func() Host { return hostAt("/") })

// hostAt describes the machine with the file tree root.
func hostAt(root string) Host {
	at := func(path string) string { return filepath.Join(root, path) }
	controllers, err := os.ReadFile(at(cgroup.Root + "/cgroup.controllers"))
	h := Host{CgroupV2: err == nil}
	hugetlb := slices.Contains(strings.Fields(string(controllers)), "hugetlb")
	if h.CgroupV2 {
		// The files exist but cannot be read if PSI is built in and off.
		_, err := os.ReadFile(at("/proc/pressure/memory"))
		h.Pressure = err == nil
	} else {
		_, err := os.Stat(at(cgroup.Root + "/hugetlb"))
		hugetlb = err == nil
	}
	if !hugetlb {
		return h
	}
	entries, err := os.ReadDir(at("/sys/kernel/mm/hugepages"))
	if err != nil {
		return h // built without huge pages
	}
	for _, e := range entries {
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err == nil {
			h.PageSizes = append(h.PageSizes, pageSizeName(kib))
		}
	}
	return h
}

// pageSizeName names a page size as cgroup files do.
func pageSizeName(kib uint64) string {
	switch {
	case kib >= 1<<20:
		return strconv.FormatUint(kib>>20, 10) + "GB"
	case kib >= 1<<10:
		return strconv.FormatUint(kib>>10, 10) + "MB"
	default:
		return strconv.FormatUint(kib, 10) + "KB"
	}
}

// freeSwapTTL is how long the node's free swap is cached: it is the same for all
// containers of one response.
const freeSwapTTL = time.Second

// FreeSwap returns the free swap of the node in bytes, 0 if it cannot be read.
var FreeSwap = func() func() uint64 {
	var mu sync.Mutex // guards readAt and free
	var readAt time.Time
	var free uint64
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(readAt) > freeSwapTTL {
			readAt, free = time.Now(), readFreeSwap()
		}
		return free
	}
}()

func readFreeSwap() uint64 {
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return 0
	}
	info, err := proc.Meminfo()
	if err != nil || info.SwapFreeBytes == nil {
		return 0
	}
	return *info.SwapFreeBytes
}

// A Filesystem is the file system that a directory is on.
type Filesystem struct {
	Device                   string // as /dev/sda1
	Size, Inodes, InodesFree uint64
}

// ReadFilesystem describes the file system that dir is on.
func ReadFilesystem(dir string) (*Filesystem, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	var info unix.Stat_t
	if err := unix.Stat(dir, &info); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	number := strconv.FormatUint(uint64(unix.Major(info.Dev)), 10) + ":" + strconv.FormatUint(uint64(unix.Minor(info.Dev)), 10)
	return &Filesystem{Device: deviceName(number), Size: st.Blocks * uint64(max(st.Bsize, 0)), Inodes: st.Files, InodesFree: st.Ffree}, nil
}
