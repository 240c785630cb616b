package live

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/system"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The tests here ask for something and read in the container, or in the files of
// its process, whether it is so.

// proc reads a file of the first process of a container.
func (n *node) proc(id, file string) string {
	n.t.Helper()
	seen, err := n.docker.ContainerInspect(n.t.(*testing.T).Context(), id)
	if err != nil {
		n.t.Fatal(err)
	}
	path := filepath.Join("/proc", strconv.Itoa(seen.State.Pid), file)
	if text, err := os.Readlink(path); err == nil {
		return text
	}
	text, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

// word reads what /proc/PID/status says under a key.
func (n *node) word(id, key string) string {
	n.t.Helper()
	for line := range strings.Lines(n.proc(id, "status")) {
		if k, v, _ := strings.Cut(line, ":"); k == key {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	return "no such key"
}

// info is what the Engine says of itself.
func (n *node) info() system.Info {
	n.t.Helper()
	info, err := n.docker.Info(n.t.(*testing.T).Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return info
}

// TestSecurityContextInTheContainer reads what processes may do.
func TestSecurityContextInTheContainer(t *testing.T) {
	n := newNode(t)
	noMkdir := n.path("profile.json")
	if err := os.WriteFile(noMkdir, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	config := n.pod("security")
	config.Linux.SecurityContext.Privileged = true
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	type security = *runtimeapi.LinuxContainerSecurityContext
	set := func(f func(security)) *runtimeapi.LinuxContainerSecurityContext {
		sc := &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}
		f(sc)
		return sc
	}
	caps := func(add, drop string) func(security) {
		return func(s security) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: strings.Fields(add), DropCapabilities: strings.Fields(drop)}
		}
	}
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) func(security) {
		return func(s security) { s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref} }
	}
	status := func(key, want string) func(string) string {
		return func(id string) string {
			if got := n.word(id, key); got != want {
				return fmt.Sprintf("%s %s, want %s", key, got, want)
			}
			return ""
		}
	}
	says := func(want string, cmd string) func(string) string {
		return func(id string) string {
			if got := strings.TrimSpace(n.exec(id, "sh", "-c", cmd)); got != want {
				return fmt.Sprintf("%s: %q, want %q", cmd, got, want)
			}
			return ""
		}
	}
	const docker = "00000000a80425fb" // the 14 capabilities of every runtime
	for i, tt := range []struct {
		name    string
		request *runtimeapi.LinuxContainerSecurityContext
		check   []func(id string) string
	}{
		{"nothing said", set(func(security) {}), []func(string) string{
			status("CapEff", docker), status("CapAmb", "0000000000000000"), status("NoNewPrivs", "0"), status("Seccomp", "0"), says("", "touch /x"),
			says("0", "grep -c -e ' /proc/k' -e ' /proc/sys ' /proc/self/mountinfo; true"),
		}},
		{"as little as can be", set(func(s security) {
			caps("", "ALL")(s)
			profile(runtimeapi.SecurityProfile_RuntimeDefault, "")(s)
			s.NoNewPrivs, s.ReadonlyRootfs, s.MaskedPaths, s.ReadonlyPaths = true, true, []string{"/proc/meminfo"}, []string{"/proc/sys"}
		}), []func(string) string{
			status("CapEff", "0000000000000000"), status("NoNewPrivs", "1"), status("Seccomp", "2"), says("refused", "touch /x 2>/dev/null || echo refused"),
			says("0", "wc -c </proc/meminfo"), says("ro", "awk '$5 == \"/proc/sys\" {print substr($6, 1, 2)}' /proc/self/mountinfo"),
		}},
		{"somebody", set(func(s security) {
			profile(runtimeapi.SecurityProfile_Unconfined, "")(s)
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &runtimeapi.Int64Value{Value: 1234}, &runtimeapi.Int64Value{Value: 77}, []int64{5, 6}
		}), []func(string) string{
			status("Uid", "1234 1234 1234 1234"), status("Gid", "77 77 77 77"), status("Groups", "5 6 77"), status("Seccomp", "0"),
		}},
		{"one capability of none, and a file", set(func(s security) {
			caps("net_bind_service", "ALL")(s)
			profile(runtimeapi.SecurityProfile_Localhost, noMkdir)(s)
		}), []func(string) string{status("CapEff", "0000000000000400"), says("refused", "mkdir /tmp/d 2>/dev/null || echo refused")}},
		{"one more and one less, by name, and a file as it was said of old", set(func(s security) {
			caps("SYS_PTRACE", "CAP_CHOWN")(s)
			s.SeccompProfilePath, s.RunAsUsername = "localhost/"+noMkdir, "root" //nolint:staticcheck // kubelets of before 1.27 say it so
		}), []func(string) string{
			status("CapEff", "00000000a80c25fa"), status("Uid", "0 0 0 0"), says("refused", "mkdir /tmp/d 2>/dev/null || echo refused"),
		}},
		{"privileged", set(func(s security) {
			s.Privileged, s.MaskedPaths, s.ReadonlyPaths = true, []string{"/proc/meminfo"}, []string{"/proc/sys"}
			s.Seccomp = &runtimeapi.SecurityProfile{}
		}), []func(string) string{
			func(id string) string {
				if eff, bound := n.word(id, "CapEff"), n.word(id, "CapBnd"); eff != bound || len(eff) != len(docker) || eff <= docker {
					return fmt.Sprintf("capabilities %s of %s", eff, bound)
				}
				return ""
			},
			status("Seccomp", "0"), says("0", "grep -c -e ' /proc/meminfo ' -e ' /proc/sys ' /proc/self/mountinfo; true"),
		}},
	} {
		c := shell(fmt.Sprint("c", i), "exec sleep 1000")
		c.Linux.SecurityContext = tt.request
		id := n.create(pod, config, c)
		for _, check := range tt.check {
			if mismatches := check(id); mismatches != "" {
				t.Errorf("%s: %s", tt.name, mismatches)
			}
		}
		if _, err := n.runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
	}
	if n.info().SecurityOptions == nil || !strings.Contains(fmt.Sprint(n.info().SecurityOptions), "apparmor") {
		c := shell("apparmor", "exec sleep 1000")
		c.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "some"}
		if err := n.refused(pod, config, c); codeOf(err) != codes.FailedPrecondition {
			t.Errorf("AppArmor where there is none: %v", err)
		}
	}
	n.remove(pod)
	n.removeLeftovers()
}

