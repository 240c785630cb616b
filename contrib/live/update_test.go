package live

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cgroup"
)

// cgroupFile reads a file of the cgroup of a container, by its name on v1 or v2.
func (n *node) cgroupFile(id, controller, v1, v2 string) string {
	n.t.Helper()
	seen, err := n.docker.ContainerInspect(n.t.(*testing.T).Context(), id)
	if err != nil {
		n.t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(seen.State.Pid), "cgroup"))
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		file := ""
		if fields[0] == "0" && fields[1] == "" && v2 != "" {
			file = filepath.Join("/sys/fs/cgroup", fields[2], v2)
		}
		for c := range strings.SplitSeq(fields[1], ",") {
			if c == controller && v1 != "" {
				file = filepath.Join("/sys/fs/cgroup", controller, fields[2], v1)
			}
		}
		if value, err := os.ReadFile(file); err == nil {
			return strings.TrimSpace(string(value))
		}
	}
	return "no such file"
}

// weight checks the share of CPU time of a container.
func (n *node) weight(id string, shares int64) {
	n.t.Helper()
	// Of the formulas of low-level runtimes for cgroup v2 the one is a line through the
	// ends of both scales, the other a curve that has 100 for 1024.
	line := 1 + (shares-2)*9999/262142
	l := math.Log2(float64(shares))
	curve := int64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
	got := n.cgroupFile(id, "cpu", "cpu.shares", "cpu.weight")
	if got != fmt.Sprint(shares) && (n.info().CgroupVersion != "2" || got != fmt.Sprint(line) && got != fmt.Sprint(curve)) {
		n.t.Errorf("CPU shares %s, want %d, or with cgroup v2 %d or %d", got, shares, line, curve)
	}
}

// settings are the files that an update may write.
func (n *node) settings(id string) map[string]string {
	out := map[string]string{"score": strings.TrimSpace(n.proc(id, "oom_score_adj"))}
	for _, f := range []struct{ controller, v1, v2 string }{
		{"cpu", "cpu.shares", "cpu.weight"}, {"cpu", "cpu.cfs_quota_us", "cpu.max"}, {"cpu", "cpu.cfs_period_us", ""},
		{"cpuset", "cpuset.cpus", "cpuset.cpus.effective"}, {"cpuset", "cpuset.mems", "cpuset.mems.effective"},
		{"memory", "memory.limit_in_bytes", "memory.max"}, {"memory", "memory.memsw.limit_in_bytes", "memory.swap.max"},
		{"", "", "memory.high"}, {"", "", "memory.low"}, {"hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"},
	} {
		out[f.v1+" "+f.v2] = n.cgroupFile(id, f.controller, f.v1, f.v2)
	}
	return out
}

// TestFailedUpdateIsUndone finds a container as it was after updates that fail at
// their first step and at their last.
func TestFailedUpdateIsUndone(t *testing.T) {
	n := newNode(t)
	config := n.pod("fails")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	order := shell("c", "exec sleep 1000")
	order.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, OomScoreAdj: 400}
	id := n.create(pod, config, order)
	was := n.settings(id)
	change := func() *runtimeapi.LinuxContainerResources {
		return &runtimeapi.LinuxContainerResources{CpuShares: 500, CpuQuota: 20000, CpuPeriod: 50000, CpusetCpus: "0", CpusetMems: "0", OomScoreAdj: 500}
	}
	changes := map[string]*runtimeapi.LinuxContainerResources{}
	if n.info().CgroupVersion == "2" {
		changes["a value that the kernel refuses"] = change()
		changes["a value that the kernel refuses"].Unified = map[string]string{"memory.high": "33554432", "memory.low": "1048576", "memory.max": "much"}
		changes["no such file"] = change()
		changes["no such file"].Unified = map[string]string{"memory.high": "33554432", "no.such": "1"}
	} else {
		changes["less memory than is in use"] = change()
		changes["less memory than is in use"].MemoryLimitInBytes = 4096
		if found, _ := filepath.Glob("/sys/fs/cgroup/hugetlb*"); len(found) == 0 {
			changes["pages that are not counted"] = change()
			changes["pages that are not counted"].HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2 * mib}}
		}
	}
	for name, change := range changes {
		_, err := n.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: change})
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		t.Logf("%s: %v", name, err)
		if diff := cmp.Diff(was, n.settings(id)); diff != "" {
			t.Errorf("after %s (-before +after):\n%s", name, diff)
		}
		seen, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if r := seen.GetStatus().GetResources().GetLinux(); err != nil || r.GetOomScoreAdj() != 400 || r.GetCpuShares() != 0 || r.GetCpusetCpus() != "" {
			t.Errorf("status after %s: %v, %v", name, r, err)
		}
	}
	n.remove(pod)
	n.removeLeftovers()
}

