package live

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	dockerimage "github.com/docker/docker/api/types/image"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// near reports whether got is within 5 % of want, as far as the margin allows
// for what a shell does besides.
func near(got, want, margin uint64) bool {
	slack := want/20 + margin
	return got+slack >= want && got <= want+slack
}

// TestStatsMatchTheKernel has a container use known amounts of everything.
func TestStatsMatchTheKernel(t *testing.T) {
	n := newNode(t)
	config := n.pod("stats")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	id := n.create(pod, config, shell("c", `
		dd if=/dev/urandom of=/cache bs=1M count=256 2>/dev/null
		cat /cache /cache >/dev/null
		awk 'BEGIN { s = sprintf("%67108864s", ""); while (1) system("sleep 1000") }' &
		while :; do :; done`))
	// A second one, with usage of its own, and to receive.
	other := n.create(pod, config, shell("other", "nc -l -p 9000 >/dev/null; exec sleep 1000"))
	stats := func() *runtimeapi.ContainerStats {
		r, err := n.runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetStats()
	}
	n.until(30*time.Second, "nothing cached", func() bool { return stats().GetMemory().GetRssBytes().GetValue() > 64*mib })
	if _, err := n.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuPeriod: 100_000, CpuQuota: 50_000},
	}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // rates are taken from here on
	inspected, err := n.docker.ContainerInspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	own := func() (spent uint64) { // nanoseconds of its first process, which are nearly all
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", inspected.State.Pid))
		if err == nil {
			_, err = fmt.Sscan(string(text), &spent)
		}
		if err != nil {
			t.Fatal(err)
		}
		return spent
	}
	first, ran := stats(), own()
	var used uint64
	// On a machine that is busy with something else not every window is even.
	n.until(time.Minute, "nano cores are not the CPU time that was used", func() bool {
		time.Sleep(5 * time.Second)
		second, now := stats(), own()
		took := uint64(second.GetCpu().GetTimestamp() - first.GetCpu().GetTimestamp())
		used = second.GetCpu().GetUsageCoreNanoSeconds().GetValue() - first.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		cores := second.GetCpu().GetUsageNanoCores().GetValue()
		t.Logf("%d nano cores, of the half that may be used; %d ns of CPU in %d, truly %d", cores, used, took, now-ran)
		// In the first window awk may still be writing its string.
		matches := near(used, now-ran, 15e7) && near(cores, used*1e9/took, 3e7)
		first, ran = second, now
		return matches
	})
	m := first.GetMemory()
	if rss := m.GetRssBytes().GetValue(); !near(rss, 64*mib, 2*mib) {
		t.Errorf("rss %d MiB, want 64", rss/mib)
	}
	if all := m.GetUsageBytes().GetValue(); !near(all, 320*mib, 12*mib) {
		t.Errorf("usage %d MiB, want 320", all/mib)
	}
	if set := m.GetWorkingSetBytes().GetValue(); set > m.GetUsageBytes().GetValue() || set < 64*mib {
		t.Errorf("working set %d MiB", set/mib)
	}
	n.until(2*time.Minute, "what was written is not measured", func() bool {
		return near(stats().GetWritableLayer().GetUsedBytes().GetValue(), 256*mib, 0)
	})
	if fs := stats().GetWritableLayer(); fs.GetInodesUsed().GetValue() == 0 {
		t.Errorf("writable layer %v", fs)
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", inspected.State.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if root := stats().GetWritableLayer().GetFsId().GetMountpoint(); root == "" || !strings.Contains(string(table), "upperdir="+root+"/") {
		t.Errorf("the layer is not in %q:\n%s", root, table)
	}

	pods, err := n.runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "stats"}}})
	if err != nil || len(pods.GetStats()) != 1 || len(pods.GetStats()[0].GetLinux().GetContainers()) != 2 {
		t.Fatalf("pods: %v, %v", pods, err)
	}
	before := pods.GetStats()[0].GetLinux().GetNetwork().GetDefaultInterface()
	const sent = 50_000_000
	seen, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", net.JoinHostPort(seen.GetStatus().GetNetwork().GetIp(), "9000"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(make([]byte, sent)); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	n.until(10*time.Second, "not all has been received", func() bool { return !strings.Contains(n.exec(other, "ps"), "nc -l") })
	one, err := n.runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	linux := one.GetStats().GetLinux()
	after := linux.GetNetwork().GetDefaultInterface()
	if got := after.GetRxBytes().GetValue() - before.GetRxBytes().GetValue(); after.GetName() != "eth0" || !near(got, sent, 0) {
		t.Errorf("%s has received %d bytes, want %d", after.GetName(), got, sent)
	}
	if n := linux.GetProcess().GetProcessCount().GetValue(); n < 5 || n > 12 {
		t.Errorf("%d processes", n)
	}
	if linux.GetMemory().GetUsageBytes().GetValue() < 320*mib || linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() < used {
		t.Errorf("the pod uses less than its container: %v, %v", linux.GetCpu(), linux.GetMemory())
	}

	list, err := n.runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"container": "other"}}})
	if err != nil || len(list.GetStats()) != 1 || list.GetStats()[0].GetAttributes().GetId() != other {
		t.Errorf("by label: %v, %v", list, err)
	}
	if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: other}); err != nil {
		t.Fatal(err)
	}
	list, err = n.runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})
	if err != nil || len(list.GetStats()) != 1 || list.GetStats()[0].GetAttributes().GetId() != id {
		t.Errorf("after one has ended: %v, %v", list, err)
	}
	n.remove(pod)
}