func codeOf(err error) codes.Code { return status.Code(err) }

// refused returns why a container cannot be created.
func (n *node) refused(pod string, config *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) error {
	n.t.Helper()
	made, err := n.runtime.CreateContainer(n.t.(*testing.T).Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
	if err == nil {
		n.t.Errorf("%s was created: %s", c.GetMetadata().GetName(), made.GetContainerId())
	}
	return err
}

// removeLeftovers removes the logs, which are the kubelet's, and fails if more is left.
func (n *node) removeLeftovers() {
	n.t.Helper()
	os.RemoveAll(n.path("logs"))
	n.clean()
}

// TestProcessSettingsInTheContainer reads how a process was begun.
func TestProcessSettingsInTheContainer(t *testing.T) {
	n := newNode(t)
	config := n.pod("process")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	c := shell("c", "")
	c.Command, c.Args = []string{"sh", "-c"}, []string{`trap 'exit 42' USR1; while :; do sleep 0.1; done`, "zero", "a b", ""}
	c.WorkingDir = "/made/for it"
	c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b=c\n ä")}, {Key: "EMPTY"}}
	c.Stdin, c.StdinOnce, c.Tty = true, true, true
	c.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1
	id := n.create(pod, config, c)
	// A container counts as started a moment before it is that process.
	want := strings.Join(append(c.GetCommand(), c.GetArgs()...), "\x00") + "\x00"
	n.until(10*time.Second, "another command line", func() bool { return n.proc(id, "cmdline") == want })
	if got := n.exec(id, "readlink", "/proc/1/cwd"); got != "/made/for it\n" {
		t.Errorf("working directory %q", got)
	}
	env := strings.Split(n.proc(id, "environ"), "\x00")
	for _, want := range []string{"A=b=c\n ä", "EMPTY=", "HOSTNAME=process"} {
		if !strings.Contains("\x00"+strings.Join(env, "\x00"), "\x00"+want) {
			t.Errorf("%q is not in %q", want, env)
		}
	}
	if got := n.exec(id, "sh", "-c", "readlink /proc/1/fd/0; readlink /proc/1/fd/1"); strings.Count(got, "/dev/pts/0") != 2 {
		t.Errorf("streams of a terminal: %q", got)
	}
	seen, err := n.docker.ContainerInspect(t.Context(), id)
	if err != nil || !seen.Config.OpenStdin || !seen.Config.StdinOnce {
		t.Errorf("streams %+v, %v", seen.Config, err)
	}
	if got, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id}); err != nil || got.GetStatus().GetStopSignal() != runtimeapi.Signal_SIGNAL_SIGUSR1 {
		t.Errorf("stop signal %v, %v", got, err)
	}
	if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 20}); err != nil {
		t.Fatal(err)
	}
	if got, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id}); err != nil || got.GetStatus().GetExitCode() != 42 {
		t.Errorf("after the stop signal: %v, %v", got, err)
	}
	piped := shell("piped", "exec sleep 1000")
	piped.Stdin = true
	id = n.create(pod, config, piped)
	if got := n.exec(id, "sh", "-c", "readlink /proc/1/fd/0; readlink /proc/1/fd/1"); strings.Count(got, "pipe:") != 2 {
		t.Errorf("streams without a terminal: %q", got)
	}
	n.remove(pod)
	n.removeLeftovers()
}

