package todocker

import (
	"maps"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

// unlimited asks for no limit of memory or CPU time.
const unlimited = -1

// noLimit is more memory, in bytes, than there is.
const noLimit = 1 << 60

// Revert returns what the Engine is to be told to take an update from old to result
// back. It cannot be told that something is open again, so what old leaves open gets
// what holds then: of CPUs and memory nodes cpus and mems.
func Revert(old, result *runtimeapi.LinuxContainerResources, can engine.Features, cpus, mems string) (container.UpdateConfig, error) {
	told, err := resources(old, can)
	if err != nil {
		return container.UpdateConfig{}, err
	}
	if told.Memory == 0 && result.GetMemoryLimitInBytes() >= minMemory {
		told.Memory, told.MemorySwap = noLimit, noLimit
	}
	for _, f := range []struct {
		to         *int64
		word, open int64
	}{
		{&told.CPUShares, result.GetCpuShares(), 1024},
		{&told.CPUQuota, result.GetCpuQuota(), unlimited},
		{&told.CPUPeriod, result.GetCpuPeriod(), 100_000},
	} {
		if *f.to == 0 && f.word != 0 {
			*f.to = f.open
		}
	}
	if told.CpusetCpus == "" && result.GetCpusetCpus() != "" {
		told.CpusetCpus = cpus
	}
	if told.CpusetMems == "" && result.GetCpusetMems() != "" {
		told.CpusetMems = mems
	}
	return container.UpdateConfig{Resources: swapAsTold(told)}, nil
}

// swapAsTold says unlimited swap so that the Engine does it: in an update it passes
// on no -1.
func swapAsTold(r container.Resources) container.Resources {
	if r.MemorySwap == unlimited {
		r.MemorySwap = noLimit
	}
	return r
}

// CheckUpdate refuses what an update of a container asks for besides the
// resources of a Linux container.
func CheckUpdate(r *runtimeapi.UpdateContainerResourcesRequest) error {
	if len(r.GetAnnotations()) > 0 {
		return invalid("annotations of an update: berth knows of none that would change a container")
	}
	return noWindows(r.GetWindows())
}

// An Update is an order to change the resources of a container.
type Update struct {
	// Engine is what the Engine can be told.
	Engine container.UpdateConfig
	// CgroupSettings are to be written to the cgroup after that: also those that do not
	// change, for the Engine has more rewritten than what it is told. Where systemd
	// manages the cgroup it sets all limits of memory together, as it knows them.
	CgroupSettings []CgroupSetting
	// Result is what the container has in the end.
	Result *runtimeapi.LinuxContainerResources
}

// UpdateContainer orders what turns a container that has old into one that has
// what change says. What change leaves open, with 0 or an empty word, stays as it is;
// limits of -1 are taken away.
func UpdateContainer(old, change *runtimeapi.LinuxContainerResources, can engine.Features) (Update, error) {
	result := merged(old, change)
	u := Update{Result: result}
	told, err := resources(result, can)
	if err != nil {
		return u, err
	}
	u.Engine.Resources = swapAsTold(told)
	if u.CgroupSettings, err = CgroupSettings(result, can); err != nil {
		return u, err
	}
	if change.GetMemoryLimitInBytes() == unlimited {
		// The Engine takes no word for it, but remembers a limit that is none: it
		// would write the old one again with the next update of anything (28.5).
		u.Engine.Memory, u.Engine.MemorySwap = noLimit, noLimit
		if can.CgroupVersion == 2 {
			u.CgroupSettings = append([]CgroupSetting{{File: "memory.max", Value: "max"}}, u.CgroupSettings...)
		} else {
			u.CgroupSettings = append([]CgroupSetting{
				{Controller: "memory", File: "memory.memsw.limit_in_bytes", Value: "-1", Optional: true},
				{Controller: "memory", File: "memory.limit_in_bytes", Value: "-1"},
			}, u.CgroupSettings...)
		}
	}
	return u, nil
}

// merged returns old with what change says.
func merged(old, change *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		out, _ = proto.Clone(old).(*runtimeapi.LinuxContainerResources) // it clones what it is given
	}
	for _, f := range []struct {
		to   *int64
		word int64
	}{
		{&out.CpuPeriod, change.GetCpuPeriod()},
		{&out.CpuQuota, change.GetCpuQuota()},
		{&out.CpuShares, change.GetCpuShares()},
		{&out.MemorySwapLimitInBytes, change.GetMemorySwapLimitInBytes()},
		{&out.OomScoreAdj, change.GetOomScoreAdj()},
	} {
		if f.word != 0 {
			*f.to = f.word
		}
	}
	switch memory := change.GetMemoryLimitInBytes(); {
	case memory == unlimited:
		out.MemoryLimitInBytes, out.MemorySwapLimitInBytes = 0, 0
	case memory != 0:
		if out.GetMemorySwapLimitInBytes() == old.GetMemoryLimitInBytes() && change.GetMemorySwapLimitInBytes() == 0 {
			out.MemorySwapLimitInBytes = 0 // no swap before, and none now
		}
		out.MemoryLimitInBytes = memory
	}
	if change.GetCpusetCpus() != "" {
		out.CpusetCpus = change.GetCpusetCpus()
	}
	if change.GetCpusetMems() != "" {
		out.CpusetMems = change.GetCpusetMems()
	}
	if len(change.GetHugepageLimits()) > 0 {
		sizes := map[string]bool{}
		for _, h := range change.GetHugepageLimits() {
			sizes[h.GetPageSize()] = true
		}
		limits := change.GetHugepageLimits()
		for _, h := range old.GetHugepageLimits() {
			if !sizes[h.GetPageSize()] {
				limits = append(limits[:len(limits):len(limits)], h)
			}
		}
		out.HugepageLimits = limits
	}
	if len(change.GetUnified()) > 0 {
		unified := maps.Clone(old.GetUnified())
		if unified == nil {
			unified = map[string]string{}
		}
		maps.Copy(unified, change.GetUnified())
		out.Unified = unified
	}
	return out
}
