package cgroupstats

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/core/cgroup"
)

// The files of one cgroup of each version; both are of the same use.
var (
	filesV1 = map[string]string{
		"memory.usage_in_bytes": "1000", "memory.limit_in_bytes": "2000", "memory.max_usage_in_bytes": "3000", "memory.failcnt": "4",
		"memory.kmem.usage_in_bytes": "50", "memory.soft_limit_in_bytes": "9223372036854771712",
		"memory.memsw.usage_in_bytes": "1007", "memory.memsw.limit_in_bytes": "5007",
		"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		"memory.stat":        "inactive_file 1\npgfault 8\npgmajfault 1\ntotal_rss 600\ntotal_cache 300\ntotal_mapped_file 20\ntotal_active_file 90\ntotal_inactive_file 200\ntotal_pgfault 9\ntotal_pgmajfault 2\n",
		"cpuacct.stat":       "user 30\nsystem 10\n", "cpuacct.usage": "450000000", "cpu.stat": "nr_periods 5\nnr_throttled 3\nthrottled_time 70000\n",
		"blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
		"blkio.throttle.io_serviced_recursive":      "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
		"pids.current":                              "7", "pids.max": "max",
		"hugetlb.2MB.usage_in_bytes": "4", "hugetlb.2MB.max_usage_in_bytes": "6",
	}
	filesV2 = map[string]string{
		"memory.current": "1000", "memory.max": "2000", "memory.peak": "3000", "memory.swap.current": "7", "memory.swap.max": "4007", "memory.low": "max",
		"memory.events":   "low 0\nhigh 0\nmax 4\noom 2\noom_kill 2\n",
		"memory.stat":     "anon 600\nfile 300\nkernel 50\nfile_mapped 20\nactive_file 90\ninactive_file 200\npgfault 9\npgmajfault 2\n",
		"memory.pressure": "some avg10=1.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"cpu.stat":        "usage_usec 450000\nuser_usec 300000\nsystem_usec 100000\nnr_periods 5\nnr_throttled 3\nthrottled_usec 70\n",
		"io.stat":         "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n9:0 \n", "pids.current": "7", "pids.max": "max",
		"hugetlb.2MB.current": "4",
	}
)

// groupOf creates a cgroup of the given version with the given files.
func groupOf(t *testing.T, version string, files map[string]string) (g cgroup.Group, dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if version == "v2" {
		return cgroup.Group{V2: dir}, dir
	}
	return cgroup.Group{V1: map[string]string{"memory": dir, "cpu": dir, "cpuacct": dir, "blkio": dir, "pids": dir, "hugetlb": dir}}, dir
}

// filesOf returns the files of a cgroup version without some, and with others changed.
func filesOf(version string, changed map[string]string, without ...string) map[string]string {
	files := maps.Clone(map[string]map[string]string{"v1": filesV1, "v2": filesV2}[version])
	maps.Copy(files, changed)
	for _, name := range without {
		delete(files, name)
	}
	return files
}

func TestReadGivesTheSameForBothVersions(t *testing.T) {
	for version, want := range map[string]Reading{
		"v1": {
			CPU: CPU{Total: 450e6, User: 300e6, System: 100e6, Periods: 5, ThrottledPeriods: 3, ThrottledTime: 70000},
			Memory: Memory{
				Usage: 1000, Limit: 2000, RSS: 600, Cache: 300, Kernel: 50, MappedFile: 20, ActiveFile: 90, InactiveFile: 200,
				PageFaults: 9, MajorPageFaults: 2, OwnPageFaults: 8, OwnMajorPageFaults: 1, Swap: 7, SwapLimit: 5007, SwapHeadroom: 4000,
				Peak: 3000, Reservation: cgroup.Unlimited, LimitReached: 4, OOMKills: 2,
			},
		},
		"v2": {
			CPU: CPU{Total: 450e6, User: 300e6, System: 100e6, Periods: 5, ThrottledPeriods: 3, ThrottledTime: 70000},
			Memory: Memory{
				Usage: 1000, Limit: 2000, RSS: 600, Cache: 300, Kernel: 50, MappedFile: 20, ActiveFile: 90, InactiveFile: 200,
				PageFaults: 9, MajorPageFaults: 2, OwnPageFaults: 9, OwnMajorPageFaults: 2, Swap: 7, SwapLimit: 4007, SwapHeadroom: 4000,
				Peak: 3000, Reservation: cgroup.Unlimited, LimitReached: 4, OOMKills: 2,
			},
			Pressure: Pressure{Memory: &PSI{Some: &cgroup.Pressure{Avg10: 1, Total: 5000}, Full: &cgroup.Pressure{}}},
		},
	} {
		t.Run(version, func(t *testing.T) {
			g, dir := groupOf(t, version, filesOf(version, nil))
			r, err := Read(g, All)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want.CPU, r.CPU) + cmp.Diff(want.Memory, r.Memory) + cmp.Diff(want.Pressure, r.Pressure); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if r.Threads != 7 || r.ThreadLimit != cgroup.Unlimited || r.Memory.WorkingSet() != 800 {
				t.Errorf("%d threads of %d, working set %d", r.Threads, r.ThreadLimit, r.Memory.WorkingSet())
			}
			if len(r.Devices) != 1 || r.Devices[0].Bytes["Read"] != 10 || r.Devices[0].Requests["Write"] != 2 {
				t.Errorf("devices %+v", r.Devices)
			}
			peak := map[string]uint64{"v1": 6, "v2": 0}[version]
			if huge, err := readHugePages(g, []string{"1GB", "2MB"}); err != nil || !cmp.Equal(huge, []HugePages{{"2MB", 4, peak}}) {
				t.Errorf("huge pages %+v, %v", huge, err)
			}
			// A cgroup that is removed while it is read must be gone, not at zero.
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			for _, detail := range []Detail{Usage, All} {
				if _, err := Read(g, detail); !IsExited(err) {
					t.Errorf("detail %d, cgroup removed: %v", detail, err)
				}
			}
		})
	}
}