// TestNamespacesOfPods reads which namespaces processes are in, and what is set in those
// that pods share.
func TestNamespacesOfPods(t *testing.T) {
	n := newNode(t)
	const (
		inPod, own, node, target = runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_TARGET
	)
	here := func(kind string) string {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	config := n.pod("own")
	config.Hostname = strings.Repeat("h", 62) + "-tail"
	config.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "2000 3000", "kernel.shm_rmid_forced": "1"}
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	with := func(name string, options *runtimeapi.NamespaceOption) *runtimeapi.ContainerConfig {
		c := shell(name, "exec sleep 1000")
		c.Linux.SecurityContext.NamespaceOptions = options
		return c
	}
	first := n.create(pod, config, with("first", &runtimeapi.NamespaceOption{Pid: own}))
	shared := n.create(pod, config, with("shared", &runtimeapi.NamespaceOption{Pid: inPod}))
	beside := n.create(pod, config, with("beside", &runtimeapi.NamespaceOption{Pid: target, TargetId: first}))
	outside := n.create(pod, config, with("outside", &runtimeapi.NamespaceOption{Pid: node, Ipc: node}))
	alone := n.create(pod, config, with("alone", &runtimeapi.NamespaceOption{Pid: own, Ipc: own}))
	for name, tt := range map[string]struct {
		id, kind, as string
		same         bool
	}{
		"network of the pod":      {first, "net", n.proc(pod, "ns/net"), true},
		"network not of the node": {first, "net", here("net"), false},
		"ipc of the pod":          {first, "ipc", n.proc(pod, "ns/ipc"), true},
		"ipc of its own":          {alone, "ipc", n.proc(pod, "ns/ipc"), false},
		"ipc of the node":         {outside, "ipc", here("ipc"), true},
		"processes of its own":    {first, "pid", n.proc(pod, "ns/pid"), false},
		"processes of the pod":    {shared, "pid", n.proc(pod, "ns/pid"), true},
		"processes of the target": {beside, "pid", n.proc(first, "ns/pid"), true},
		"processes of the node":   {outside, "pid", here("pid"), true},
		"no user namespace":       {first, "user", here("user"), true},
	} {
		if got := n.proc(tt.id, "ns/"+tt.kind); (got == tt.as) != tt.same {
			t.Errorf("%s: %s and %s", name, got, tt.as)
		}
	}
	called := func(id, want string) {
		t.Helper()
		got := n.exec(id, "sh", "-c", "hostname; cat /etc/hostname; awk 'NR > 6 {print $2}' /etc/hosts")
		if got != strings.Repeat(want+"\n", 4) { // it has an address of each family
			t.Errorf("hostname %q, want %s everywhere", got, want)
		}
	}
	called(first, strings.Repeat("h", 62)+"-t") // 64 bytes, as many as the kernel takes
	if got := n.exec(first, "cat", "/proc/sys/net/ipv4/ip_local_port_range", "/proc/sys/kernel/shm_rmid_forced"); got != "2000\t3000\n1\n" {
		t.Errorf("sysctls %q", got)
	}
	if got := n.exec(first, "sh", "-c", "df -k /dev/shm | awk 'NR == 2 {print $2}'"); got != "65536\n" {
		t.Errorf("shared memory of %q kB", got)
	}
	if got := n.exec(first, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"); got != "0\n" {
		t.Errorf("unprivileged ports begin at %q, want 0", got)
	}
	for name, options := range map[string]*runtimeapi.NamespaceOption{
		"the node's network in a pod with its own": {Pid: own, Network: node},
		"no such target":   {Pid: target, TargetId: "nobody"},
		"a user namespace": {Pid: own, UsernsOptions: &runtimeapi.UserNamespace{Mode: inPod}},
	} {
		if err := n.refused(pod, config, with("refused", options)); codeOf(err) != codes.InvalidArgument && codeOf(err) != codes.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A pod of no name.
	nameless := n.pod("nameless")
	nameless.Hostname = ""
	unnamed, err := n.run(t.Context(), nameless)
	if err != nil {
		t.Fatal(err)
	}
	called(n.create(unnamed, nameless, with("c", &runtimeapi.NamespaceOption{Pid: own})), unnamed[:12])
	n.remove(unnamed)

	// A pod on its node's network.
	hosted := n.pod("hosted")
	hosted.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: node, Pid: own, Ipc: node}
	outer, err := n.run(t.Context(), hosted)
	if err != nil {
		t.Fatal(err)
	}
	id := n.create(outer, hosted, with("c", &runtimeapi.NamespaceOption{Network: node, Pid: own, Ipc: node}))
	for _, kind := range []string{"net", "ipc", "uts"} {
		if got := n.proc(id, "ns/"+kind); got != here(kind) {
			t.Errorf("%s of a pod on the node's network: %s, the node's is %s", kind, got, here(kind))
		}
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if got := n.exec(id, "sh", "-c", "hostname; cat /etc/hostname"); got != name+"\n"+name+"\n" {
		t.Errorf("hostname %q, the node's is %s", got, name)
	}
	n.remove(outer)
	n.remove(pod)
	n.removeLeftovers()
}

// cgroup is one for a pod, as a kubelet with the Engine's driver would have it.
func (n *node) cgroup(pod string) string {
	if n.info().CgroupDriver == "systemd" {
		return "/kubepods_live_" + pod + ".slice"
	}
	return "/kubepods-live/pod-" + pod
}

// TestResourcesInTheCgroup reads what processes may use, from their first instruction on.
func TestResourcesInTheCgroup(t *testing.T) {
	n := newNode(t)
	config := n.pod("resources")
	config.Linux.CgroupParent = n.cgroup("resources")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	run := func(name string, r *runtimeapi.LinuxContainerResources) string {
		c := shell(name, "exec sleep 1000")
		c.Linux.Resources = r
		return n.create(pod, config, c)
	}
	id := run("some", &runtimeapi.LinuxContainerResources{
		CpuShares: 333, CpuPeriod: 50000, CpuQuota: 20000, CpusetCpus: "0", CpusetMems: "0", MemoryLimitInBytes: 64 * mib, OomScoreAdj: 321,
	})
	for _, tt := range []struct{ controller, v1, v2, want1, want2 string }{
		{"cpu", "cpu.cfs_period_us", "cpu.max", "50000", "20000 50000"},
		{"cpu", "cpu.cfs_quota_us", "cpu.max", "20000", "20000 50000"},
		{"cpuset", "cpuset.cpus", "cpuset.cpus", "0", "0"},
		{"cpuset", "cpuset.mems", "cpuset.mems", "0", "0"},
		{"memory", "memory.limit_in_bytes", "memory.max", "67108864", "67108864"},
		{"memory", "memory.memsw.limit_in_bytes", "memory.swap.max", "67108864", "0"},
	} {
		// Kernels need not count swap; all else there must be.
		uncounted := n.cgroupFile(id, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max") == "no such file" && strings.Contains(tt.v1, "memsw")
		if got := n.cgroupFile(id, tt.controller, tt.v1, tt.v2); got != tt.want1 && got != tt.want2 && !uncounted {
			t.Errorf("%s: %s, want %s or %s", tt.v1, got, tt.want1, tt.want2)
		}
	}
	n.weight(id, 333)
	if got := strings.TrimSpace(n.proc(id, "oom_score_adj")); got != "321" {
		t.Errorf("score %s, want 321", got)
	}
	if !strings.Contains(n.proc(id, "cgroup"), config.GetLinux().GetCgroupParent()+"/") {
		t.Errorf("cgroups %s, want below %s", n.proc(id, "cgroup"), config.GetLinux().GetCgroupParent())
	}
	id = run("swap", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 96 * mib})
	if got := n.cgroupFile(id, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max"); got != "100663296" && got != "33554432" && got != "no such file" {
		t.Errorf("swap limit %s", got)
	}
	id = run("little", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 4 * mib, MemorySwapLimitInBytes: 5 * mib})
	if got := n.cgroupFile(id, "memory", "memory.limit_in_bytes", "memory.max"); got != "4194304" {
		t.Errorf("little memory: %s", got)
	}
	if got := n.cgroupFile(id, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max"); got != "5242880" && got != "1048576" && got != "no such file" {
		t.Errorf("little memory: swap limit %s", got)
	}
	for _, change := range []int64{2 * mib, 5 * mib, 64 * mib, 3 * mib} {
		if _, err := n.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: change, MemorySwapLimitInBytes: change + mib},
		}); err != nil {
			t.Fatal(err)
		}
		if got := n.cgroupFile(id, "memory", "memory.limit_in_bytes", "memory.max"); got != fmt.Sprint(change) {
			t.Errorf("%d requested, memory limit %s", change, got)
		}
	}
	if counted, _ := filepath.Glob("/sys/fs/cgroup/hugetlb*"); len(counted) > 0 || n.info().CgroupVersion == "2" {
		id = run("pages", &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 * mib}}})
		if got := n.cgroupFile(id, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"); got != "4194304" {
			t.Errorf("huge pages %s", got)
		}
	}
	if n.info().CgroupVersion == "2" {
		id = run("unified", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, Unified: map[string]string{"memory.high": "33554432", "memory.oom.group": "1"}})
		if high, group := n.cgroupFile(id, "", "", "memory.high"), n.cgroupFile(id, "", "", "memory.oom.group"); high != "33554432" || group != "1" {
			t.Errorf("unified: memory.high %s, memory.oom.group %s", high, group)
		}
	}
	n.remove(pod)
	n.removeLeftovers()
}

