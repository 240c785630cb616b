package live

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A series is a metric as the kubelet puts it together from descriptor and
// sample: name{key="value",...}, but for id.
func (n *node) series(pod string) map[string]uint64 {
	n.t.Helper()
	known, err := n.runtime.ListMetricDescriptors(n.t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, d := range known.GetDescriptors() {
		keys[d.GetName()] = d.GetLabelKeys()
	}
	list, err := n.runtime.ListPodSandboxMetrics(n.t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	all := map[string]uint64{}
	for _, p := range list.GetPodMetrics() {
		if p.GetPodSandboxId() != pod {
			continue
		}
		samples := p.GetMetrics()
		for _, c := range p.GetContainerMetrics() {
			samples = append(samples, c.GetMetrics()...)
		}
		for _, m := range samples {
			names := keys[m.GetName()]
			if len(names) == 0 || len(names) != len(m.GetLabelValues()) {
				n.t.Errorf("%v does not fit %v", m, names)
				continue
			}
			var labels []string
			for i, k := range names {
				if v := m.GetLabelValues()[i]; k != "id" && v != "" {
					labels = append(labels, k+`="`+v+`"`)
				}
			}
			all[m.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetValue().GetValue()
		}
	}
	return all
}

// TestMetricsMatchTheKernel has a container use known amounts of everything.
func TestMetricsMatchTheKernel(t *testing.T) {
	n := newNode(t)
	config := n.pod("metrics")
	// Of its own, as the kubelet's are.
	config.Linux.CgroupParent = n.cgroup("metrics")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	order := shell("c", `
		dd if=/dev/urandom of=/written bs=1M count=16 2>/dev/null
		awk 'BEGIN { s = sprintf("%33554432s", ""); while (1) system("sleep 1000") }' &
		(while :; do echo x | nc -l -p 9999 >/dev/null; done) &
		while :; do i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; sleep 0.05; done`)
	order.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 256 * mib, MemorySwapLimitInBytes: 256 * mib}
	began := time.Now()
	id := n.create(pod, config, order)
	n.exec(id, "sh", "-c", "ping -c 50 -i 0.01 -s 10000 10.87.0.1 >/dev/null")
	inside := `{image="` + *image + `",namespace="live",pod="metrics",container="c"`
	var all map[string]uint64
	throttled := "container_cpu_cfs_throttled_periods_total" + inside + "}" // later, where the CPUs have other work
	n.until(3*time.Minute, "no memory, nothing written or not throttled", func() bool {
		all = n.series(pod)
		return all[throttled] > 0 && all["container_memory_rss"+inside+"}"] > 32*mib && n.matching(all, "container_fs_usage_bytes"+inside) > 16*mib && all["container_cpu_usage_seconds_total"+inside+`,cpu="total"}`] > 0
	})
	stats, err := n.runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	used := stats.GetStats()
	for name, want := range map[string]struct{ n, margin uint64 }{
		"container_cpu_usage_seconds_total" + inside + `,cpu="total"}`:                           {used.GetCpu().GetUsageCoreNanoSeconds().GetValue() / 1e9, 2},
		"container_memory_usage_bytes" + inside + "}":                                            {used.GetMemory().GetUsageBytes().GetValue(), mib},
		"container_memory_working_set_bytes" + inside + "}":                                      {used.GetMemory().GetWorkingSetBytes().GetValue(), mib},
		"container_memory_rss" + inside + "}":                                                    {used.GetMemory().GetRssBytes().GetValue(), mib},
		"container_spec_memory_limit_bytes" + inside + "}":                                       {256 * mib, 0},
		"container_spec_cpu_quota" + inside + "}":                                                {20000, 0},
		"container_spec_cpu_shares" + inside + "}":                                               {512, 0},
		"container_start_time_seconds" + inside + "}":                                            {uint64(began.Unix()), 10},
		"container_last_seen" + inside + "}":                                                     {uint64(time.Now().Unix()), 3},
		`container_network_receive_bytes_total{namespace="live",pod="metrics",interface="eth0"}`: {500_000, 50_000},
	} {
		if got, ok := all[name]; !ok || !near(got, want.n, want.margin) {
			t.Errorf("%s = %d (%v), want %d", name, got, ok, want.n)
		}
	}
	for _, name := range []string{
		"container_cpu_cfs_periods_total" + inside + "}", "container_cpu_cfs_throttled_periods_total" + inside + "}", "container_memory_cache" + inside + "}",
		"container_processes" + inside + "}", "container_threads" + inside + "}", "container_file_descriptors" + inside + "}", "container_sockets" + inside + "}",
		"container_ulimits_soft" + inside + `,ulimit="max_open_files"}`,
		`container_network_transmit_packets_total{namespace="live",pod="metrics",interface="eth0"}`,
	} {
		if all[name] == 0 {
			t.Errorf("%s = 0", name)
		}
	}
	outside := `{namespace="live",pod="metrics"`
	if got, c := all["container_memory_usage_bytes"+outside+"}"], all["container_memory_usage_bytes"+inside+"}"]; got+mib < c {
		t.Errorf("the pod uses %d bytes of memory, and its container %d", got, c)
	}
	missing := map[string]bool{}
	known, err := n.runtime.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range known.GetDescriptors() {
		if n.matching(all, d.GetName()+"{") == 0 && !n.has(all, d.GetName()+"{") {
			missing[d.GetName()] = true
		}
	}
	// There may be no block device that I/O is counted for.
	for _, name := range []string{"container_blkio_device_usage_total", "container_fs_reads_total", "container_fs_writes_total", "container_fs_reads_bytes_total", "container_fs_writes_bytes_total"} {
		delete(missing, name)
	}
	if len(missing) > 0 {
		t.Errorf("descriptors without a sample: %v", missing)
	}
	n.proxy.reset()
	begin := time.Now()
	for range 20 {
		n.series(pod)
	}
	t.Logf("%d series of one pod, read and listed in %v", len(all), time.Since(begin)/20)
	if calls, which := n.proxy.total(); calls > 0 {
		t.Errorf("%d requests to Docker: %s", calls, which)
	}
	n.remove(pod)
	if left := n.series(pod); len(left) > 0 {
		t.Errorf("of a pod that is gone: %v", left)
	}
	n.clean()
}

// matching adds up the series whose names begin so.
func (n *node) matching(all map[string]uint64, prefix string) (sum uint64) {
	for name, value := range all {
		if strings.HasPrefix(name, prefix) {
			sum += value
		}
	}
	return sum
}

func (n *node) has(all map[string]uint64, prefix string) bool {
	for name := range all {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// exported reads what Prometheus gets about a pod, as series does, and the names of the rest.
func (n *node) exported(addr, pod string) (all map[string]float64, names map[string]bool) {
	n.t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	all, names = map[string]float64{}, map[string]bool{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		line := lines.Text()
		name, rest, labelled := strings.Cut(line, "{")
		if strings.HasPrefix(line, "#") || !labelled {
			name, _, _ = strings.Cut(strings.TrimPrefix(line, "# TYPE "), " ")
			names[name] = true
			continue
		}
		names[name] = true
		labels, value, _ := strings.Cut(rest, "} ")
		if !strings.Contains(labels, `pod="`+pod+`"`) {
			continue
		}
		f, err := strconv.ParseFloat(value, 64)
		if err != nil {
			n.t.Fatal(err)
		}
		all[sorted(name, strings.Split(labels, ","))] = f
	}
	return all, names
}

// sorted names a series, but for its id and labels without a value.
func sorted(name string, labels []string) string {
	labels = slices.DeleteFunc(labels, func(l string) bool { return strings.HasPrefix(l, "id=") || strings.HasSuffix(l, `=""`) })
	slices.Sort(labels)
	return name + "{" + strings.Join(labels, ",") + "}"
}

// TestCRIAndPrometheusMetricsAgree compares what the kubelet and Prometheus get.
func TestCRIAndPrometheusMetricsAgree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	n := newNode(t, "--metrics-bind-addr", addr)
	config := n.pod("same")
	config.Linux.CgroupParent = n.cgroup("same")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	n.create(pod, config, shell("idle", "exec sleep 1000"))
	n.create(pod, config, shell("busy", "while :; do i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; sleep 0.05; done"))
	time.Sleep(3 * time.Second)
	status := map[string]uint64{}
	for name, value := range n.series(pod) {
		head, labels, _ := strings.Cut(strings.TrimSuffix(name, "}"), "{")
		status[sorted(head, strings.Split(labels, ","))] = value
	}
	exported, names := n.exported(addr, "same")
	if len(status) != len(exported) || len(status) < 100 {
		t.Errorf("the CRI has %d series, Prometheus %d", len(status), len(exported))
	}
	equal := 0
	for name, want := range status {
		got, ok := exported[name]
		if !ok {
			t.Errorf("%s is not exported", name)
			continue
		}
		if uint64(got) == want {
			equal++
			continue
		}
		// The second look was a moment later, and the busy one starts a
		// process twenty times a second: that is up to a megabyte of memory. The
		// inodes of the disk are everybody's.
		idle := strings.Contains(name, `container="idle"`)
		if idle && !strings.Contains(name, "last_seen") && !strings.HasPrefix(name, "container_fs_inodes_free") {
			t.Errorf("%s: the CRI has %d, Prometheus %v", name, want, got)
		} else if !near(uint64(got), want, want/10+1<<20) {
			t.Errorf("%s: the CRI has %d, Prometheus %v", name, want, got)
		}
	}
	t.Logf("%d series, %d of them equal to the bit", len(status), equal)
	for _, name := range []string{
		"berthd_call_duration_seconds_bucket", "berthd_engine_call_duration_seconds_bucket", "berthd_cache_lag_seconds_count",
		"berthd_cache_oldest_change_seconds", "berthd_log_lag_seconds", "berthd_build_info", "go_goroutines", "process_cpu_seconds_total",
	} {
		if !names[name] {
			t.Errorf("%s is not exported", name)
		}
	}

	health := func() (int, string) {
		resp, err := http.Get("http://" + addr + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if code, line := health(); code != http.StatusOK || line != "ok\n" {
		t.Errorf("healthz: %d %q", code, line)
	}
	n.proxy.close()
	n.until(5*time.Second, "healthz does not see that Docker is away", func() bool {
		code, line := health()
		return code == http.StatusServiceUnavailable && strings.HasPrefix(line, "docker: ") && strings.Count(line, "\n") == 1
	})
	if _, names := n.exported(addr, "same"); !names["berthd_engine_up"] {
		t.Error("nothing is exported while Docker is away")
	}
	n.proxy.open()
	n.until(10*time.Second, "healthz does not see that Docker is back", func() bool { code, _ := health(); return code == http.StatusOK })
	n.remove(pod)
	n.clean()
}