// TestSettingsSurviveDaemonReload has all settings after an update of something else, and after
// systemd has read its units again: both make it write what it knows of.
func TestSettingsSurviveDaemonReload(t *testing.T) {
	n := newNode(t)
	info := n.info()
	if info.CgroupVersion != "2" {
		t.Skip("there are no such settings on cgroup v1")
	}
	config := n.pod("hold")
	config.Linux.CgroupParent = n.cgroup("hold")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	order := shell("c", "exec sleep 1000")
	order.Linux.Resources = &runtimeapi.LinuxContainerResources{
		MemoryLimitInBytes: 64 * mib, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 * mib}},
		Unified: map[string]string{"memory.high": "33554432", "memory.low": "1048576", "memory.oom.group": "1", "pids.max": "77", "cpu.idle": "0"},
	}
	id := n.create(pod, config, order)
	order = shell("little", "exec sleep 1000")
	order.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 4 * mib}
	little := n.create(pod, config, order)
	mismatches := func() (mismatches []string) {
		for _, tt := range []struct{ id, file, want string }{
			{id, "memory.max", "67108864"}, {id, "memory.swap.max", "0"}, {id, "memory.high", "33554432"}, {id, "memory.low", "1048576"}, {id, "memory.oom.group", "1"}, {id, "pids.max", "77"},
			{id, "hugetlb.2MB.max", "4194304"}, {id, "hugetlb.2MB.rsvd.max", "4194304"}, {little, "memory.max", "4194304"},
		} {
			if got := n.cgroupFile(tt.id, "", "", tt.file); got != tt.want {
				mismatches = append(mismatches, fmt.Sprintf("%s %s, want %s", tt.file, got, tt.want))
			}
		}
		return mismatches
	}
	if mismatches := mismatches(); mismatches != nil {
		t.Errorf("after the start: %s", mismatches)
	}
	for _, id := range []string{id, little} {
		if _, err := n.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpusetCpus: "0"},
		}); err != nil {
			t.Fatal(err)
		}
	}
	if mismatches := mismatches(); mismatches != nil {
		t.Errorf("after an update of something else: %s", mismatches)
	}
	// It can be changed, too, and any swap taken as such.
	if _, err := n.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: little, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5 * mib, MemorySwapLimitInBytes: -1},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: little, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 4 * mib},
	}); err != nil {
		t.Fatal(err)
	}
	_, err = os.Stat("/run/systemd/system")
	if info.CgroupDriver == "systemd" && err == nil {
		reload := func() {
			t.Helper()
			if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		for range 2 {
			reload()
			n.until(10*time.Second, "settings lost with a reload", func() bool { return mismatches() == nil })
		}
		// With another container of the pod it writes what it knows.
		n.create(pod, config, shell("another", "exec sleep 1000"))
		t.Logf("after another start: %s", mismatches())
		n.until(10*time.Second, "settings lost with another container", func() bool { return mismatches() == nil })
		// A pod beside it has a slice of its own, so that berthd need not write the settings of this one again.
		reload()
		n.until(10*time.Second, "settings lost with a reload", func() bool { return mismatches() == nil })
		beside := n.pod("beside")
		other, err := n.run(t.Context(), beside)
		if err != nil {
			t.Fatal(err)
		}
		n.create(other, beside, shell("c", "exec sleep 1000"))
		for range 20 {
			if lost := mismatches(); lost != nil {
				t.Fatalf("settings lost with another pod: %s", lost)
			}
			time.Sleep(100 * time.Millisecond)
		}
		n.remove(other)
		// What it has words for it keeps itself, for the rest it takes berthd.
		n.kill()
		reload()
		t.Logf("at once: %s", mismatches())
		// It may wait with its files until something starts beside them.
		slice := filepath.Base(config.GetLinux().GetCgroupParent())
		if out, err := exec.Command("systemd-run", "--scope", "--slice="+slice, "--property=MemoryHigh=1G", "true").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		lost := mismatches()
		t.Logf("after a reload without berthd: %s", lost)
		for _, file := range lost {
			if !strings.HasPrefix(file, "memory.oom.group ") {
				t.Errorf("without berthd, after a reload: %s", file)
			}
		}
		n.start()
		n.until(10*time.Second, "settings lost while berthd was away", func() bool { return mismatches() == nil })
	} else {
		t.Logf("not reloaded: the driver is %s; systemd: %v", info.CgroupDriver, err)
	}
	n.remove(pod)
	n.removeLeftovers()
}

