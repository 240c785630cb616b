package limits

import (
	"math/rand/v2"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/protofuzz"
)

func TestUpdateContainer(t *testing.T) {
	const mib = 1 << 20
	type r = runtimeapi.LinuxContainerResources
	v1, v2 := engine.Features{CgroupVersion: 1}, engine.Features{CgroupVersion: 2}
	for name, tt := range map[string]struct {
		features    engine.Features
		old, change *r
		engine      container.Resources
		settings    []CgroupSetting
		result      *r
	}{
		"no change": {v1, nil, nil, container.Resources{}, nil, &r{}},
		"a CPU set": {
			v1, &r{CpuShares: 100, MemoryLimitInBytes: 64 * mib}, &r{CpusetCpus: "1"},
			container.Resources{CPUShares: 100, CpusetCpus: "1", Memory: 64 * mib, MemorySwap: 64 * mib}, nil,
			&r{CpuShares: 100, MemoryLimitInBytes: 64 * mib, CpusetCpus: "1"},
		},
		"more memory": {
			v1, &r{MemoryLimitInBytes: 64 * mib}, &r{MemoryLimitInBytes: 128 * mib},
			container.Resources{Memory: 128 * mib, MemorySwap: 128 * mib}, nil, &r{MemoryLimitInBytes: 128 * mib},
		},
		"more memory, where the swap limit was the same": {
			v1, &r{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 64 * mib}, &r{MemoryLimitInBytes: 128 * mib},
			container.Resources{Memory: 128 * mib, MemorySwap: 128 * mib}, nil, &r{MemoryLimitInBytes: 128 * mib},
		},
		"CPU quota removed": {
			v2, &r{CpuQuota: 50000, CpuPeriod: 100000}, &r{CpuQuota: -1},
			container.Resources{CPUQuota: -1, CPUPeriod: 100000}, nil, &r{CpuQuota: -1, CpuPeriod: 100000},
		},
		"memory limit removed, v1": {
			v1, &r{MemoryLimitInBytes: 64 * mib}, &r{MemoryLimitInBytes: -1}, container.Resources{Memory: moreThanAnyMemory, MemorySwap: moreThanAnyMemory},
			[]CgroupSetting{{"memory", "memory.memsw.limit_in_bytes", "-1", true, false}, {"memory", "memory.limit_in_bytes", "-1", false, false}}, &r{},
		},
		"memory limit removed, v2": {
			v2, &r{MemoryLimitInBytes: 64 * mib}, &r{MemoryLimitInBytes: -1}, container.Resources{Memory: moreThanAnyMemory, MemorySwap: moreThanAnyMemory},
			[]CgroupSetting{{File: "memory.max", Value: "max"}}, &r{},
		},
		"memory below what Docker accepts": {
			v2, &r{MemoryLimitInBytes: 64 * mib}, &r{MemoryLimitInBytes: mib}, container.Resources{},
			[]CgroupSetting{{File: "memory.max", Value: "1048576", AfterStart: true}, {File: "memory.swap.max", Value: "0", Optional: true, AfterStart: true}}, &r{MemoryLimitInBytes: mib},
		},
		"CPU shares, memory below what Docker accepts": {
			v2, &r{MemoryLimitInBytes: mib}, &r{CpuShares: 5}, container.Resources{CPUShares: 5},
			[]CgroupSetting{{File: "memory.max", Value: "1048576", AfterStart: true}, {File: "memory.swap.max", Value: "0", Optional: true, AfterStart: true}}, &r{MemoryLimitInBytes: mib, CpuShares: 5},
		},
		"CPU shares, low memory with a swap limit": {
			v2, &r{MemoryLimitInBytes: mib, MemorySwapLimitInBytes: 2 * mib, CpusetMems: "0"}, &r{CpuShares: 5}, container.Resources{CPUShares: 5, CpusetMems: "0"},
			[]CgroupSetting{{File: "memory.max", Value: "1048576", AfterStart: true}, {File: "memory.swap.max", Value: "1048576", Optional: true, AfterStart: true}},
			&r{MemoryLimitInBytes: mib, MemorySwapLimitInBytes: 2 * mib, CpuShares: 5, CpusetMems: "0"},
		},
		"CPU shares, low memory with unified swap": {
			v2, &r{MemoryLimitInBytes: mib, Unified: map[string]string{"memory.swap.max": "7"}}, &r{CpuShares: 5}, container.Resources{CPUShares: 5},
			[]CgroupSetting{{File: "memory.max", Value: "1048576", AfterStart: true}, {File: "memory.swap.max", Value: "7"}},
			&r{MemoryLimitInBytes: mib, Unified: map[string]string{"memory.swap.max": "7"}, CpuShares: 5},
		},
		"unified files": {
			v2, &r{Unified: map[string]string{"memory.high": "1", "memory.oom.group": "1"}}, &r{Unified: map[string]string{"memory.high": "2"}},
			container.Resources{}, []CgroupSetting{{File: "memory.high", Value: "2"}, {File: "memory.oom.group", Value: "1"}}, &r{Unified: map[string]string{"memory.high": "2", "memory.oom.group": "1"}},
		},
		"a CPU set, all files are written again": {
			v2, &r{MemoryLimitInBytes: 64 * mib, Unified: map[string]string{"memory.high": "1", "memory.oom.group": "1"}, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}},
			&r{CpusetCpus: "1"}, container.Resources{CpusetCpus: "1", Memory: 64 * mib, MemorySwap: 64 * mib},
			[]CgroupSetting{
				{File: "hugetlb.2MB.max", Value: "0", Optional: true}, {File: "hugetlb.2MB.rsvd.max", Value: "0", Optional: true},
				{File: "memory.high", Value: "1"}, {File: "memory.oom.group", Value: "1"},
			},
			&r{MemoryLimitInBytes: 64 * mib, Unified: map[string]string{"memory.high": "1", "memory.oom.group": "1"}, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}, CpusetCpus: "1"},
		},
		"unlimited swap": {
			v1, &r{MemoryLimitInBytes: 64 * mib}, &r{MemorySwapLimitInBytes: -1},
			container.Resources{Memory: 64 * mib, MemorySwap: moreThanAnyMemory}, nil, &r{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: -1},
		},
		"unlimited swap, unified": {
			v2, &r{MemoryLimitInBytes: 64 * mib}, &r{Unified: map[string]string{"memory.swap.max": "max"}},
			container.Resources{Memory: 64 * mib, MemorySwap: moreThanAnyMemory}, nil, &r{MemoryLimitInBytes: 64 * mib, Unified: map[string]string{"memory.swap.max": "max"}},
		},
		"huge pages": {
			v1, &r{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}}},
			&r{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2 * mib}}}, container.Resources{},
			[]CgroupSetting{
				{"hugetlb", "hugetlb.2MB.limit_in_bytes", "2097152", false, false}, {"hugetlb", "hugetlb.2MB.rsvd.limit_in_bytes", "2097152", true, false},
				{"hugetlb", "hugetlb.1GB.limit_in_bytes", "0", true, false}, {"hugetlb", "hugetlb.1GB.rsvd.limit_in_bytes", "0", true, false},
			},
			&r{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2 * mib}, {PageSize: "1GB"}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := UpdateContainer(tt.old, tt.change, tt.features)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.engine, got.Engine.Resources); diff != "" {
				t.Errorf("Engine resources (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.settings, got.CgroupSettings); diff != "" {
				t.Errorf("cgroup settings (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.result, got.Result, protocmp.Transform()); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
	for name, change := range map[string]*r{
		"negative memory":   {MemoryLimitInBytes: -2},
		"not a cgroup file": {Unified: map[string]string{"../x": "1"}},
	} {
		if _, err := UpdateContainer(nil, change, v2Systemd); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want an invalid argument", name, err)
		}
	}
	if _, err := UpdateContainer(nil, &r{Unified: map[string]string{"memory.high": "1"}}, v1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("unified on cgroup v1: %v, want a failed precondition", err)
	}
}

func TestRevertSetsEffectiveValuesForUnsetFields(t *testing.T) {
	const mib = 1 << 20
	type r = runtimeapi.LinuxContainerResources
	for name, tt := range map[string]struct {
		old, result *r
		want        container.Resources
	}{
		"all fields were unset": {
			nil, &r{CpuShares: 5, CpuQuota: 20000, CpuPeriod: 50000, CpusetCpus: "0", CpusetMems: "1", MemoryLimitInBytes: 64 * mib, OomScoreAdj: 5},
			container.Resources{CPUShares: 1024, CPUQuota: -1, CPUPeriod: 100_000, CpusetCpus: "0-3", CpusetMems: "0-1", Memory: moreThanAnyMemory, MemorySwap: moreThanAnyMemory},
		},
		"all fields were set": {
			&r{CpuShares: 6, CpuQuota: 30000, CpuPeriod: 60000, CpusetCpus: "2", CpusetMems: "0", MemoryLimitInBytes: 32 * mib},
			&r{CpuShares: 5, CpuQuota: 20000, CpuPeriod: 50000, CpusetCpus: "0", CpusetMems: "1", MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 96 * mib},
			container.Resources{CPUShares: 6, CPUQuota: 30000, CPUPeriod: 60000, CpusetCpus: "2", CpusetMems: "0", Memory: 32 * mib, MemorySwap: 32 * mib},
		},
		"swap was unlimited": {
			&r{MemoryLimitInBytes: 32 * mib, MemorySwapLimitInBytes: -1}, &r{MemoryLimitInBytes: 32 * mib, MemorySwapLimitInBytes: 64 * mib},
			container.Resources{Memory: 32 * mib, MemorySwap: moreThanAnyMemory},
		},
		"no change": {nil, &r{}, container.Resources{}},
	} {
		got, err := Revert(tt.old, tt.result, engine.Features{CgroupVersion: 2}, "0-3", "0-1")
		if diff := cmp.Diff(tt.want, got.Resources); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}

// FuzzUpdate translates arbitrary resources and updates: what fails is invalid.
func FuzzUpdate(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		old, change := &runtimeapi.LinuxContainerResources{}, &runtimeapi.LinuxContainerResources{}
		protofuzz.Fill(old, random)
		protofuzz.Fill(change, random)
		for _, features := range []engine.Features{{}, v1Cgroupfs, v2Cgroupfs, v2Systemd} {
			update, err := UpdateContainer(old, change, features)
			if err == nil {
				_, err = Revert(old, update.Result, features, "0", "0")
			}
			if err != nil && !errdefs.IsInvalidArgument(err) && (features.CgroupVersion == 2 || !errdefs.IsFailedPrecondition(err)) {
				t.Errorf("%v is not an invalid argument", err)
			}
		}
	})
}