// TestPauseProcessSettings reads what the pause process of a pod may do, and who runs it.
func TestPauseProcessSettings(t *testing.T) {
	n := newNode(t)
	config := n.pod("pause")
	sc := config.Linux.SecurityContext
	sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1234}, &runtimeapi.Int64Value{Value: 77}
	sc.SupplementalGroups, sc.ReadonlyRootfs = []int64{5, 6}, true
	sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	r, err := n.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "runc"})
	if err != nil {
		t.Fatal(err)
	}
	pod := r.GetPodSandboxId()
	// Docker's start returns a moment before the OCI runtime, which has capabilities, executes the program.
	n.until(10*time.Second, "the pause process is not executed", func() bool { return n.word(pod, "Name") == "pause" })
	for key, want := range map[string]string{
		"Uid": "1234 1234 1234 1234", "Gid": "77 77 77 77", "Groups": "5 6 77", "Seccomp": "2", "CapEff": "0000000000000000",
	} {
		if got := n.word(pod, key); got != want {
			t.Errorf("%s %s, want %s", key, got, want)
		}
	}
	if !slices.ContainsFunc(strings.Split(n.proc(pod, "mountinfo"), "\n"), func(line string) bool {
		fields := strings.Fields(line) // number, parent, device, root, mount point, options
		return len(fields) > 5 && fields[4] == "/" && strings.HasPrefix(fields[5], "ro,")
	}) {
		t.Errorf("its root can be written to: %s", n.proc(pod, "mountinfo"))
	}
	c := n.create(pod, config, shell("c", "exec sleep 1000"))
	for _, id := range []string{pod, c} {
		if seen, err := n.docker.ContainerInspect(t.Context(), id); err != nil || seen.HostConfig.Runtime != "runc" {
			t.Errorf("runtime %q, %v", seen.HostConfig.Runtime, err)
		}
	}
	n.remove(pod)

	open := n.pod("open")
	open.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	pod, err = n.run(t.Context(), open)
	if err != nil {
		t.Fatal(err)
	}
	if got := n.word(pod, "Seccomp"); got != "0" {
		t.Errorf("unconfined: Seccomp %s", got)
	}
	n.remove(pod)
	none := &runtimeapi.RunPodSandboxRequest{Config: n.pod("none"), RuntimeHandler: "none"}
	if _, err := n.runtime.RunPodSandbox(t.Context(), none); codeOf(err) != codes.InvalidArgument {
		t.Errorf("a handler that Docker does not have: %v", err)
	}
	n.removeLeftovers()
}