// What CRI statistics carry is the same with both details.
func TestReadUsageIsAPartOfReadAll(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		g, _ := groupOf(t, version, filesOf(version, nil))
		usage, err := Read(g, Usage)
		if err != nil {
			t.Fatal(err)
		}
		all, err := Read(g, All)
		if err != nil {
			t.Fatal(err)
		}
		common := func(r *Reading) []any {
			m := r.Memory
			return []any{r.CPU.Total, m.Usage, m.Limit, m.WorkingSet(), m.RSS, m.PageFaults, m.MajorPageFaults, m.Swap, m.SwapHeadroom, r.Pressure}
		}
		if diff := cmp.Diff(common(usage), common(all)); diff != "" {
			t.Errorf("%s (-usage +all):\n%s", version, diff)
		}
	}
}

// Kernels of old distributions do not have all files.
func TestReadWithoutOptionalFiles(t *testing.T) {
	for version, without := range map[string][]string{
		"v1": {"memory.max_usage_in_bytes", "memory.failcnt", "memory.kmem.usage_in_bytes", "memory.soft_limit_in_bytes", "memory.memsw.usage_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control", "pids.max"},
		"v2": {"memory.peak", "memory.low", "memory.swap.current", "memory.swap.max", "memory.pressure", "pids.max", "io.stat"},
	} {
		g, _ := groupOf(t, version, filesOf(version, map[string]string{}, without...))
		r, err := Read(g, All)
		if err != nil {
			t.Errorf("%s: %v", version, err)
			continue
		}
		if m := r.Memory; m.Usage != 1000 || m.Swap != 0 || m.SwapLimit != 0 || m.SwapHeadroom != 0 || m.Reservation != 0 {
			t.Errorf("%s: %+v", version, m)
		}
		if version == "v2" && r.Memory.Peak != 1000 {
			t.Errorf("peak %d, want the current usage", r.Memory.Peak)
		}
	}
	g, _ := groupOf(t, "v2", filesOf("v2", map[string]string{"memory.stat": "anon 1\nkernel_stack 2\nslab 3\n"}))
	if r, err := Read(g, All); err != nil || r.Memory.Kernel != 5 {
		t.Errorf("kernel memory before Linux 5.18: %+v, %v", r, err)
	}
}

// Each of these files is always there for a cgroup that exists, with both details. To
// count one as 0 would show a container that is ending as an idle one.
func TestReadFailsWithoutARequiredFile(t *testing.T) {
	for version, required := range map[string]map[string]Detail{
		"v1": {
			"cpuacct.usage": Usage, "memory.usage_in_bytes": Usage, "memory.limit_in_bytes": Usage, "memory.stat": Usage, "memory.memsw.limit_in_bytes": Usage,
			"cpuacct.stat": All, "cpu.stat": All, "pids.current": All,
		},
		"v2": {
			"cpu.stat": Usage, "memory.current": Usage, "memory.max": Usage, "memory.stat": Usage, "memory.swap.max": Usage,
			"memory.events": All, "pids.current": All,
		},
	} {
		for name, least := range required {
			g, _ := groupOf(t, version, filesOf(version, nil, name))
			for _, detail := range []Detail{Usage, All} {
				if _, err := Read(g, detail); (err != nil) != (detail >= least) || err != nil && !IsExited(err) {
					t.Errorf("%s without %s, detail %d: %v", version, name, detail, err)
				}
			}
		}
	}
}

