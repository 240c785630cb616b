package todocker

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

// minMemory is the least memory, in bytes, that an Engine lets itself be asked
// for. Less is written to the cgroup directly.
const minMemory = 6 << 20

// lowestScore and highestScore are the ends of oom_score_adj.
const (
	lowestScore  = -1000
	highestScore = 1000
)

// swapKey is the file that says on cgroup v2 how much may be swapped.
const swapKey = "memory.swap.max"

// resources says in the Engine's words what it can be told of r.
func resources(r *runtimeapi.LinuxContainerResources, can engine.Features) (container.Resources, error) {
	out := container.Resources{
		CPUShares:  r.GetCpuShares(),
		CPUQuota:   r.GetCpuQuota(),
		CPUPeriod:  r.GetCpuPeriod(),
		CpusetCpus: r.GetCpusetCpus(),
		CpusetMems: r.GetCpusetMems(),
	}
	if score := r.GetOomScoreAdj(); score < lowestScore || score > highestScore {
		return out, invalid("oom_score_adj %d", score)
	}
	memory, both := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case memory < 0 || both < unlimited:
		return out, invalid("memory limit %d with swap limit %d", memory, both)
	case both > 0 && memory == 0:
		return out, invalid("memory_swap_limit_in_bytes %d without memory_limit_in_bytes", both)
	case both > 0 && both < memory:
		return out, invalid("memory_swap_limit_in_bytes %d is less than memory_limit_in_bytes %d, which it includes", both, memory)
	}
	if memory < minMemory {
		return out, nil
	}
	out.Memory = memory
	// The Engine takes an unsaid swap limit for as much again as the memory.
	out.MemorySwap = memory
	if both != 0 {
		out.MemorySwap = both
	} else if word, ok := r.GetUnified()[swapKey]; ok && can.CgroupVersion == 2 {
		swap, err := bytesOrMax(word)
		if err != nil {
			return out, invalid("unified %s %q", swapKey, word)
		}
		if out.MemorySwap = -1; swap >= 0 {
			out.MemorySwap = memory + swap
		}
	}
	return out, nil
}

// bytesOrMax reads a number of bytes; "max" is -1.
func bytesOrMax(word string) (int64, error) {
	if word == "max" {
		return -1, nil
	}
	n, err := strconv.ParseInt(word, 10, 64)
	if err == nil && n < 0 {
		err = strconv.ErrRange
	}
	return n, err
}

// A CgroupSetting is a cgroup file and what is to stand in it.
type CgroupSetting struct {
	Controller string // of cgroup v1: the hierarchy that File is in; "" on v2
	File       string
	Value      string
	// Optional knobs say what holds anyway where the file is missing.
	Optional bool
	// AfterStart knobs can only be turned once the container runs: what starts it
	// could not live with them.
	AfterStart bool
}

// ControllerName returns the controller of cgroup v2 that a knob is of, or of v1; "" if it is
// of no controller.
func (k CgroupSetting) ControllerName() string {
	if k.Controller != "" {
		return k.Controller
	}
	name, _, _ := strings.Cut(k.File, ".")
	if name == "cgroup" {
		return ""
	}
	return name
}