// Stats come from files, not from Docker.
func TestStatsMakeNoEngineCalls(t *testing.T) {
	n := newNode(t)
	for i := range 5 {
		config := n.pod(fmt.Sprintf("quiet-%d", i))
		pod, err := n.run(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		n.create(pod, config, shell("c", "exec sleep 1000"))
	}
	// A late event of a start, or the comparison with Docker's list every 30 seconds, may be among them.
	n.until(time.Minute, "stats call Docker each time", func() bool {
		n.proxy.reset()
		begin := time.Now()
		const rounds = 20
		for range rounds {
			if list, err := n.runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{}); err != nil || len(list.GetStats()) != 5 {
				t.Fatalf("%v, %v", list, err)
			}
			if list, err := n.runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{}); err != nil || len(list.GetStats()) != 5 {
				t.Fatalf("%v, %v", list, err)
			}
		}
		t.Logf("stats of 5 containers and 5 pods: %v", time.Since(begin)/rounds)
		calls, which := n.proxy.total()
		t.Logf("%d calls to Docker: %s", calls, which)
		return calls == 0
	})
	n.removeAll()
}

// TestAllThatAContainerWritesIsCounted has a container write to its root file system, to a
// volume of its image and to its output.
func TestAllThatAContainerWritesIsCounted(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	base, err := n.docker.ContainerCreate(ctx, &container.Config{Image: *image, Cmd: []string{"true"}}, nil, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	made, err := n.docker.ContainerCommit(ctx, base.ID, container.CommitOptions{Reference: "berth-test-volume:1", Changes: []string{"VOLUME /v"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = n.docker.ImageRemove(context.Background(), made.ID, dockerimage.RemoveOptions{Force: true})
	})
	config := n.pod("written")
	pod, err := n.run(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	c := shell("c", `dd if=/dev/urandom of=/v/x bs=1M count=100 2>/dev/null; dd if=/dev/urandom of=/x bs=1M count=30 2>/dev/null
		yes 0123456789012345678901234567890123456789 | head -c 20000000; sleep 1000`)
	c.Image = &runtimeapi.ImageSpec{Image: "berth-test-volume:1"}
	id := n.create(pod, config, c)
	stats := func() *runtimeapi.FilesystemUsage {
		r, err := n.runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetStats().GetWritableLayer()
	}
	// Docker writes some 80 bytes for each line of 41.
	const logs, want = 20_000_000 / 41 * 80, 130*mib + 20_000_000/41*80
	n.until(3*time.Minute, "not all is counted", func() bool {
		used := stats()
		if used != nil && used.GetUsedBytes() == nil {
			t.Fatal("a measurement without a number")
		}
		// The last of the output may still be on its way to Docker's log.
		return near(used.GetUsedBytes().GetValue(), want, logs) && used.GetUsedBytes().GetValue() >= 130*mib+20_000_000
	})
	n.until(time.Minute, "the file system of containers does not count it", func() bool {
		fs, err := n.images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return fs.GetContainerFilesystems()[0].GetUsedBytes().GetValue() >= 130*mib+20_000_000
	})
}

// TestDockerStatsOfPodsAreZero: the Engine looks for the statistics of a network that it has not
// made, and gives up: docker stats prints zeros for a container in a pod, or an error with Docker 29. The CRI's own numbers are true.
func TestDockerStatsOfPodsAreZero(t *testing.T) {
	n := newNode(t)
	config := n.pod("dockerstats")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	id := n.create(pod, config, shell("c", "exec sleep 1000"))
	usage := func(id string) uint64 {
		reader, err := n.docker.ContainerStatsOneShot(t.Context(), id)
		if err != nil && strings.Contains(err.Error(), "invalid id") { // Docker 29 says so, older ones log it
			return 0
		}
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Body.Close()
		var seen container.StatsResponse
		if err := json.NewDecoder(reader.Body).Decode(&seen); err != nil {
			t.Fatal(err)
		}
		return seen.MemoryStats.Usage
	}
	if got := usage(id); got != 0 {
		t.Errorf("this Engine knows that the container uses %d bytes: operating.md and open.md say that it does not", got)
	}
	if usage(pod) == 0 {
		t.Error("this Engine knows nothing of the pause container either")
	}
	seen, err := n.runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil || seen.GetStats().GetMemory().GetUsageBytes().GetValue() == 0 {
		t.Errorf("statistics by the CRI: %v, %v", seen, err)
	}
	n.remove(pod)
	n.clean()
}
