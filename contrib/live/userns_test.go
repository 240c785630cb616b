package live

import (
	"fmt"
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

// installOCI adds berth-oci to the Engine until the test ends, or skips where it is not among the sources.
func (n *node) installOCI() {
	n.t.Helper()
	program := n.path("berth-oci")
	build := exec.Command("go", "build", "-o", program, "berth/cmd/berth-oci")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		n.t.Skipf("berth-oci cannot be built: %v\n%s", err, out)
	}
	n.addOCIRuntime(program, n.path("run", "oci"))
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
