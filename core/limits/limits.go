// Package limits translates the resources of a container: from the CRI's
// LinuxContainerResources to the resources of the Engine API and, for what that API
// cannot express, to values of cgroup files (CgroupSetting). It also translates
// updates and how to undo them. Like package todocker it is pure: values in, values
// out, no I/O.
//
// Errors are of kind InvalidArgument, and of kind FailedPrecondition where the node is the reason.
package limits

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

const (
	// minMemory is the lowest memory limit, in bytes, that Docker accepts
	// (linuxMinMemory in daemon/daemon_unix.go). A lower one is written to the cgroup.
	minMemory = 6 << 20

	// unlimited stands for no limit of memory or CPU time, in the CRI and in Docker.
	unlimited = -1

	// The range of oom_score_adj, see proc_pid_oom_score_adj(5).
	minOOMScoreAdj = -1000
	maxOOMScoreAdj = 1000
)

// Cgroup files that several functions write.
const (
	memoryMaxV2  = "memory.max"
	swapMaxV2    = "memory.swap.max"
	memoryMaxV1  = "memory.limit_in_bytes"
	memorySwapV1 = "memory.memsw.limit_in_bytes"
)

// EngineResources returns the part of r that the Engine API can express.
func EngineResources(r *runtimeapi.LinuxContainerResources, features engine.Features) (container.Resources, error) {
	out := container.Resources{
		CPUShares:  r.GetCpuShares(),
		CPUQuota:   r.GetCpuQuota(),
		CPUPeriod:  r.GetCpuPeriod(),
		CpusetCpus: r.GetCpusetCpus(),
		CpusetMems: r.GetCpusetMems(),
	}
	if score := r.GetOomScoreAdj(); score < minOOMScoreAdj || score > maxOOMScoreAdj {
		return out, invalid("oom_score_adj %d: must be between %d and %d", score, minOOMScoreAdj, maxOOMScoreAdj)
	}
	memory, withSwap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case memory < 0:
		return out, invalid("memory_limit_in_bytes %d: must be 0 or more", memory)
	case withSwap < unlimited:
		return out, invalid("memory_swap_limit_in_bytes %d: must be -1 (unlimited) or more", withSwap)
	case withSwap > 0 && memory == 0:
		return out, invalid("memory_swap_limit_in_bytes %d needs a memory_limit_in_bytes", withSwap)
	case withSwap > 0 && withSwap < memory:
		return out, invalid("memory_swap_limit_in_bytes %d: must be at least memory_limit_in_bytes %d, which it includes", withSwap, memory)
	}
	if memory < minMemory {
		return out, nil
	}
	out.Memory = memory
	// Docker would set an empty MemorySwap to twice the memory limit
	// (adaptContainerSettings in daemon/daemon_unix.go).
	out.MemorySwap = memory
	if withSwap != 0 {
		out.MemorySwap = withSwap
	} else if value, ok := r.GetUnified()[swapMaxV2]; ok && features.CgroupVersion == 2 {
		swap, err := parseBytesOrMax(value)
		if err != nil {
			return out, invalid("unified %s %q: must be a number of bytes or \"max\"", swapMaxV2, value)
		}
		if out.MemorySwap = unlimited; swap >= 0 {
			out.MemorySwap = memory + swap
		}
	}
	return out, nil
}

