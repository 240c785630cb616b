package limits

import (
	"maps"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

// moreThanAnyMemory, in bytes, stands for no limit where Docker cannot unset one.
const moreThanAnyMemory = 1 << 60

// The kernel's defaults of cpu.shares and cpu.cfs_period_us (in microseconds).
const (
	defaultCPUShares = 1024
	defaultCPUPeriod = 100_000
)

// An Update is the translation of an update of a container's resources.
type Update struct {
	// Engine is the part that the Engine API can express.
	Engine container.UpdateConfig
	// CgroupSettings must be written to the cgroup after the Engine's update. They
	// include settings that do not change, because an update through Docker has runc
	// rewrite more than the fields that are set: with the systemd cgroup driver,
	// systemd writes all memory limits that it knows.
	CgroupSettings []CgroupSetting
	// Result is what the container has after the update.
	Result *runtimeapi.LinuxContainerResources
}

// UpdateContainer translates the update of a container that has the resources old.
// Fields of change that are empty or 0 stay as they are; -1 removes a limit.
func UpdateContainer(old, change *runtimeapi.LinuxContainerResources, features engine.Features) (Update, error) {
	result := Merge(old, change)
	u := Update{Result: result}
	limits, err := EngineResources(result, features)
	if err != nil {
		return u, err
	}
	u.Engine.Resources = withoutUnlimitedSwap(limits)
	if u.CgroupSettings, err = CgroupSettings(result, features); err != nil {
		return u, err
	}
	if change.GetMemoryLimitInBytes() == unlimited {
		// Docker has no value for "remove the limit": it ignores 0 and would write the
		// old limit again with the next update of any field (docker 28.5). So it gets
		// a limit above any memory, and the cgroup gets none.
		u.Engine.Memory, u.Engine.MemorySwap = moreThanAnyMemory, moreThanAnyMemory
		u.CgroupSettings = append(noMemoryLimit(features), u.CgroupSettings...)
	}
	return u, nil
}

// noMemoryLimit returns the settings that remove the limits of memory and swap.
func noMemoryLimit(features engine.Features) []CgroupSetting {
	if features.CgroupVersion == 2 {
		return []CgroupSetting{{File: memoryMaxV2, Value: "max"}}
	}
	return []CgroupSetting{
		{Controller: "memory", File: memorySwapV1, Value: "-1", Optional: true},
		{Controller: "memory", File: memoryMaxV1, Value: "-1"},
	}
}

// Revert returns the Engine's update that undoes the one from old to result. Docker
// cannot unset a value, so where old has none it gets the effective one: for CPUs and
// memory nodes that is cpus and mems.
func Revert(old, result *runtimeapi.LinuxContainerResources, features engine.Features, cpus, mems string) (container.UpdateConfig, error) {
	limits, err := EngineResources(old, features)
	if err != nil {
		return container.UpdateConfig{}, err
	}
	if limits.Memory == 0 && result.GetMemoryLimitInBytes() >= minMemory {
		limits.Memory, limits.MemorySwap = moreThanAnyMemory, moreThanAnyMemory
	}
	for _, f := range []struct {
		field          *int64
		result, effect int64
	}{
		{&limits.CPUShares, result.GetCpuShares(), defaultCPUShares},
		{&limits.CPUQuota, result.GetCpuQuota(), unlimited},
		{&limits.CPUPeriod, result.GetCpuPeriod(), defaultCPUPeriod},
	} {
		if *f.field == 0 && f.result != 0 {
			*f.field = f.effect
		}
	}
	if limits.CpusetCpus == "" && result.GetCpusetCpus() != "" {
		limits.CpusetCpus = cpus
	}
	if limits.CpusetMems == "" && result.GetCpusetMems() != "" {
		limits.CpusetMems = mems
	}
	return container.UpdateConfig{Resources: withoutUnlimitedSwap(limits)}, nil
}

// withoutUnlimitedSwap replaces a MemorySwap of -1, which Docker does not pass to the
// low-level runtime in an update (toContainerdResources in daemon/update_linux.go).
func withoutUnlimitedSwap(r container.Resources) container.Resources {
	if r.MemorySwap == unlimited {
		r.MemorySwap = moreThanAnyMemory
	}
	return r
}

// Merge returns old with the fields that change sets.
func Merge(old, change *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		out = proto.CloneOf(old)
	}
	for _, f := range []struct {
		field *int64
		value int64
	}{
		{&out.CpuPeriod, change.GetCpuPeriod()},
		{&out.CpuQuota, change.GetCpuQuota()},
		{&out.CpuShares, change.GetCpuShares()},
		{&out.MemorySwapLimitInBytes, change.GetMemorySwapLimitInBytes()},
		{&out.OomScoreAdj, change.GetOomScoreAdj()},
	} {
		if f.value != 0 {
			*f.field = f.value
		}
	}
	switch memory := change.GetMemoryLimitInBytes(); {
	case memory == unlimited:
		out.MemoryLimitInBytes, out.MemorySwapLimitInBytes = 0, 0
	case memory != 0:
		if out.GetMemorySwapLimitInBytes() == old.GetMemoryLimitInBytes() && change.GetMemorySwapLimitInBytes() == 0 {
			out.MemorySwapLimitInBytes = 0 // the container had no swap and gets none
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
		out.HugepageLimits = mergeHugepageLimits(old.GetHugepageLimits(), change.GetHugepageLimits())
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

// mergeHugepageLimits returns change and the limits of old for other page sizes.
func mergeHugepageLimits(old, change []*runtimeapi.HugepageLimit) []*runtimeapi.HugepageLimit {
	changed := map[string]bool{}
	for _, h := range change {
		changed[h.GetPageSize()] = true
	}
	merged := change[:len(change):len(change)]
	for _, h := range old {
		if !changed[h.GetPageSize()] {
			merged = append(merged, h)
		}
	}
	return merged
}
