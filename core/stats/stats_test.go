package stats

import (
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/core/engine/enginetest"
	"berth/core/stats/cgroupstats"
	"berth/network/netns"
)

// writeFiles creates a directory with the given files.
func writeFiles(t *testing.T, content map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range content {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

// groupV1 is a cgroup v1 with the given files in the directories of all controllers.
func groupV1(t *testing.T, content map[string]string) cgroup.Group {
	t.Helper()
	dir := writeFiles(t, content)
	return cgroup.Group{V1: map[string]string{"memory": dir, "cpu": dir, "cpuacct": dir, "pids": dir}}
}

// statsOf reads the cgroup g and encodes it as the statistics of a container.
func statsOf(t *testing.T, g cgroup.Group) *runtimeapi.ContainerStats {
	t.Helper()
	r, err := cgroupstats.Read(g, cgroupstats.Usage)
	must(t, err)
	return &runtimeapi.ContainerStats{Cpu: New(nil, nil, nil).cpuUsage(r, "c"), Memory: memoryUsage(r), Swap: swapUsage(r), Io: ioUsage(r)}
}

func checkMemory(t *testing.T, stats *runtimeapi.ContainerStats, want map[string]uint64) {
	t.Helper()
	m, s := stats.GetMemory(), stats.GetSwap()
	got := map[string]uint64{
		"usage": m.GetUsageBytes().GetValue(), "working set": m.GetWorkingSetBytes().GetValue(), "available": m.GetAvailableBytes().GetValue(),
		"rss": m.GetRssBytes().GetValue(), "faults": m.GetPageFaults().GetValue(), "major faults": m.GetMajorPageFaults().GetValue(),
		"swap": s.GetSwapUsageBytes().GetValue(),
	}
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%s = %d, want %d", name, got[name], n)
		}
	}
	for name, at := range map[string]int64{"CPU": stats.GetCpu().GetTimestamp(), "memory": m.GetTimestamp(), "swap": s.GetTimestamp()} {
		if age := time.Since(time.Unix(0, at)); age < 0 || age > time.Minute {
			t.Errorf("timestamp of %s is %v ago", name, age)
		}
	}
}

func TestMemoryStatsOfCgroupV1(t *testing.T) {
	stats := statsOf(t, groupV1(t, map[string]string{
		"cpuacct.usage":         "1500000\n",
		"memory.usage_in_bytes": "1000000\n", "memory.limit_in_bytes": "2000000\n",
		"memory.memsw.usage_in_bytes": "1000100\n", "memory.memsw.limit_in_bytes": "2000000\n",
		"memory.stat": "inactive_file 1\ntotal_inactive_file 300000\ntotal_rss 500000\ntotal_pgfault 70\ntotal_pgmajfault 7\n",
	}))
	checkMemory(t, stats, map[string]uint64{
		"usage": 1000000, "working set": 700000, "available": 1300000, "rss": 500000, "faults": 70, "major faults": 7, "swap": 100,
	})
	if n := stats.GetCpu().GetUsageCoreNanoSeconds().GetValue(); n != 1_500_000 {
		t.Errorf("CPU time %d", n)
	}
	if stats.GetIo() != nil || stats.GetCpu().GetPsi() != nil || stats.GetMemory().GetPsi() != nil {
		t.Errorf("pressure of cgroup v1: %v", stats)
	}
}

func TestStatsOfCgroupV2(t *testing.T) {
	stats := statsOf(t, cgroup.Group{V2: writeFiles(t, map[string]string{
		"cpu.stat": "usage_usec 1500\nuser_usec 1000\n", "memory.current": "1000000\n", "memory.max": "2000000\n", "memory.swap.current": "100\n", "memory.swap.max": "0\n",
		"memory.stat":     "anon 500000\nfile 400000\ninactive_file 300000\npgfault 70\npgmajfault 7\n",
		"memory.pressure": "some avg10=1.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"io.pressure":     "some avg10=0.00 avg60=2.00 avg300=0.00 total=6\n",
	})})
	checkMemory(t, stats, map[string]uint64{
		"usage": 1000000, "working set": 700000, "available": 1300000, "rss": 500000, "faults": 70, "major faults": 7, "swap": 100,
	})
	if n := stats.GetCpu().GetUsageCoreNanoSeconds().GetValue(); n != 1_500_000 {
		t.Errorf("CPU time %d", n)
	}
	if p := stats.GetMemory().GetPsi(); p.GetSome().GetTotal() != 5000 || p.GetSome().GetAvg10() != 1 || p.GetFull() == nil {
		t.Errorf("memory pressure %v", p)
	}
	if p := stats.GetIo().GetPsi(); p.GetSome().GetTotal() != 6000 || p.GetSome().GetAvg60() != 2 || p.GetFull() != nil || stats.GetIo().GetTimestamp() == 0 {
		t.Errorf("I/O %v", stats.GetIo())
	}
	if stats.GetCpu().GetPsi() != nil {
		t.Errorf("CPU pressure %v of a file that does not exist", stats.GetCpu().GetPsi())
	}
	if n := stats.GetSwap().GetSwapAvailableBytes().GetValue(); n != 0 {
		t.Errorf("swap available %d", n)
	}
}