// TestSettingsHoldFromTheFirstInstruction has a container read, before anything else, a setting that Docker
// has no word for. With systemd as driver it takes the OCI runtime.
func TestSettingsHoldFromTheFirstInstruction(t *testing.T) {
	n := newNode(t)
	info := n.info()
	if info.CgroupDriver != "cgroupfs" { // there is no cgroup before the start
		n.installOCI()
	}
	resources, file, want := &runtimeapi.LinuxContainerResources{}, "", "33554432"
	switch counted, _ := filepath.Glob("/sys/fs/cgroup/hugetlb*"); {
	case info.CgroupVersion == "2":
		resources.Unified, file = map[string]string{"memory.high": want}, "/sys/fs/cgroup/memory.high"
	case len(counted) > 0:
		resources.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 32 << 20}}
		file = "/sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes"
	default:
		t.Skip("cgroup v1 without hugetlb has nothing that Docker has no word for")
	}
	config := n.pod("first")
	config.Linux.CgroupParent = n.cgroup("first")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	c := shell("c", "read -r was <"+file+"; echo $was >/was; exec sleep 1000")
	c.Linux.Resources = resources
	id := n.create(pod, config, c)
	if was := strings.TrimSpace(n.exec(id, "sh", "-c", "until [ -s /was ]; do sleep 0.1; done; cat /was")); was != want {
		t.Errorf("%s was %s when the container began, want %s", file, was, want)
	}
	n.remove(pod)
	n.removeLeftovers()
}