// TestUpdateContainerResources changes what a container may use, and reads the truth from its
// cgroup.
func TestUpdateContainerResources(t *testing.T) {
	n := newNode(t)
	config := n.pod("update")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	order := shell("c", "exec sleep 1000")
	const mib = 1 << 20
	order.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 200, OomScoreAdj: 500}
	id := n.create(pod, config, order)
	update := func(change *runtimeapi.LinuxContainerResources) error {
		_, err := n.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: change})
		return err
	}
	check := func(what string, memory, quota, score string) {
		t.Helper()
		pid := 0
		if seen, err := n.docker.ContainerInspect(t.Context(), id); err == nil {
			pid = seen.State.Pid
		}
		if got := n.cgroupFile(id, "memory", "memory.limit_in_bytes", "memory.max"); got != memory && (memory != "max" || len(got) <= 15) {
			t.Errorf("%s: memory limit %s, want %s", what, got, memory)
		}
		if got, _, _ := strings.Cut(n.cgroupFile(id, "cpu", "cpu.cfs_quota_us", "cpu.max"), " "); got != quota && (quota != "-1" || got != "max") {
			t.Errorf("%s: quota %s, want %s", what, got, quota)
		}
		if got, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj")); err != nil || strings.TrimSpace(string(got)) != score {
			t.Errorf("%s: score %s, %v, want %s", what, got, err, score)
		}
	}
	check("created", "67108864", "20000", "500")
	if err := update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 * mib}); err != nil {
		t.Fatal(err)
	}
	check("more memory", "134217728", "20000", "500")
	if err := update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 * mib, CpuQuota: 50000, OomScoreAdj: 700}); err != nil {
		t.Fatal(err)
	}
	check("less memory, more CPU", "33554432", "50000", "700")
	if err := update(&runtimeapi.LinuxContainerResources{CpusetCpus: "0"}); err != nil {
		t.Fatal(err)
	}
	if got := n.cgroupFile(id, "cpuset", "cpuset.cpus", "cpuset.cpus"); got != "0" {
		t.Errorf("CPUs %s, want 0", got)
	}
	if err := update(&runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: -1}); err != nil {
		t.Fatal(err)
	}
	if got := n.cgroupFile(id, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max"); got != "max" && got != "no such file" && len(got) <= 15 {
		t.Errorf("any swap: limit %s", got)
	}
	if err := update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 48 * mib}); err != nil {
		t.Fatal(err)
	}
	check("more memory with any swap", "50331648", "50000", "700")
	if err := update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -1, CpuQuota: -1}); err != nil {
		t.Fatal(err)
	}
	check("no limits", "max", "-1", "700")
	if err := update(&runtimeapi.LinuxContainerResources{CpuShares: 300}); err != nil {
		t.Fatal(err)
	}
	check("another update of none of these", "max", "-1", "700")
	if err := update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 4 * mib}); err != nil {
		t.Fatal(err)
	}
	check("less than Docker takes", "4194304", "-1", "700")

	// What cannot be is refused, and nothing of it is in effect.
	if err := update(&runtimeapi.LinuxContainerResources{CpuShares: 500, CpusetCpus: "4096"}); err == nil {
		t.Error("a CPU that there is not was given")
	}
	n.weight(id, 300)
	n.kill()
	n.start()
	seen, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	r := seen.GetStatus().GetResources().GetLinux()
	if r.GetMemoryLimitInBytes() != 4*mib || r.GetCpuQuota() != -1 || r.GetCpuShares() != 300 || r.GetCpusetCpus() != "0" || r.GetOomScoreAdj() != 700 {
		t.Errorf("status after a restart of berthd: %v", r)
	}

	// One that is created and not started has it from its first instruction on.
	made, err := n.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: shell("later", "exec sleep 1000"), SandboxConfig: config})
	if err != nil {
		t.Fatal(err)
	}
	id = made.GetContainerId()
	if err := update(&runtimeapi.LinuxContainerResources{CpusetCpus: "1", MemoryLimitInBytes: 64 * mib, OomScoreAdj: 600}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if cpus, memory := n.cgroupFile(id, "cpuset", "cpuset.cpus", "cpuset.cpus"), n.cgroupFile(id, "memory", "memory.limit_in_bytes", "memory.max"); cpus != "1" || memory != "67108864" {
		t.Errorf("CPUs %s, memory %s", cpus, memory)
	}
	if score := strings.TrimSpace(n.proc(id, "oom_score_adj")); score != "600" {
		t.Errorf("score %s, want 600", score)
	}
	if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if err := update(&runtimeapi.LinuxContainerResources{CpuShares: 500}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("update of what has ended: %v", err)
	}
	id = "0123456789ab"
	if err := update(&runtimeapi.LinuxContainerResources{CpuShares: 500}); status.Code(err) != codes.NotFound {
		t.Errorf("update of what is not there: %v", err)
	}

	if _, err := n.runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 777}}); err != nil {
		t.Error(err)
	}
	verbose, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil || !strings.Contains(verbose.GetInfo()["info"], "777") {
		t.Errorf("the pod's resources are not in its status: %v, %v", verbose.GetInfo(), err)
	}
	n.remove(pod)
	os.RemoveAll(n.path("logs"))
	n.clean()
}