// Without a limit AvailableBytes must not be set; a working set below 0 is 0, and where
// swap is not counted it is 0 rather than missing.
func TestMemoryStatsWithoutLimit(t *testing.T) {
	for name, g := range map[string]cgroup.Group{
		"v1": groupV1(t, map[string]string{
			"cpuacct.usage": "1", "memory.usage_in_bytes": "10", "memory.limit_in_bytes": "9223372036854771712", "memory.stat": "total_inactive_file 20\n",
		}),
		"v2": {V2: writeFiles(t, map[string]string{"cpu.stat": "", "memory.current": "10", "memory.max": "max", "memory.stat": "inactive_file 20\n"})},
	} {
		stats := statsOf(t, g)
		m, s := stats.GetMemory(), stats.GetSwap()
		if m.GetAvailableBytes() != nil || m.GetWorkingSetBytes() == nil || m.GetWorkingSetBytes().GetValue() != 0 || s.GetSwapUsageBytes() == nil || s.GetSwapAvailableBytes().GetValue() != 0 {
			t.Errorf("%s: %v, %v", name, m, s)
		}
	}
}

func TestUpdateRate(t *testing.T) {
	s := New(nil, nil, nil)
	at := time.Unix(1000, 0)
	for _, step := range []struct {
		after time.Duration
		count uint64
		want  string
	}{
		{0, 100, "<nil>"},
		{500 * time.Millisecond, 200, "<nil>"},                 // within minRateWindow
		{2 * time.Second, 1_000_000_100, "value:500000000"},    // half a core
		{2100 * time.Millisecond, 1e12, "value:500000000"},     // within minRateWindow
		{10 * time.Second, 1_000_000_100, ""},                  // idle
		{20 * time.Second, 50, "<nil>"},                        // restarted
		{30 * time.Second, 10_000_000_050, "value:1000000000"}, // a whole core
	} {
		got := "<nil>"
		if n := s.updateRate("c", at.Add(step.after), step.count); n != nil {
			got = n.String()
		}
		if got != step.want {
			t.Errorf("after %v: %s, want %s", step.after, got, step.want)
		}
	}
}

// With background samples there is a rate for the first request already.
func TestSampleGivesRatesOfPodsAndContainers(t *testing.T) {
	s := New(nil, nil, nil)
	pid := os.Getpid()
	list := []*cache.Sandbox{
		{Row: &runtimeapi.PodSandbox{Id: "alone"}, Pid: pid},
		{Row: &runtimeapi.PodSandbox{Id: "gone"}, Pid: math.MaxInt32},
	}
	containersOf := map[string][]*cache.Container{"alone": {{Row: &runtimeapi.Container{Id: "c"}, Pid: pid}}}
	own, err := cgroup.ForPID(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"alone", "c"} {
		s.groups[procKey{id, pid}] = own // this process stands for both
	}
	s.sample(list, containersOf)
	for id, r := range s.rates {
		r.at = r.at.Add(-minRateWindow)
		s.rates[id] = r
	}
	s.sample(list, containersOf)
	for _, id := range []string{"alone", podSumKey("alone"), "c"} {
		if r := s.rates[id]; !r.known || r.count == 0 {
			t.Errorf("%s: %+v", id, r)
		}
	}
	if s.rates[podSumKey("alone")].count <= s.rates["c"].count {
		t.Errorf("the pod has used no more than its container: %+v", s.rates)
	}
	if r, ok := s.rates["gone"]; ok {
		t.Errorf("pod that has ended: %+v", r)
	}
}

// Before the first measurement the writable layer is not set: 0 would be a measured value.
func TestNoWritableLayerBeforeTheFirstMeasurement(t *testing.T) {
	e := enginetest.New(t)
	e.AddImage(enginetest.Image{}, "busybox:1")
	s := New(e.Connect(t), nil, slog.New(slog.DiscardHandler))
	made, err := e.Client(t).ContainerCreate(t.Context(), &container.Config{Image: "busybox:1"}, nil, nil, nil, "one")
	must(t, err)
	found, _ := e.Container(made.ID)
	upper := found.GraphDriver.Data["UpperDir"]
	const size = 1 << 20
	must(t, os.MkdirAll(upper, 0o755), os.WriteFile(filepath.Join(upper, "big"), make([]byte, size), 0o600))
	c := &cache.Container{
		Row: &runtimeapi.Container{Id: made.ID, State: runtimeapi.ContainerState_CONTAINER_RUNNING}, Pid: 7, Running: true, WritableLayer: upper,
	}
	if got := s.exitedStats(c).GetWritableLayer(); got != nil {
		t.Errorf("before: %v", got)
	}
	s.disk.MeasureFirst(t.Context(), c)
	got := s.exitedStats(c).GetWritableLayer()
	if got.GetUsedBytes().GetValue() < size || got.GetInodesUsed().GetValue() != 2 || got.GetTimestamp() == 0 || got.GetFsId().GetMountpoint() == "" {
		t.Errorf("after: %v", got)
	}
}

func TestNetworkUsage(t *testing.T) {
	other := netns.Counters{Name: "net1", RxBytes: 1}
	got := networkUsage([]netns.Counters{other, {Name: "eth0", RxBytes: 5, TxErrors: 7}})
	if d := got.GetDefaultInterface(); d.GetName() != "eth0" || d.GetRxBytes().GetValue() != 5 || d.GetTxErrors().GetValue() != 7 || len(got.GetInterfaces()) != 1 {
		t.Errorf("got %v", got)
	}
	// A kubelet has crashed on these, of a pod whose network was torn down.
	if got := networkUsage([]netns.Counters{other}); got != nil {
		t.Errorf("without a default interface: %v", got)
	}
	if got := networkUsage(nil); got != nil {
		t.Errorf("without an interface: %v", got)
	}
}

func TestInterfacesAreLimited(t *testing.T) {
	var all []netns.Counters
	for i := range 1000 {
		all = append(all, netns.Counters{Name: "dummy" + strconv.Itoa(i)})
	}
	all = append(all, netns.Counters{Name: defaultInterface})
	got := limitInterfaces(all)
	if len(got) != maxInterfaces || networkUsage(got) == nil {
		t.Errorf("%d interfaces, %v", len(got), got)
	}
}
