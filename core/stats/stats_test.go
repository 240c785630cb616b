package stats

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/network/netns"
)

// files makes a cgroup's directory.
func files(t *testing.T, content map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range content {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func expect(t *testing.T, got, want map[string]uint64) {
	t.Helper()
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%s = %d, want %d", name, got[name], n)
		}
	}
}

func numbers(m *runtimeapi.MemoryUsage, s *runtimeapi.SwapUsage) map[string]uint64 {
	return map[string]uint64{
		"usage": m.GetUsageBytes().GetValue(), "working set": m.GetWorkingSetBytes().GetValue(), "available": m.GetAvailableBytes().GetValue(),
		"rss": m.GetRssBytes().GetValue(), "faults": m.GetPageFaults().GetValue(), "major faults": m.GetMajorPageFaults().GetValue(),
		"swap": s.GetSwapUsageBytes().GetValue(),
	}
}

func TestMemoryV1(t *testing.T) {
	dir := files(t, map[string]string{
		"memory.usage_in_bytes": "1000000\n", "memory.limit_in_bytes": "2000000\n",
		"memory.memsw.usage_in_bytes": "1000100\n", "memory.memsw.limit_in_bytes": "2000000\n",
		"memory.stat": "inactive_file 1\ntotal_inactive_file 300000\ntotal_rss 500000\ntotal_pgfault 70\ntotal_pgmajfault 7\n",
	})
	m, s, err := memoryV1(dir)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, numbers(m, s), map[string]uint64{
		"usage": 1000000, "working set": 700000, "available": 1300000, "rss": 500000, "faults": 70, "major faults": 7, "swap": 100,
	})
}

func TestMemoryWithoutALimit(t *testing.T) {
	for name, read := range map[string]func() (*runtimeapi.MemoryUsage, *runtimeapi.SwapUsage, error){
		"v1": func() (*runtimeapi.MemoryUsage, *runtimeapi.SwapUsage, error) {
			return memoryV1(files(t, map[string]string{"memory.usage_in_bytes": "10", "memory.limit_in_bytes": "9223372036854771712", "memory.stat": "total_inactive_file 20\n"}))
		},
		"v2": func() (*runtimeapi.MemoryUsage, *runtimeapi.SwapUsage, error) {
			return memoryV2(files(t, map[string]string{"memory.current": "10", "memory.max": "max", "memory.stat": "inactive_file 20\n"}))
		},
	} {
		m, s, err := read()
		if err != nil || m.GetAvailableBytes() != nil || m.GetWorkingSetBytes() == nil || m.GetWorkingSetBytes().GetValue() != 0 || s.GetSwapUsageBytes() == nil {
			t.Errorf("%s: %v, %v, %v", name, m, s, err)
		}
	}
}

func TestMemoryV2(t *testing.T) {
	dir := files(t, map[string]string{
		"memory.current": "1000000\n", "memory.max": "2000000\n", "memory.swap.current": "100\n", "memory.swap.max": "0\n",
		"memory.stat":     "anon 500000\nfile 400000\ninactive_file 300000\npgfault 70\npgmajfault 7\n",
		"memory.pressure": "some avg10=1.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
	})
	m, s, err := memoryV2(dir)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, numbers(m, s), map[string]uint64{
		"usage": 1000000, "working set": 700000, "available": 1300000, "rss": 500000, "faults": 70, "major faults": 7, "swap": 100,
	})
	if p := m.GetPsi(); p.GetSome().GetTotal() != 5000 || p.GetSome().GetAvg10() != 1 || p.GetFull() == nil {
		t.Errorf("pressure %v", p)
	}
	if s.GetSwapAvailableBytes().GetValue() != 0 {
		t.Errorf("swap available %d", s.GetSwapAvailableBytes().GetValue())
	}
}

func TestCPU(t *testing.T) {
	v2 := cgroup.Group{V2: files(t, map[string]string{"cpu.stat": "usage_usec 1500\nuser_usec 1000\n"})}
	v1 := cgroup.Group{V1: map[string]string{"cpuacct": files(t, map[string]string{"cpuacct.usage": "1500000\n"})}}
	for _, g := range []cgroup.Group{v1, v2} {
		if n, err := cpuTime(g); err != nil || n != 1_500_000 {
			t.Errorf("%v: %d, %v", g, n, err)
		}
	}
	if _, err := cpuTime(cgroup.Group{V1: map[string]string{}}); err == nil || gone(err) {
		t.Errorf("without the controller: %v", err)
	}
}

func TestSpeed(t *testing.T) {
	s := New(nil, nil, nil)
	at := time.Unix(1000, 0)
	for _, step := range []struct {
		after time.Duration
		count uint64
		want  string
	}{
		{0, 100, "<nil>"},
		{500 * time.Millisecond, 200, "<nil>"},                 // too soon to tell
		{2 * time.Second, 1_000_000_100, "value:500000000"},    // half a core
		{2100 * time.Millisecond, 1e12, "value:500000000"},     // too soon to tell anew
		{10 * time.Second, 1_000_000_100, ""},                  // at rest
		{20 * time.Second, 50, "<nil>"},                        // another process
		{30 * time.Second, 10_000_000_050, "value:1000000000"}, // a whole core
	} {
		got := "<nil>"
		if n := s.speed("c", at.Add(step.after), step.count); n != nil {
			got = n.String()
		}
		if got != step.want {
			t.Errorf("after %v: %s, want %s", step.after, got, step.want)
		}
	}
}

// Rates of pods and containers are known when they are asked for the first time.
func TestLook(t *testing.T) {
	s := New(nil, nil, nil)
	pid := os.Getpid()
	list := []*cache.Sandbox{
		{Row: &runtimeapi.PodSandbox{Id: "alone"}, Pid: pid},
		{Row: &runtimeapi.PodSandbox{Id: "gone"}, Pid: math.MaxInt32},
	}
	inside := map[string][]*cache.Container{"alone": {{Row: &runtimeapi.Container{Id: "c"}, Pid: pid}}}
	own, err := cgroup.OfProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"alone", "c"} {
		s.groups[first{id, pid}] = own // this process stands for both
	}
	s.look(list, inside)
	for id, r := range s.rates {
		r.at = r.at.Add(-rateWindow)
		s.rates[id] = r
	}
	s.look(list, inside)
	for _, id := range []string{"alone", "alone/sum", "c"} {
		if r := s.rates[id]; !r.known || r.count == 0 {
			t.Errorf("%s: %+v", id, r)
		}
	}
	if s.rates["alone/sum"].count <= s.rates["c"].count {
		t.Errorf("the pod has used no more than its container: %+v", s.rates)
	}
	if r, ok := s.rates["gone"]; ok {
		t.Errorf("of a pod that has ended: %+v", r)
	}
}

func TestUsage(t *testing.T) {
	lan := netns.Counters{Name: "net1", RxBytes: 1}
	got := usage([]netns.Counters{lan, {Name: "eth0", RxBytes: 5, TxErrors: 7}})
	if d := got.GetDefaultInterface(); d.GetName() != "eth0" || d.GetRxBytes().GetValue() != 5 || d.GetTxErrors().GetValue() != 7 || len(got.GetInterfaces()) != 1 {
		t.Errorf("got %v", got)
	}
	// A kubelet has crashed of a pod on its way out.
	if got := usage([]netns.Counters{lan}); got != nil {
		t.Errorf("without a default interface: %v", got)
	}
	if got := usage(nil); got != nil {
		t.Errorf("without an interface: %v", got)
	}
}