// CgroupSettings returns what of r the Engine cannot be told and must be written to the
// container's cgroup, in the order to write it in.
func CgroupSettings(r *runtimeapi.LinuxContainerResources, can engine.Features) ([]CgroupSetting, error) {
	v2 := can.CgroupVersion == 2
	var knobs []CgroupSetting
	switch m := r.GetMemoryLimitInBytes(); {
	case m > 0 && m < minMemory:
		knobs = littleMemory(m, r, v2)
	case m > 0 && v2 && can.CgroupDriver == "systemd":
		told, err := resources(r, can)
		if err != nil {
			return nil, err
		}
		if told.MemorySwap == m {
			// runc writes the 0 and does not tell systemd (moby 51446), which would
			// allow any swap again.
			knobs = []CgroupSetting{{File: swapKey, Value: "0", Optional: true}}
		}
	}
	for _, h := range r.GetHugepageLimits() {
		if h.GetPageSize() == "" || strings.ContainsAny(h.GetPageSize(), "/.") {
			return nil, invalid("hugepage size %q", h.GetPageSize())
		}
		controller, limit := "", "max"
		if !v2 {
			controller, limit = "hugetlb", "limit_in_bytes"
		}
		number := strconv.FormatUint(h.GetLimit(), 10)
		knobs = append(knobs,
			CgroupSetting{Controller: controller, File: fmt.Sprintf("hugetlb.%s.%s", h.GetPageSize(), limit), Value: number, Optional: h.GetLimit() == 0},
			// What is reserved and not yet used counts from Linux 5.7 on.
			CgroupSetting{Controller: controller, File: fmt.Sprintf("hugetlb.%s.rsvd.%s", h.GetPageSize(), limit), Value: number, Optional: true})
	}
	unified := r.GetUnified()
	if len(unified) > 0 && !v2 {
		return nil, invalid("unified resources on a node with cgroup v1")
	}
	for _, file := range slices.Sorted(maps.Keys(unified)) {
		if file == "" || strings.Contains(file, "/") || !strings.Contains(file, ".") {
			return nil, invalid("unified resource %q is no cgroup file", file)
		}
		if file == swapKey && r.GetMemoryLimitInBytes() >= minMemory {
			continue // the Engine has been told
		}
		knobs = append(knobs, CgroupSetting{File: file, Value: unified[file]})
	}
	return knobs, nil
}

// EngineManagedFiles returns the files that what the Engine is told ends up in, without a value.
func EngineManagedFiles(can engine.Features) []CgroupSetting {
	if can.CgroupVersion == 2 {
		return []CgroupSetting{
			{File: "cpu.weight", Optional: true},
			{File: "cpu.max", Optional: true},
			{File: "cpuset.cpus", Optional: true},
			{File: "cpuset.mems", Optional: true},
			{File: "memory.max", Optional: true},
			{File: swapKey, Optional: true},
		}
	}
	return []CgroupSetting{
		{Controller: "cpu", File: "cpu.shares", Optional: true},
		{Controller: "cpu", File: "cpu.cfs_period_us", Optional: true},
		{Controller: "cpu", File: "cpu.cfs_quota_us", Optional: true},
		{Controller: "cpuset", File: "cpuset.cpus", Optional: true},
		{Controller: "cpuset", File: "cpuset.mems", Optional: true},
		{Controller: "memory", File: "memory.limit_in_bytes", Optional: true},
		{Controller: "memory", File: "memory.memsw.limit_in_bytes", Optional: true},
	}
}

// littleMemory writes limits that are below what the Engine takes: of memory, and
// of swap as the Engine would have it.
func littleMemory(memory int64, r *runtimeapi.LinuxContainerResources, v2 bool) []CgroupSetting {
	both := r.GetMemorySwapLimitInBytes()
	if both == 0 {
		both = memory // none unless somebody asks for it
	}
	number := strconv.FormatInt(memory, 10)
	if !v2 {
		const swap = "memory.memsw.limit_in_bytes"
		return []CgroupSetting{
			// At no time may the one limit be above the other.
			{Controller: "memory", File: swap, Value: "-1", Optional: true, AfterStart: true},
			{Controller: "memory", File: "memory.limit_in_bytes", Value: number, AfterStart: true},
			{Controller: "memory", File: swap, Value: strconv.FormatInt(both, 10), Optional: true, AfterStart: true},
		}
	}
	knobs := []CgroupSetting{{File: "memory.max", Value: number, AfterStart: true}}
	if _, said := r.GetUnified()[swapKey]; said {
		return knobs // that counts, and is written with the others
	}
	swap := CgroupSetting{File: swapKey, Value: strconv.FormatInt(both-memory, 10), Optional: true, AfterStart: true}
	if both == unlimited {
		swap.Value = "max"
	}
	return append(knobs, swap)
}
