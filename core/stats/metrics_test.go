package stats

import (
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cgroup"
	"berth/network/netns"
)

// names are those that CRI-O 1.36 has, which the conformance tests ask for, and
// the last two containerd's.
const names = `
blkio_device_usage_total
cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total
cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total
file_descriptors
fs_inodes_free fs_inodes_total fs_limit_bytes fs_usage_bytes
fs_reads_bytes_total fs_reads_total fs_writes_bytes_total fs_writes_total
hugetlb_max_usage_bytes hugetlb_usage_bytes
last_seen
memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes
memory_rss memory_swap memory_usage_bytes memory_working_set_bytes
network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total network_receive_packets_total
network_transmit_bytes_total network_transmit_errors_total network_transmit_packets_dropped_total network_transmit_packets_total
oom_events_total
pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total
pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total
processes sockets
spec_cpu_period spec_cpu_quota spec_cpu_shares
spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes
start_time_seconds threads threads_max ulimits_soft
memory_total_active_file_bytes memory_total_inactive_file_bytes`

func TestFamilies(t *testing.T) {
	var want, got []string
	for name := range strings.FieldsSeq(names) {
		want = append(want, "container_"+name)
	}
	for _, f := range families {
		got = append(got, f.name)
		if f.help == "" || !strings.HasSuffix(f.help, ".") {
			t.Errorf("%s: help %q", f.name, f.help)
		}
		if f.of == 0 || f.read == nil {
			t.Errorf("%s is about nothing", f.name)
		}
		if total := strings.HasSuffix(f.name, "_total"); total != (f.kind == counter) && !slices.Contains([]string{"container_memory_failcnt", "container_fs_inodes_total"}, f.name) {
			t.Errorf("%s is a %v", f.name, f.kind)
		}
		if seconds := strings.Contains(f.name, "_seconds"); seconds != f.nanos && f.name != "container_last_seen" {
			t.Errorf("%s: nanoseconds %v", f.name, f.nanos)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || len(got) != 58 {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	var keys []string
	for _, f := range families {
		keys = append(keys, f.name+" "+strings.Join(f.labelKeys(), ","))
	}
	for _, line := range []string{
		"container_memory_rss id,image,namespace,pod,container",
		"container_cpu_usage_seconds_total id,image,namespace,pod,container,cpu",
		"container_network_receive_bytes_total id,image,namespace,pod,container,interface",
		"container_blkio_device_usage_total id,image,namespace,pod,container,device,major,minor,operation",
		"container_memory_failures_total id,image,namespace,pod,container,failure_type,scope",
		"container_fs_usage_bytes id,image,namespace,pod,container,device",
		"container_ulimits_soft id,image,namespace,pod,container,ulimit",
	} {
		if !slices.Contains(keys, line) {
			t.Errorf("no %q in %v", line, keys)
		}
	}
}

// full is a reading with something of everything.
func full() *reading {
	n := uint64(1024)
	r := &reading{
		at: time.Unix(1000, 0), startedAt: 900_500_000_000,
		huge:    []hugeReading{{"2MB", 1, 2}},
		devices: []device{{cgroup.Device{Major: "8", Minor: "0", Bytes: map[string]uint64{"Read": 1, "Write": 2, "Total": 3}, Requests: map[string]uint64{"Read": 1}}, "/dev/sda"}},
		traffic: []counters{{Name: "eth0", RxBytes: 1, TxBytes: 2}, {Name: "net1"}},
		cpu:     cpuReading{total: 2_900_000_000}, openFiles: &n, disk: &disk{device: "/dev/sda1"}, opened: &open{}, written: &written{},
		asked: &runtimeapi.LinuxContainerResources{CpuQuota: 20000},
	}
	psi := &runtimeapi.PsiStats{Some: &psiData{Total: 3e9}, Full: &psiData{Total: 1e9}}
	r.pressure.cpu, r.pressure.memory, r.pressure.io = psi, psi, psi
	return r
}

// Values stand beside their keys: there are as many, and every family of a full
// reading has a sample.
func TestLabelsMatchTheirKeys(t *testing.T) {
	for _, f := range families {
		list := f.sample(nil, full(), "/id", "image", "ns", "pod", "c")
		if len(list) == 0 {
			t.Errorf("%s: no sample", f.name)
		}
		seen := map[string]bool{}
		for _, m := range list {
			if len(m.values) != len(f.labelKeys()) {
				t.Errorf("%s: keys %v, values %v", f.name, f.labelKeys(), m.values)
			}
			if slices.Contains(m.values[5:], "") {
				t.Errorf("%s: keys %v, values %q", f.name, f.labelKeys(), m.values)
			}
			key := strings.Join(m.values, "|")
			if seen[key] {
				t.Errorf("%s: %s twice", f.name, key)
			}
			seen[key] = true
		}
	}
	device := []string{"/id", "", "ns", "pod", "", "/dev/sda", "8", "0", "Read"}
	for _, f := range diskFamilies {
		if f.name == "container_blkio_device_usage_total" {
			if got := f.sample(nil, full(), "/id", "", "ns", "pod", "")[0].values; !slices.Equal(got, device) {
				t.Errorf("labels %v of keys %v", got, f.labelKeys())
			}
		}
	}
}

// The CRI has whole numbers: seconds are cut.
func TestWordsOfTheCRI(t *testing.T) {
	r := full()
	for name, want := range map[string]uint64{
		"container_cpu_usage_seconds_total": 2, "container_start_time_seconds": 900, "container_last_seen": 1000,
		"container_ulimits_soft": 1024, "container_pressure_io_stalled_seconds_total": 1, "container_spec_cpu_quota": 20000,
		"container_spec_cpu_shares": 1024, "container_spec_cpu_period": 100000, "container_spec_memory_limit_bytes": 0,
	} {
		i := slices.IndexFunc(families, func(f *family) bool { return f.name == name })
		m := metrics(families[i].sample(nil, r, "", "", "", "", ""))[0]
		if m.GetValue().GetValue() != want || m.GetName() != name || m.GetTimestamp() != 0 {
			t.Errorf("%v, want %d", m, want)
		}
	}
}

// What was not said or cannot be read has no sample.
func TestWhatIsNotThere(t *testing.T) {
	for _, f := range families {
		list := f.sample(nil, &reading{}, "", "", "", "", "")
		switch {
		case f.name == "container_spec_cpu_quota", f.name == "container_ulimits_soft", f.name == "container_file_descriptors", f.name == "container_sockets", strings.Contains(f.name, "_fs_"), strings.Contains(f.name, "_network_"),
			strings.Contains(f.name, "_pressure_"), strings.Contains(f.name, "_hugetlb_"), strings.Contains(f.name, "_blkio_"):
			if len(list) != 0 {
				t.Errorf("%s: %v", f.name, list)
			}
		case len(list) == 0:
			t.Errorf("%s: no sample", f.name)
		}
	}
}

func TestReadings(t *testing.T) {
	at := map[string]map[string]string{
		"v1": {
			"memory.usage_in_bytes": "1000", "memory.max_usage_in_bytes": "3000", "memory.failcnt": "4", "memory.kmem.usage_in_bytes": "50",
			"memory.soft_limit_in_bytes": "9223372036854771712", "memory.memsw.usage_in_bytes": "1007", "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
			"memory.stat":  "pgfault 8\npgmajfault 1\ntotal_rss 600\ntotal_cache 300\ntotal_mapped_file 20\ntotal_active_file 90\ntotal_inactive_file 200\ntotal_pgfault 9\ntotal_pgmajfault 2\n",
			"cpuacct.stat": "user 30\nsystem 10\n", "cpuacct.usage": "450000000", "cpu.stat": "nr_periods 5\nnr_throttled 3\nthrottled_time 70000\n",
			"blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n", "blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
			"pids.current": "7", "pids.max": "max", "cgroup.procs": "11\n12\n",
			"hugetlb.2MB.usage_in_bytes": "4", "hugetlb.2MB.max_usage_in_bytes": "6",
		},
		"v2": {
			"memory.current": "1000", "memory.peak": "3000", "memory.swap.current": "7", "memory.low": "0", "memory.events": "low 0\nhigh 0\nmax 4\noom 2\noom_kill 2\n",
			"memory.stat": "anon 600\nfile 300\nkernel 50\nfile_mapped 20\nactive_file 90\ninactive_file 200\npgfault 9\npgmajfault 2\n",
			"cpu.stat":    "usage_usec 450000\nuser_usec 300000\nsystem_usec 100000\nnr_periods 5\nnr_throttled 3\nthrottled_usec 70\n",
			"io.stat":     "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n9:0 \n", "pids.current": "7", "pids.max": "max", "cgroup.procs": "11\n12\n",
			"hugetlb.2MB.current": "4",
		},
	}
	for version, content := range at {
		t.Run(version, func(t *testing.T) {
			dir := files(t, content)
			g := cgroup.Group{V2: dir}
			if version == "v1" {
				g = cgroup.Group{V1: map[string]string{"memory": dir, "cpu": dir, "cpuacct": dir, "blkio": dir, "pids": dir, "hugetlb": dir}}
			}
			r := &reading{}
			if err := r.group(g); err != nil {
				t.Fatal(err)
			}
			wantCPU := cpuReading{total: 450e6, user: 300e6, system: 100e6, periods: 5, throttled: 3, throttledTime: 70000}
			wantMemory := memoryReading{
				usage: 1000, most: 3000, rss: 600, cache: 300, kernel: 50, mapped: 20, swap: 7, activeFile: 90, inactiveFile: 200,
				failures: 4, kills: 2, ownFaults: 8, ownMajorFaults: 1, faults: 9, majorFaults: 2,
			}
			if version == "v2" {
				wantMemory.ownFaults, wantMemory.ownMajorFaults = 9, 2
			}
			if r.cpu != wantCPU || r.memory != wantMemory || r.threads != 7 || r.threadsMax != 0 {
				t.Errorf("%+v", r)
			}
			if len(r.devices) != 1 || r.devices[0].Bytes["Read"] != 10 || r.devices[0].Requests["Write"] != 2 {
				t.Errorf("devices %+v", r.devices)
			}
			huge, err := readHuge(g, []string{"1GB", "2MB"})
			if err != nil || len(huge) != 1 || huge[0].usage != 4 || huge[0].most != map[string]uint64{"v1": 6, "v2": 0}[version] {
				t.Errorf("huge pages %+v, %v", huge, err)
			}
			if list, err := cgroup.Processes(g); err != nil || !slices.Equal(list, []int{11, 12}) {
				t.Errorf("processes %v, %v", list, err)
			}
			// A cgroup that goes away half-way is gone, not at zero.
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := new(reading).group(g); !gone(err) {
				t.Errorf("without its files: %v", err)
			}
		})
	}
}

// Kernels of old distributions have not all the files.
func TestOldKernels(t *testing.T) {
	r, err := readMemoryV2(files(t, map[string]string{
		"memory.current": "1000", "memory.stat": "anon 1\nkernel_stack 2\nslab 3\n", "memory.events": "max 0\n", "memory.low": "max",
	}))
	if err != nil || r.most != 1000 || r.kernel != 5 || r.swap != 0 || r.reserved != 0 {
		t.Errorf("v2: %+v, %v", r, err)
	}
	r, err = readMemoryV1(files(t, map[string]string{"memory.usage_in_bytes": "1000", "memory.stat": "total_rss 1\n"}))
	if err != nil || r.usage != 1000 || r.swap != 0 {
		t.Errorf("v1: %+v, %v", r, err)
	}
}

func TestWhatAHostTells(t *testing.T) {
	huge := map[string]string{"/sys/kernel/mm/hugepages/hugepages-2048kB/x": "", "/sys/kernel/mm/hugepages/hugepages-1048576kB/x": "", "/sys/kernel/mm/hugepages/hugepages-64kB/x": ""}
	for _, c := range []struct {
		name  string
		files map[string]string
		want  host
		told  int
	}{
		{"v1", map[string]string{"/sys/fs/cgroup/memory/x": ""}, host{}, 50},
		{"v1 with huge pages", map[string]string{"/sys/fs/cgroup/hugetlb/x": ""}, host{pageSizes: []string{"1GB", "2MB", "64KB"}}, 52},
		{"v2", map[string]string{"/sys/fs/cgroup/cgroup.controllers": "cpu memory\n"}, host{v2: true}, 50},
		{"v2 with all", map[string]string{"/sys/fs/cgroup/cgroup.controllers": "cpu hugetlb memory\n", "/proc/pressure/memory": "some"}, host{v2: true, pressure: true, pageSizes: []string{"1GB", "2MB", "64KB"}}, 57},
	} {
		root := t.TempDir()
		all := maps.Clone(huge)
		maps.Copy(all, c.files)
		for path, text := range all {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got := hostAt(root)
		slices.Sort(got.pageSizes)
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(host{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
		if n := len(told(got)); n != c.told {
			t.Errorf("%s: %d families, want %d", c.name, n, c.told)
		}
	}
}

// Of two sandboxes of one pod only the newer one tells of the cgroup they share.
func TestNothingIsToldTwice(t *testing.T) {
	f := families[0]
	pod := func(id string) *samples {
		return &samples{sandbox: id, own: []sample{{f, []string{"/pod", "total"}, 1}, {f, []string{"/" + id, "total"}, 1}}}
	}
	all := unique([]*samples{pod("new"), pod("old")})
	if len(all[0].own) != 2 || len(all[1].own) != 1 || all[1].own[0].values[0] != "/old" {
		t.Errorf("%v, %v", all[0].own, all[1].own)
	}
}

// Open files are counted for real, and not again before a rest.
func TestOpenFilesAreCounted(t *testing.T) {
	s := New(nil, nil, nil)
	list := []int{os.Getpid(), math.MaxInt32}
	soon := time.Now().Add(time.Minute)
	if n := s.opened(t.Context(), "c", list, soon); n == nil || n.files < 3 {
		t.Errorf("%+v", n)
	}
	s.opens["c"] = &open{due: time.Now().Add(time.Hour), files: 7, sockets: 3}
	if n := s.opened(t.Context(), "c", list, soon); n.files != 7 || n.sockets != 3 {
		t.Errorf("%+v, though it is not time yet", n)
	}
	if limit, err := readOpenFiles(os.Getpid()); err != nil || limit == nil || *limit < 10 {
		t.Errorf("limit of open files %v, %v", limit, err)
	}
}

// A container with more open files than can be counted in its slice tells what was found,
// is left alone for long, and takes no time from the next container.
func TestContainerWithManyOpenFilesTakesOneSlice(t *testing.T) {
	var held []*os.File
	for range 3 * linksAtOnce {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Skip(err)
		}
		defer f.Close()
		held = append(held, f)
	}
	defer func(was time.Duration) { openedSlice = was }(openedSlice)
	openedSlice = time.Nanosecond
	s := New(nil, nil, nil)
	own := []int{os.Getpid()}
	soon := time.Now().Add(time.Minute)
	n := s.opened(t.Context(), "many", own, soon)
	if n == nil || n.files == 0 || n.files >= uint64(len(held)) {
		t.Errorf("%+v, want a part of %d", n, len(held))
	}
	if rest := time.Until(n.due); rest < openedRest/2 {
		t.Errorf("counted again after %v", rest)
	}
	openedSlice = time.Minute
	if n := s.opened(t.Context(), "other", own, soon); n.files <= uint64(len(held)) {
		t.Errorf("the next one: %+v", n)
	}
	// Where the time for all is over, the last numbers are told, and none rather than 0.
	past := time.Now().Add(-time.Second)
	if n := s.opened(t.Context(), "third", own, past); n != nil {
		t.Errorf("without time: %+v", n)
	}
	s.opens["third"] = &open{files: 7}
	if n := s.opened(t.Context(), "third", own, past); n == nil || n.files != 7 {
		t.Errorf("without time: %+v", n)
	}
}

// What has not been measured has no sample, which is not the same as 0.
func TestNothingIsToldBeforeItIsMeasured(t *testing.T) {
	r := full()
	r.written, r.opened = nil, nil
	for _, f := range families {
		unknown := f.name == "container_fs_usage_bytes" || f.name == "container_file_descriptors" || f.name == "container_sockets"
		if n := len(f.sample(nil, r, "/id", "image", "ns", "pod", "c")); unknown != (n == 0) {
			t.Errorf("%s: %d samples", f.name, n)
		}
	}
}

// A limit of swap is the kernel's, which Docker sets where nothing was asked for.
func TestSwapLimitIsTheKernels(t *testing.T) {
	for text, want := range map[string]uint64{"268435456": 268435456, "9223372036854771712": 0} {
		r, err := readMemoryV1(files(t, map[string]string{"memory.usage_in_bytes": "1", "memory.stat": "", "memory.memsw.limit_in_bytes": text}))
		if err != nil || r.swapLimit != want {
			t.Errorf("v1 %s: %d, %v", text, r.swapLimit, err)
		}
	}
	for text, want := range map[string]uint64{"4096": 4096, "max": 0} {
		r, err := readMemoryV2(files(t, map[string]string{"memory.current": "1", "memory.stat": "", "memory.events": "", "memory.swap.max": text}))
		if err != nil || r.swapLimit != want {
			t.Errorf("v2 %s: %d, %v", text, r.swapLimit, err)
		}
	}
}

// Who may make interfaces in a pod cannot make metrics without end.
func TestInterfacesAreBounded(t *testing.T) {
	var all []netns.Counters
	for i := range 1000 {
		all = append(all, netns.Counters{Name: "dummy" + strconv.Itoa(i)})
	}
	all = append(all, netns.Counters{Name: defaultInterface})
	got := fewer(all)
	if len(got) != mostInterfaces || usage(got) == nil {
		t.Errorf("%d interfaces, %v", len(got), got)
	}
}
