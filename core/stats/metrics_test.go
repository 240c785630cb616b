package stats

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cgroup"
	"berth/core/stats/cgroupstats"
	"berth/core/stats/diskusage"
	"berth/network/netns"
)

// metricNames are those of CRI-O 1.36, which critest expects; the last two are
// containerd's.
const metricNames = `
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

func TestFamilyNamesAreThoseOfCRIO(t *testing.T) {
	var want, got []string
	for name := range strings.FieldsSeq(metricNames) {
		want = append(want, "container_"+name)
	}
	for _, f := range families {
		got = append(got, f.name)
		if f.help == "" || !strings.HasSuffix(f.help, ".") {
			t.Errorf("%s: help %q", f.name, f.help)
		}
		if f.subject == 0 || f.read == nil {
			t.Errorf("%s has no subject or no reader", f.name)
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

// fullScrape has a value for every family.
func fullScrape() *scrape {
	n := uint64(1024)
	psi := &cgroupstats.PSI{Some: &cgroup.Pressure{Total: 3e9}, Full: &cgroup.Pressure{Total: 1e9}}
	return &scrape{
		at: time.Unix(1000, 0), startedAt: 900_500_000_000,
		cgroup: &cgroupstats.Reading{
			CPU:       cgroupstats.CPU{Total: 2_900_000_000},
			HugePages: []cgroupstats.HugePages{{Size: "2MB", Usage: 1, Peak: 2}},
			Devices: []cgroupstats.Device{
				{Name: "/dev/sda", Major: "8", Minor: "0", Bytes: map[string]uint64{"Read": 1, "Write": 2, "Total": 3}, Requests: map[string]uint64{"Read": 1}},
			},
			Pressure: cgroupstats.Pressure{CPU: psi, Memory: psi, IO: psi},
		},
		interfaces:    []netns.Counters{{Name: "eth0", RxBytes: 1, TxBytes: 2}, {Name: "net1"}},
		openFileLimit: &n, filesystem: &cgroupstats.Filesystem{Device: "/dev/sda1"}, fds: &cgroupstats.FDs{}, diskUsage: &diskusage.Usage{},
		resources: &runtimeapi.LinuxContainerResources{CpuQuota: 20000},
	}
}

// There are as many label values as keys, and every family has a metric of a full scrape.
func TestLabelValuesMatchTheirKeys(t *testing.T) {
	for _, f := range families {
		list := f.collect(nil, fullScrape(), "/id", "image", "ns", "pod", "c")
		if len(list) == 0 {
			t.Errorf("%s: no metric", f.name)
		}
		seen := map[string]bool{}
		for _, m := range list {
			if len(m.labelValues) != len(f.labelKeys()) {
				t.Errorf("%s: keys %v, values %v", f.name, f.labelKeys(), m.labelValues)
			}
			if slices.Contains(m.labelValues[5:], "") {
				t.Errorf("%s: keys %v, values %q", f.name, f.labelKeys(), m.labelValues)
			}
			key := strings.Join(m.labelValues, "|")
			if seen[key] {
				t.Errorf("%s: %s twice", f.name, key)
			}
			seen[key] = true
		}
	}
	device := []string{"/id", "", "ns", "pod", "", "/dev/sda", "8", "0", "Read"}
	for _, f := range diskFamilies {
		if f.name == "container_blkio_device_usage_total" {
			if got := f.collect(nil, fullScrape(), "/id", "", "ns", "pod", "")[0].labelValues; !slices.Equal(got, device) {
				t.Errorf("labels %v of keys %v", got, f.labelKeys())
			}
		}
	}
}

func TestEncodeMetricsTruncatesToSeconds(t *testing.T) {
	sc := fullScrape()
	for name, want := range map[string]uint64{
		"container_cpu_usage_seconds_total": 2, "container_start_time_seconds": 900, "container_last_seen": 1000,
		"container_ulimits_soft": 1024, "container_pressure_io_stalled_seconds_total": 1, "container_spec_cpu_quota": 20000,
		"container_spec_cpu_shares": 1024, "container_spec_cpu_period": 100000, "container_spec_memory_limit_bytes": 0,
	} {
		i := slices.IndexFunc(families, func(f *family) bool { return f.name == name })
		m := encodeMetrics(families[i].collect(nil, sc, "", "", "", "", ""))[0]
		if m.GetValue().GetValue() != want || m.GetName() != name || m.GetTimestamp() != 0 {
			t.Errorf("%v, want %d", m, want)
		}
	}
}

func TestValuesThatAreNotKnownHaveNoMetric(t *testing.T) {
	for _, f := range families {
		list := f.collect(nil, &scrape{cgroup: &cgroupstats.Reading{}}, "", "", "", "", "")
		switch {
		case f.name == "container_spec_cpu_quota", f.name == "container_ulimits_soft", f.name == "container_file_descriptors", f.name == "container_sockets", strings.Contains(f.name, "_fs_"), strings.Contains(f.name, "_network_"),
			strings.Contains(f.name, "_pressure_"), strings.Contains(f.name, "_hugetlb_"), strings.Contains(f.name, "_blkio_"):
			if len(list) != 0 {
				t.Errorf("%s: %v", f.name, list)
			}
		case len(list) == 0:
			t.Errorf("%s: no metric", f.name)
		}
	}
}

// Two sandboxes of one pod share its cgroup; only the newer one has metrics of it.
func TestDropDuplicates(t *testing.T) {
	f := families[0]
	pod := func(id string) *podMetrics {
		return &podMetrics{sandboxID: id, pod: []metric{{f, []string{"/pod", "total"}, 1}, {f, []string{"/" + id, "total"}, 1}}}
	}
	all := dropDuplicates([]*podMetrics{pod("new"), pod("old")})
	if len(all[0].pod) != 2 || len(all[1].pod) != 1 || all[1].pod[0].labelValues[0] != "/old" {
		t.Errorf("%v, %v", all[0].pod, all[1].pod)
	}
}

// A value that has not been measured is not 0.
func TestNoMetricsBeforeTheFirstMeasurement(t *testing.T) {
	sc := fullScrape()
	sc.diskUsage, sc.fds = nil, nil
	for _, f := range families {
		unknown := f.name == "container_fs_usage_bytes" || f.name == "container_file_descriptors" || f.name == "container_sockets"
		if n := len(f.collect(nil, sc, "/id", "image", "ns", "pod", "c")); unknown != (n == 0) {
			t.Errorf("%s: %d metrics", f.name, n)
		}
	}
}

func TestSupportedFamiliesDependOnTheHost(t *testing.T) {
	sizes := []string{"1GB", "2MB"}
	for _, tt := range []struct {
		name string
		host cgroupstats.Host
		want int
	}{
		{"v1", cgroupstats.Host{}, 50},
		{"v1 with huge pages", cgroupstats.Host{PageSizes: sizes}, 52},
		{"v2", cgroupstats.Host{CgroupV2: true}, 50},
		{"v2 with all", cgroupstats.Host{CgroupV2: true, Pressure: true, PageSizes: sizes}, 57},
	} {
		if n := len(supportedFamilies(tt.host)); n != tt.want {
			t.Errorf("%s: %d families, want %d", tt.name, n, tt.want)
		}
	}
}

// Limits are those of the kernel, which Docker sets also where the kubelet has set none;
// 0 means no limit.
func TestNoLimitIsZero(t *testing.T) {
	value := func(name string, r *cgroupstats.Reading) uint64 {
		i := slices.IndexFunc(families, func(f *family) bool { return f.name == name })
		return families[i].collect(nil, &scrape{cgroup: r}, "", "", "", "", "")[0].value
	}
	limited := &cgroupstats.Reading{Memory: cgroupstats.Memory{SwapLimit: 4096, Reservation: 4096}, ThreadLimit: 4096}
	unlimited := &cgroupstats.Reading{
		Memory: cgroupstats.Memory{SwapLimit: cgroup.Unlimited, Reservation: cgroup.Unlimited}, ThreadLimit: cgroup.Unlimited,
	}
	for _, name := range []string{"container_spec_memory_swap_limit_bytes", "container_spec_memory_reservation_limit_bytes", "container_threads_max"} {
		if limit, none := value(name, limited), value(name, unlimited); limit != 4096 || none != 0 {
			t.Errorf("%s: %d with a limit, %d without", name, limit, none)
		}
	}
}