// TestCgroupOfContainerWhoseInitMoves has a first process in a cgroup below the container's, as with systemd and Docker in Docker:
// settings and usage are still of the whole container.
func TestCgroupOfContainerWhoseInitMoves(t *testing.T) {
	n := newNode(t)
	config := n.pod("moves")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	id := n.create(pod, config, shell("c", "sleep 1000 & sleep 1001 & wait"))
	var all []int
	n.until(10*time.Second, "no children", func() bool {
		seen, err := n.docker.ContainerInspect(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		g, err := cgroup.ForContainer(seen.State.Pid, id)
		if err != nil {
			t.Fatal(err)
		}
		if all, err = cgroup.Processes(g); err != nil || len(all) != 3 {
			return false
		}
		for _, controller := range []string{"pids", "memory"} {
			dir, _ := g.Dir(controller)
			if err := errors.Join(os.MkdirAll(dir+"/init", 0o755), os.WriteFile(dir+"/init/cgroup.procs", []byte(strconv.Itoa(seen.State.Pid)), 0)); err != nil {
				t.Fatal(err)
			}
		}
		return true
	})
	// A daemon that has not looked before.
	n.kill()
	n.start()
	if got := n.matching(n.series(pod), `container_processes{image="`+*image+`",namespace="live",pod="moves",container="c"`); got != 3 {
		t.Errorf("%d processes, want 3", got)
	}
	if _, err := n.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{OomScoreAdj: 700},
	}); err != nil {
		t.Fatal(err)
	}
	for _, pid := range all {
		if got, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj")); err != nil || strings.TrimSpace(string(got)) != "700" {
			t.Errorf("process %d: score %s, %v", pid, got, err)
		}
	}
	n.remove(pod)
}
