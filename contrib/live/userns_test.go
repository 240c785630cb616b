package live

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// firstHostID is the first ID on the node of the user namespaces in these tests.
const firstHostID = 200000

func hostIDs() []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{HostId: firstHostID, Length: 65536}}
}

// ownUsers puts pods and containers into a user namespace.
func ownUsers() *runtimeapi.UserNamespace {
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: hostIDs(), Gids: hostIDs()}
}

// mappedPod is pod with hostUsers: false.
func (n *node) mappedPod(name string) *runtimeapi.PodSandboxConfig {
	p := n.pod(name)
	p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = ownUsers()
	return p
}

// mappedShell is shell in such a pod.
func mappedShell(name, script string, mounts ...*runtimeapi.Mount) *runtimeapi.ContainerConfig {
	c := shell(name, script)
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = ownUsers()
	c.Mounts = mounts
	return c
}

// installOCI adds berth-oci to the Engine until the test ends.
func (n *node) installOCI() {
	n.t.Helper()
	n.addOCIRuntime(n.ociProgram(), n.path("run", "oci"))
	announced := func() bool {
		r, err := n.runtime.Status(n.t.Context(), &runtimeapi.StatusRequest{})
		return err == nil && slices.ContainsFunc(r.GetRuntimeHandlers(), func(h *runtimeapi.RuntimeHandler) bool {
			return h.GetName() == "" && h.GetFeatures().GetUserNamespaces()
		})
	}
	for limit := time.Now().Add(20 * time.Second); !announced(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(limit) {
			_, err := n.run(n.t.Context(), n.mappedPod("unannounced"))
			n.t.Fatalf("user namespaces are not announced; a pod with one: %v", err)
		}
	}
}