// TestDevicesInTheContainer reads which devices there are, and what may be done to them.
func TestDevicesInTheContainer(t *testing.T) {
	n := newNode(t)
	config := n.pod("devices")
	config.Linux.SecurityContext.Privileged = true
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	c := shell("c", "exec sleep 1000")
	c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/another"}}
	id := n.create(pod, config, c)
	if got := n.exec(id, "sh", "-c", "stat -c %t:%T /dev/another; head -c 3 /dev/another | wc -c; test -e /dev/loop-control || echo none"); got != "1:5\n3\nnone\n" {
		t.Errorf("devices: %q", got)
	}
	// The kernel's messages are not among the devices that every container may open.
	for permissions, want := range map[string]string{"r": "read\n", "w": "written\n", "mr": "read\n", "rw": "read\nwritten\n", "": "read\nwritten\n"} {
		c := shell("kmsg"+permissions, "exec sleep 1000")
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYSLOG"}}
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/kmsg", ContainerPath: "/dev/messages", Permissions: permissions}}
		id := n.create(pod, config, c)
		if got := n.exec(id, "sh", "-c", "(: </dev/messages) 2>/dev/null && echo read; (: >/dev/messages) 2>/dev/null && echo written; true"); got != want {
			t.Errorf("a device with permissions %q: %q, want %q", permissions, got, want)
		}
	}
	c = shell("privileged", "exec sleep 1000")
	c.Linux.SecurityContext.Privileged = true
	c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/zero"}, {HostPath: "/dev/zero", ContainerPath: "/dev/another"}}
	id = n.create(pod, config, c)
	if got := n.exec(id, "stat", "-c", "%t:%T", "/dev/another"); got != "1:5\n" {
		t.Errorf("a device by another name in a privileged container: %q", got)
	}
	c = shell("refused", "exec sleep 1000")
	c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/z", Permissions: "x"}}
	if err := n.refused(pod, config, c); codeOf(err) != codes.InvalidArgument {
		t.Errorf("a permission that there is not: %v", err)
	}
	n.remove(pod)
	n.removeLeftovers()
}

