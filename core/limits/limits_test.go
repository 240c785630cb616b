package limits

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

var (
	v1Cgroupfs = engine.Features{CgroupVersion: 1, CgroupDriver: "cgroupfs"}
	v2Cgroupfs = engine.Features{CgroupVersion: 2, CgroupDriver: "cgroupfs"}
	v2Systemd  = engine.Features{CgroupVersion: 2, CgroupDriver: "systemd"}
)

func TestCgroupSettings(t *testing.T) {
	low := func(swap int64, unified map[string]string) *runtimeapi.LinuxContainerResources {
		return &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 4 << 20, MemorySwapLimitInBytes: swap, Unified: unified}
	}
	limitV1 := func(swap string) []CgroupSetting {
		return []CgroupSetting{
			{Controller: "memory", File: "memory.memsw.limit_in_bytes", Value: "-1", Optional: true, AfterStart: true},
			{Controller: "memory", File: "memory.limit_in_bytes", Value: "4194304", AfterStart: true},
			{Controller: "memory", File: "memory.memsw.limit_in_bytes", Value: swap, Optional: true, AfterStart: true},
		}
	}
	limitV2 := func(swap string) []CgroupSetting {
		return []CgroupSetting{
			{File: "memory.max", Value: "4194304", AfterStart: true},
			{File: "memory.swap.max", Value: swap, Optional: true, AfterStart: true},
		}
	}
	above := func(swap int64) *runtimeapi.LinuxContainerResources {
		return &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: swap}
	}
	pages := &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB", Limit: 1 << 30}}}
	for name, tt := range map[string]struct {
		in       *runtimeapi.LinuxContainerResources
		features engine.Features
		want     []CgroupSetting
	}{
		"low memory, v1":                 {low(0, nil), v1Cgroupfs, limitV1("4194304")},
		"low memory, a swap limit, v1":   {low(5<<20, nil), v1Cgroupfs, limitV1("5242880")},
		"low memory, unlimited swap, v1": {low(-1, nil), v1Cgroupfs, limitV1("-1")},
		"low memory, v2":                 {low(0, nil), v2Systemd, limitV2("0")},
		"low memory, a swap limit, v2":   {low(5<<20, nil), v2Systemd, limitV2("1048576")},
		"low memory, unlimited swap, v2": {low(-1, nil), v2Systemd, limitV2("max")},
		"low memory, unified swap": {low(0, map[string]string{"memory.swap.max": "7"}), v2Systemd, []CgroupSetting{
			{File: "memory.max", Value: "4194304", AfterStart: true}, {File: "memory.swap.max", Value: "7"},
		}},
		"huge pages, v1": {pages, v1Cgroupfs, []CgroupSetting{
			{Controller: "hugetlb", File: "hugetlb.2MB.limit_in_bytes", Value: "0", Optional: true},
			{Controller: "hugetlb", File: "hugetlb.2MB.rsvd.limit_in_bytes", Value: "0", Optional: true},
			{Controller: "hugetlb", File: "hugetlb.1GB.limit_in_bytes", Value: "1073741824"},
			{Controller: "hugetlb", File: "hugetlb.1GB.rsvd.limit_in_bytes", Value: "1073741824", Optional: true},
		}},
		"huge pages, v2": {pages, v2Systemd, []CgroupSetting{
			{File: "hugetlb.2MB.max", Value: "0", Optional: true}, {File: "hugetlb.2MB.rsvd.max", Value: "0", Optional: true},
			{File: "hugetlb.1GB.max", Value: "1073741824"}, {File: "hugetlb.1GB.rsvd.max", Value: "1073741824", Optional: true},
		}},
		"no swap, with cgroupfs": {above(0), v2Cgroupfs, nil},
		"no swap, with systemd":  {above(0), v2Systemd, []CgroupSetting{{File: "memory.swap.max", Value: "0", Optional: true}}},
		"a swap limit":           {above(96 << 20), v2Systemd, nil},
		"unlimited swap":         {above(-1), v2Systemd, nil},
		"unified": {&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.oom.group": "1", "memory.high": "5"}}, v2Systemd, []CgroupSetting{
			{File: "memory.high", Value: "5"}, {File: "memory.oom.group", Value: "1"},
		}},
	} {
		got, err := CgroupSettings(tt.in, tt.features)
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}

// Errors about values out of range say which ones are allowed.
func TestErrorsNameTheAllowedValues(t *testing.T) {
	for want, r := range map[string]*runtimeapi.LinuxContainerResources{
		"oom_score_adj 1200: must be between -1000 and 1000":                                          {OomScoreAdj: 1200},
		"memory_limit_in_bytes -2: must be 0 or more":                                                 {MemoryLimitInBytes: -2},
		"memory_swap_limit_in_bytes -2: must be -1 (unlimited) or more":                               {MemorySwapLimitInBytes: -2},
		"memory_swap_limit_in_bytes 5 needs a memory_limit_in_bytes":                                  {MemorySwapLimitInBytes: 5},
		"memory_swap_limit_in_bytes 5: must be at least memory_limit_in_bytes 6, which it includes":   {MemoryLimitInBytes: 6, MemorySwapLimitInBytes: 5},
		"unified memory.swap.max \"1G\": must be a number of bytes or \"max\"":                        {MemoryLimitInBytes: 64 << 20, Unified: map[string]string{"memory.swap.max": "1G"}},
		"unified resource \"../memory.high\": must be the name of a cgroup file, such as memory.high": {Unified: map[string]string{"../memory.high": "1"}},
		"page_size \"2/MB\" of a hugepage limit: must be a size such as 2MB or 1GB":                   {HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2/MB"}}},
	} {
		_, err := EngineResources(r, v2Systemd)
		if err == nil {
			_, err = CgroupSettings(r, v2Systemd)
		}
		if !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want an invalid argument: %s", err, want)
		}
	}
}