// TestUserNamespaceOfAPod takes a pod in a user namespace through its life.
func TestUserNamespaceOfAPod(t *testing.T) {
	n := newNode(t)
	if _, err := n.run(t.Context(), n.mappedPod("refused")); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "berthd runtime install") {
		t.Errorf("without the runtime: %v", err)
	}
	n.installOCI()
	data, private := n.path("data"), n.path("private")
	for _, dir := range []string{data, private} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of the node\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := n.mappedPod("mapped")
	pod, id := n.begin(config, mappedShell("c", "exec sleep 1000",
		&runtimeapi.Mount{HostPath: data, ContainerPath: "/data", UidMappings: hostIDs(), GidMappings: hostIDs()},
		&runtimeapi.Mount{HostPath: private, ContainerPath: "/private"}))
	want := fmt.Sprintf("0 %d 65536", firstHostID)
	for _, container := range []string{pod, id} {
		if got := strings.Join(strings.Fields(n.proc(container, "uid_map")), " "); got != want {
			t.Errorf("uid_map of %s is %q, want %q", container, got, want)
		}
		if _, err := os.Stat(n.path("run", "oci", container+".json")); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(strings.Fields(n.exec(id, "cat", "/proc/self/uid_map")), " "); got != want {
		t.Errorf("uid_map of an exec is %q, want %q", got, want)
	}
	for script, want := range map[string]string{
		"stat -c %u:%g / /bin/sh /data/file /etc/hosts /dev/shm": strings.Repeat("0:0\n", 5),
		"cat /data/file": "of the node\n",
		"echo new >/data/new && stat -c %u /data/new":            "0\n",
		"stat -c %u /private/file":                               "65534\n",
		"cat /private/file 2>/dev/null || echo refused":          "refused\n",
		"rm -f /private/file 2>/dev/null || echo refused":        "refused\n",
		"echo x >/dev/shm/x && stat -c %u /dev/shm/x":            "0\n",
		"touch /new && stat -c %u /new":                          "0\n",
		"cat /proc/sys/net/ipv4/ping_group_range | tr \\\\t ' '": "0 65535\n",
	} {
		if got := n.exec(id, "sh", "-c", script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if owner, err := exec.Command("stat", "-c", "%u", filepath.Join(data, "new")).Output(); err != nil || strings.TrimSpace(string(owner)) != "0" {
		t.Errorf("on the node a file of root in a mapped volume belongs to %s, %v; want 0", owner, err)
	}
	if got := n.word(id, "Uid"); !strings.HasPrefix(got, strconv.Itoa(firstHostID)+" ") {
		t.Errorf("the process has the UIDs %q on the node, want %d", got, firstHostID)
	}
	status, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	if got := status.GetStatus().GetLinux().GetNamespaces().GetOptions().GetUsernsOptions(); err != nil || got.GetMode() != runtimeapi.NamespaceMode_POD || got.GetUids()[0].GetHostId() != firstHostID {
		t.Errorf("user namespace in the status: %v, %v", got, err)
	}
	stats, err := n.runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil || stats.GetStats().GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("stats %v, %v", stats, err)
	}
	n.kill()
	n.start()
	again := n.create(pod, config, mappedShell("again", "exec sleep 1000"))
	if got, want := n.proc(again, "ns/user"), n.proc(pod, "ns/user"); got != want {
		t.Errorf("a container of another berthd is in the user namespace %s, its pod in %s", got, want)
	}
	if err := n.refused(pod, config, shell("other", "true")); codeOf(err) != codes.InvalidArgument {
		t.Errorf("a container without the user namespace of its pod: %v", err)
	}
	n.remove(pod)
	n.removeLeftovers()
}

// TestUserNamespaceInTheNodesNetwork takes a pod with hostUsers: false and hostNetwork: true through its life. The kernel refuses
// it a sysfs of its own.
func TestUserNamespaceInTheNodesNetwork(t *testing.T) {
	n := newNode(t)
	n.installOCI()
	if r, err := n.runtime.Status(t.Context(), &runtimeapi.StatusRequest{}); err != nil || !r.GetFeatures().GetUserNamespacesHostNetwork() {
		t.Errorf("the feature is not announced: %v, %v", r.GetFeatures(), err)
	}
	inNode := func(name string) *runtimeapi.PodSandboxConfig {
		config := n.mappedPod(name)
		config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		return config
	}
	sleeper := func(name string) *runtimeapi.ContainerConfig {
		c := mappedShell(name, "exec sleep 1000")
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		return c
	}
	before := n.sysctl("net.ipv4.ip_local_port_range") + n.sysctl("net.ipv4.ping_group_range")
	changed := inNode("sysctl")
	changed.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "20000 30000"}
	if id, err := n.run(t.Context(), changed); err == nil {
		t.Errorf("a pod that changes the node's network was created: %s", id)
	}
	config := inNode("in-node")
	pod, id := n.begin(config, sleeper("c"))
	want := fmt.Sprintf("0 %d 65536", firstHostID)
	for _, container := range []string{pod, id} {
		if got := strings.Join(strings.Fields(n.proc(container, "uid_map")), " "); got != want {
			t.Errorf("uid_map of %s is %q, want %q", container, got, want)
		}
		own, err := os.Readlink("/proc/self/ns/net")
		if got := n.proc(container, "ns/net"); err != nil || got != own {
			t.Errorf("network namespace of %s is %s, the node's %s, %v", container, got, own, err)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, link := range links {
		names = append(names, link.Name+"\n")
	}
	slices.Sort(names)
	for script, want := range map[string]string{
		"cat /proc/self/uid_map | tr -s ' ' | sed 's/^ //'": want + "\n",
		"ls /sys/class/net": strings.Join(names, ""),
		"grep -c ' /sys .*ro,nosuid,nodev,noexec.* - sysfs ' /proc/self/mountinfo":                         "1\n",
		"echo x 2>/dev/null >/sys/class/net/lo/ifalias || echo refused":                                    "refused\n",
		"mount -o remount,rw /sys 2>/dev/null || echo refused":                                             "refused\n",
		"ip link add x type bridge 2>/dev/null || ip link set lo down 2>/dev/null || echo no":              "no\n",
		"grep -E -c ' /sys/(kernel|fs/bpf)[^ ]* .* - (debugfs|tracefs|bpf) ' /proc/self/mountinfo || true": "0\n",
		"stat -c %u /etc/hosts /etc/resolv.conf /etc/hostname":                                             "0\n0\n0\n",
		"test -d /sys/fs/cgroup && ls /sys/fs/cgroup | wc -l | grep -qv '^0$' && echo cgroups":             "cgroups\n",
	} {
		if got := n.exec(id, "sh", "-c", script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	n.kill()
	n.start()
	again := n.create(pod, config, sleeper("again"))
	if got, want := n.proc(again, "ns/user"), n.proc(pod, "ns/user"); got != want {
		t.Errorf("a container of another berthd is in the user namespace %s, its pod in %s", got, want)
	}
	if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: again}); err != nil {
		t.Error(err)
	}
	for _, other := range []func(*runtimeapi.NamespaceOption){
		func(ns *runtimeapi.NamespaceOption) { ns.Pid = runtimeapi.NamespaceMode_NODE },
		func(ns *runtimeapi.NamespaceOption) { ns.Ipc = runtimeapi.NamespaceMode_NODE },
	} {
		config := inNode("refused")
		other(config.Linux.SecurityContext.NamespaceOptions)
		if _, err := n.run(t.Context(), config); codeOf(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", config.Linux.SecurityContext.NamespaceOptions, err)
		}
	}
	n.remove(pod)
	if after := n.sysctl("net.ipv4.ip_local_port_range") + n.sysctl("net.ipv4.ping_group_range"); after != before {
		t.Errorf("settings of the node's network: %q, before %q", after, before)
	}
	n.removeLeftovers()
}

// sysctl returns a setting of the network that this process is in.
func (n *node) sysctl(name string) string {
	n.t.Helper()
	value, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(value)
}