// TestPodSettingsReachTheContainer compares what the answers say of a pod with one another.
func TestPodSettingsReachTheContainer(t *testing.T) {
	n := newNode(t)
	before := time.Now().UnixNano()
	config := n.pod("status")
	ran, err := n.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "docker"})
	if err != nil {
		t.Fatal(err)
	}
	pod := ran.GetPodSandboxId()
	c := shell("c", "exec sleep 1000")
	c.Annotations = map[string]string{"note": "of a container"}
	c.Image.UserSpecifiedImage, c.Image.Annotations = "user/said:1", map[string]string{"image": "annotation"}
	id := n.create(pod, config, c)
	seen, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	s := seen.GetStatus()
	now := time.Now().UnixNano()
	if s.GetCreatedAt() < before || s.GetCreatedAt() > now || seen.GetTimestamp() != 0 {
		t.Errorf("times: %d < created %d < %d; timestamp %d", before, s.GetCreatedAt(), now, seen.GetTimestamp())
	}
	pods, err := n.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(pods.GetItems()) != 1 {
		t.Fatalf("%v, %v", pods, err)
	}
	want := &runtimeapi.PodSandbox{
		Id: pod, Metadata: config.GetMetadata(), State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: s.GetCreatedAt(),
		Labels: config.GetLabels(), Annotations: config.GetAnnotations(), RuntimeHandler: "docker",
	}
	if diff := cmp.Diff(want, pods.GetItems()[0], protocmp.Transform()); diff != "" {
		t.Errorf("the pod in a list (-want +got):\n%s", diff)
	}
	if s.GetRuntimeHandler() != "docker" || !strings.Contains(seen.GetInfo()["info"], config.GetHostname()) {
		t.Errorf("status %v\ninfo %v", s, seen.GetInfo())
	}
	one, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(seen.GetContainersStatuses()) != 1 || cmp.Diff(one.GetStatus(), seen.GetContainersStatuses()[0], protocmp.Transform()) != "" {
		t.Errorf("the status of the pod has %v for its container, whose own status is %v", seen.GetContainersStatuses(), one.GetStatus())
	}
	if !strings.Contains(one.GetInfo()["info"], `"pid":`) || !strings.Contains(one.GetInfo()["info"], pod) {
		t.Errorf("info %v", one.GetInfo())
	}
	list, err := n.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.GetContainers()) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	st := one.GetStatus()
	row := &runtimeapi.Container{
		Id: id, PodSandboxId: pod, Metadata: c.GetMetadata(), State: runtimeapi.ContainerState_CONTAINER_RUNNING, CreatedAt: st.GetCreatedAt(),
		Image:    &runtimeapi.ImageSpec{Image: "user/said:1", UserSpecifiedImage: "user/said:1", Annotations: c.GetImage().GetAnnotations()},
		ImageRef: st.GetImageRef(), ImageId: st.GetImageId(), Labels: c.GetLabels(), Annotations: c.GetAnnotations(),
	}
	if diff := cmp.Diff(row, list.GetContainers()[0], protocmp.Transform()); diff != "" {
		t.Errorf("the container in a list (-want +got):\n%s", diff)
	}
	if st.GetCreatedAt() < s.GetCreatedAt() || st.GetStartedAt() < st.GetCreatedAt() || st.GetFinishedAt() != 0 || st.GetLogPath() != filepath.Join(config.GetLogDirectory(), c.GetLogPath()) ||
		!strings.HasPrefix(st.GetImageId(), "sha256:") || st.GetImageRef() == "" {
		t.Errorf("status %v", st)
	}
	status, err := n.runtime.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil || !strings.Contains(status.GetInfo()["engine"], n.info().ServerVersion) || !strings.Contains(status.GetInfo()["config"], "sandboxImage") {
		t.Errorf("info %v, %v", status.GetInfo(), err)
	}
	n.remove(pod)
	n.removeLeftovers()
}