// parseBytesOrMax parses a number of bytes; "max" is -1.
func parseBytesOrMax(text string) (int64, error) {
	if text == "max" {
		return unlimited, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err == nil && n < 0 {
		err = strconv.ErrRange
	}
	return n, err
}

// A CgroupSetting is a cgroup file and the value to write to it.
type CgroupSetting struct {
	Controller string // the hierarchy of cgroup v1 that File is in; "" on v2
	File       string
	Value      string
	// Optional settings are skipped where the file does not exist: the kernel then
	// behaves as if it had the value.
	Optional bool
	// AfterStart settings are written once the container runs: the low-level runtime,
	// which starts it in the same cgroup, needs more than they allow.
	AfterStart bool
}

// ControllerName returns the name of the cgroup controller that the setting belongs to,
// or "" for files of the cgroup core (cgroup.*).
func (s CgroupSetting) ControllerName() string {
	if s.Controller != "" {
		return s.Controller
	}
	name, _, _ := strings.Cut(s.File, ".")
	if name == "cgroup" {
		return ""
	}
	return name
}

// CgroupSettings returns the part of r that the Engine API cannot express, in the order
// in which it must be written to the container's cgroup.
func CgroupSettings(r *runtimeapi.LinuxContainerResources, features engine.Features) ([]CgroupSetting, error) {
	settings, err := memorySettings(r, features)
	if err != nil {
		return nil, err
	}
	hugepages, err := hugepageSettings(r.GetHugepageLimits(), features.CgroupVersion == 2)
	if err != nil {
		return nil, err
	}
	settings = append(settings, hugepages...)
	unified := r.GetUnified()
	if len(unified) > 0 && features.CgroupVersion != 2 {
		return nil, fmt.Errorf("unified resources need a node with cgroup v2, and this one has v1: %w", errdefs.ErrFailedPrecondition)
	}
	for _, file := range slices.Sorted(maps.Keys(unified)) {
		if file == "" || strings.Contains(file, "/") || !strings.Contains(file, ".") {
			return nil, invalid("unified resource %q: must be the name of a cgroup file, such as memory.high", file)
		}
		if file == swapMaxV2 && r.GetMemoryLimitInBytes() >= minMemory {
			continue // part of EngineResources
		}
		settings = append(settings, CgroupSetting{File: file, Value: unified[file]})
	}
	return settings, nil
}

// memorySettings returns the limits of memory and swap that Docker would not set.
func memorySettings(r *runtimeapi.LinuxContainerResources, features engine.Features) ([]CgroupSetting, error) {
	memory := r.GetMemoryLimitInBytes()
	v2 := features.CgroupVersion == 2
	switch {
	case memory > 0 && memory < minMemory:
		return lowMemorySettings(memory, r, v2), nil
	case memory > 0 && v2 && features.CgroupDriver == "systemd":
		limits, err := EngineResources(r, features)
		if err != nil {
			return nil, err
		}
		if limits.MemorySwap == memory {
			// For no swap, runc writes 0 to the file but does not set MemorySwapMax= of
			// the systemd scope (moby#51446, opencontainers/cgroups#74): after a
			// daemon-reload of systemd the
			// container could swap without limit.
			return []CgroupSetting{{File: swapMaxV2, Value: "0", Optional: true}}, nil
		}
	}
	return nil, nil
}

// hugepageSettings returns the limits of huge pages, which the Engine API does not have.
func hugepageSettings(limits []*runtimeapi.HugepageLimit, v2 bool) (settings []CgroupSetting, err error) {
	controller, suffix := "", "max"
	if !v2 {
		controller, suffix = "hugetlb", "limit_in_bytes"
	}
	for _, h := range limits {
		size := h.GetPageSize()
		if size == "" || strings.ContainsAny(size, "/.") {
			return nil, invalid("page_size %q of a hugepage limit: must be a size such as 2MB or 1GB", size)
		}
		value := strconv.FormatUint(h.GetLimit(), 10)
		settings = append(settings,
			CgroupSetting{Controller: controller, File: fmt.Sprintf("hugetlb.%s.%s", size, suffix), Value: value, Optional: h.GetLimit() == 0},
			// Reserved pages that are not used yet have a limit of their own since Linux 5.7.
			CgroupSetting{Controller: controller, File: fmt.Sprintf("hugetlb.%s.rsvd.%s", size, suffix), Value: value, Optional: true})
	}
	return settings, nil
}

// EngineManagedFiles returns the cgroup files that Docker writes for resources of the
// Engine API, without values.
func EngineManagedFiles(features engine.Features) []CgroupSetting {
	if features.CgroupVersion == 2 {
		return []CgroupSetting{
			{File: "cpu.weight", Optional: true},
			{File: "cpu.max", Optional: true},
			{File: "cpuset.cpus", Optional: true},
			{File: "cpuset.mems", Optional: true},
			{File: memoryMaxV2, Optional: true},
			{File: swapMaxV2, Optional: true},
		}
	}
	return []CgroupSetting{
		{Controller: "cpu", File: "cpu.shares", Optional: true},
		{Controller: "cpu", File: "cpu.cfs_period_us", Optional: true},
		{Controller: "cpu", File: "cpu.cfs_quota_us", Optional: true},
		{Controller: "cpuset", File: "cpuset.cpus", Optional: true},
		{Controller: "cpuset", File: "cpuset.mems", Optional: true},
		{Controller: "memory", File: memoryMaxV1, Optional: true},
		{Controller: "memory", File: memorySwapV1, Optional: true},
	}
}

// lowMemorySettings returns a memory limit below minMemory and the swap limit that
// Docker would set with it.
func lowMemorySettings(memory int64, r *runtimeapi.LinuxContainerResources, v2 bool) []CgroupSetting {
	withSwap := r.GetMemorySwapLimitInBytes()
	if withSwap == 0 {
		withSwap = memory // as in EngineResources: no swap by default
	}
	value := strconv.FormatInt(memory, 10)
	if !v2 {
		return []CgroupSetting{
			// The kernel refuses a memory limit above the limit of memory and swap.
			{Controller: "memory", File: memorySwapV1, Value: "-1", Optional: true, AfterStart: true},
			{Controller: "memory", File: memoryMaxV1, Value: value, AfterStart: true},
			{Controller: "memory", File: memorySwapV1, Value: strconv.FormatInt(withSwap, 10), Optional: true, AfterStart: true},
		}
	}
	settings := []CgroupSetting{{File: memoryMaxV2, Value: value, AfterStart: true}}
	if _, ok := r.GetUnified()[swapMaxV2]; ok {
		return settings // CgroupSettings adds it with the other unified files
	}
	swap := CgroupSetting{File: swapMaxV2, Value: strconv.FormatInt(withSwap-memory, 10), Optional: true, AfterStart: true}
	if withSwap == unlimited {
		swap.Value = "max"
	}
	return append(settings, swap)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