// A controller that is not mounted is a fault of the node, not an end of the cgroup.
func TestReadFailsWithoutAController(t *testing.T) {
	for _, controller := range []string{"cpuacct", "memory", "pids"} {
		g, _ := groupOf(t, "v1", filesOf("v1", nil))
		delete(g.V1, controller)
		if _, err := Read(g, All); err == nil || IsExited(err) {
			t.Errorf("without %s: %v", controller, err)
		}
	}
	if _, err := CPUTime(cgroup.Group{V1: map[string]string{}}); err == nil || IsExited(err) {
		t.Errorf("CPU time without cpuacct: %v", err)
	}
	g, _ := groupOf(t, "v1", filesOf("v1", nil))
	for _, controller := range []string{"cpu", "blkio", "hugetlb"} { // these may be missing
		delete(g.V1, controller)
	}
	if _, err := Read(g, All); err != nil {
		t.Error(err)
	}
}

func TestUnlimited(t *testing.T) {
	for version, changed := range map[string]map[string]string{
		"v1": {"memory.limit_in_bytes": "9223372036854771712", "memory.memsw.limit_in_bytes": "9223372036854771712"},
		"v2": {"memory.max": "max", "memory.swap.max": "max"},
	} {
		g, _ := groupOf(t, version, filesOf(version, changed))
		r, err := Read(g, Usage)
		if err != nil || r.Memory.Limit != cgroup.Unlimited || r.Memory.SwapLimit != cgroup.Unlimited || r.Memory.SwapHeadroom < 1<<62 {
			t.Errorf("%s: %+v, %v", version, r, err)
		}
	}
}

func TestCPUTimeIsInNanoseconds(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		g, _ := groupOf(t, version, filesOf(version, nil))
		if n, err := CPUTime(g); err != nil || n != 450e6 {
			t.Errorf("%s: %d, %v", version, n, err)
		}
	}
}

func TestHostReportsWhatTheKernelCounts(t *testing.T) {
	huge := map[string]string{"/sys/kernel/mm/hugepages/hugepages-2048kB/x": "", "/sys/kernel/mm/hugepages/hugepages-1048576kB/x": "", "/sys/kernel/mm/hugepages/hugepages-64kB/x": ""}
	sizes := []string{"1GB", "2MB", "64KB"}
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  Host
	}{
		{"v1", map[string]string{"/sys/fs/cgroup/memory/x": ""}, Host{}},
		{"v1 with huge pages", map[string]string{"/sys/fs/cgroup/hugetlb/x": ""}, Host{PageSizes: sizes}},
		{"v2", map[string]string{"/sys/fs/cgroup/cgroup.controllers": "cpu memory\n"}, Host{CgroupV2: true}},
		{"v2 with all", map[string]string{"/sys/fs/cgroup/cgroup.controllers": "cpu hugetlb memory\n", "/proc/pressure/memory": "some"}, Host{CgroupV2: true, Pressure: true, PageSizes: sizes}},
	} {
		root := t.TempDir()
		all := maps.Clone(huge)
		maps.Copy(all, tt.files)
		for path, text := range all {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got := hostAt(root)
		slices.Sort(got.PageSizes)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestReadFilesystem(t *testing.T) {
	got, err := ReadFilesystem(t.TempDir())
	if err != nil || got.Device == "" || got.Size == 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := ReadFilesystem(filepath.Join(t.TempDir(), "none")); !IsExited(err) {
		t.Errorf("directory that does not exist: %v", err)
	}
}

// A reading is completed by the files that it lacks; those that were read are not read again.
func TestCompleteReadsTheOtherFilesOnly(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"cpuacct.usage": "5", "cpuacct.stat": "user 1\nsystem 2\n", "cpu.stat": "nr_periods 3\n",
		"memory.usage_in_bytes": "100", "memory.stat": "total_rss 50\n", "memory.limit_in_bytes": "200", "memory.max_usage_in_bytes": "150", "pids.current": "7",
	} {
		write(name, text)
	}
	g := cgroup.Group{V1: map[string]string{"cpuacct": dir, "cpu": dir, "memory": dir, "pids": dir}}
	first, err := Read(g, Usage)
	if err != nil {
		t.Fatal(err)
	}
	write("cpuacct.usage", "500")
	write("memory.usage_in_bytes", "10000")
	pod, err := first.Complete(g, PodUsage)
	if err != nil || pod.Threads != 7 || pod.CPU.User != 0 || first.Threads != 0 {
		t.Errorf("%+v, %v", pod, err)
	}
	write("pids.current", "700")
	all, err := pod.Complete(g, All)
	if err != nil || all.CPU.Total != 5 || all.Memory.Usage != 100 || all.Threads != 7 || all.CPU.User != 1e7 || all.CPU.Periods != 3 || all.Memory.Peak != 150 || all.At != first.At {
		t.Errorf("%+v, %v", all, err)
	}
	if same, err := all.Complete(g, Usage); same != all || err != nil {
		t.Errorf("a complete reading was read again: %+v, %v", same, err)
	}
	for _, name := range []string{"cpuacct.stat", "pids.current"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := first.Complete(g, All); !IsExited(err) {
		t.Errorf("of a cgroup that is being removed: %+v, %v", got, err)
	}
}
