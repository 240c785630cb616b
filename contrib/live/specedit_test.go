package live

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runAs is a user or group ID in a request.
func runAs(id int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: id} }

// withFlags starts berthd again with more flags.
func (n *node) withFlags(flags ...string) {
	n.t.Helper()
	n.flags = append(n.flags, flags...)
	n.kill()
	n.start()
}

// needsOCI creates a container that must be refused without the OCI runtime, and installs it.
func (n *node) needsOCI(c *runtimeapi.ContainerConfig) {
	n.t.Helper()
	config := n.pod("without")
	config.Linux.SecurityContext.Privileged = c.GetLinux().GetSecurityContext().GetPrivileged()
	pod, err := n.run(n.t.Context(), config)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.refused(pod, config, c); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "run berthd runtime install") {
		n.t.Errorf("without the OCI runtime: %v", err)
	}
	n.remove(pod)
	n.installOCI()
}

// outputs checks what commands print in a container.
func (n *node) outputs(id string, want map[string]string) {
	n.t.Helper()
	for script, want := range want {
		if got := n.exec(id, "sh", "-c", script); got != want {
			n.t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

// runtimes checks the runtimes in the Engine of a pause container and of its container.
func (n *node) runtimes(pod, id string, podEdited, edited bool) {
	n.t.Helper()
	for container, edited := range map[string]bool{pod: podEdited, id: edited} {
		seen, err := n.docker.ContainerInspect(n.t.Context(), container)
		if err != nil {
			n.t.Fatal(err)
		}
		if got := seen.HostConfig.Runtime; strings.HasPrefix(got, "berth") != edited {
			n.t.Errorf("runtime %q, edited: %v", got, edited)
		}
		if _, err := os.Stat(n.path("run", "oci", container+".json")); (err == nil) != edited {
			n.t.Errorf("instructions: %v, edited: %v", err, edited)
		}
	}
}

func TestAmbientCapabilities(t *testing.T) {
	n := newNode(t)
	c := shell("c", "grep CapAmb /proc/self/status >/tmp/first; exec sleep 1000")
	c.Linux.SecurityContext.RunAsUser = runAs(1000)
	c.Linux.SecurityContext.NoNewPrivs = true
	c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
	n.needsOCI(c)
	config := n.pod("ambient")
	tmp := n.path("ambient")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(tmp, 1000, 0); err != nil {
		t.Fatal(err)
	}
	c.Mounts = []*runtimeapi.Mount{{HostPath: tmp, ContainerPath: "/tmp"}}
	pod, id := n.begin(config, c)
	n.runtimes(pod, id, false, true)
	n.outputs(id, map[string]string{
		"until [ -s /tmp/first ]; do sleep 0.1; done; cat /tmp/first":    "CapAmb:\t0000000000000400\n",
		"grep -E 'Cap(Eff|Bnd|Amb)' /proc/self/status | sed 's/.*\\t//'": strings.Repeat("0000000000000400\n", 3), // of an exec
		"grep CapEff /proc/1/status":                                     "CapEff:\t0000000000000400\n",
	})
	n.remove(pod)
	n.removeLeftovers()
}

func TestDevicesBelongToTheUserOfTheContainer(t *testing.T) {
	n := newNode(t)
	n.withFlags("--device-ownership-from-security-context")
	c := shell("c", "exec sleep 1000")
	c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.RunAsGroup = runAs(1234), runAs(1235)
	c.Devices = []*runtimeapi.Device{{HostPath: "/dev/kmsg", ContainerPath: "/dev/messages", Permissions: "r"}}
	n.needsOCI(c)
	pod, id := n.begin(n.pod("owner"), c)
	n.runtimes(pod, id, false, true)
	n.outputs(id, map[string]string{"stat -c %u:%g:%t:%T /dev/messages": "1234:1235:1:b\n", "stat -c %u:%g /dev/null": "0:0\n"})
	root := shell("root", "exec sleep 1000")
	root.Devices = c.Devices
	id = n.create(pod, n.pod("owner"), root)
	n.runtimes(pod, id, false, false)
	n.outputs(id, map[string]string{"stat -c %u:%t:%T /dev/messages": "0:1:b\n"})
	n.remove(pod)
	n.removeLeftovers()
}

func TestPatchesOfTheOperator(t *testing.T) {
	n := newNode(t)
	n.installOCI()
	dir := n.path("spec.d")
	n.put(filepath.Join(dir, "default.json"), `{"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 777, "hard": 778}]}}`, 0o600)
	n.withFlags("--spec-dir", dir)
	pod, id := n.begin(n.pod("patched"), shell("c", "exec sleep 1000"))
	n.runtimes(pod, id, true, true)
	for _, container := range []string{pod, id} {
		if limits := n.proc(container, "limits"); !strings.Contains(strings.Join(strings.Fields(limits), " "), "Max open files 777 778 files") {
			t.Errorf("limits of %s: %s", container, limits)
		}
	}
	// A change needs no restart; a file that is wrong, or not root's alone, refuses containers.
	n.put(filepath.Join(dir, "default.json"), `{"linux": {"namespaces": []}}`, 0o600)
	if err := n.refused(pod, n.pod("patched"), shell("wrong", "true")); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "default.json: changes linux.namespaces") {
		t.Errorf("a patch of namespaces: %v", err)
	}
	n.put(filepath.Join(dir, "default.json"), `{}`, 0o600)
	if err := os.Chmod(filepath.Join(dir, "default.json"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := n.refused(pod, n.pod("patched"), shell("writable", "true")); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "default.json can be changed by others") {
		t.Errorf("a file that all can write: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "default.json")); err != nil {
		t.Fatal(err)
	}
	id = n.create(pod, n.pod("patched"), shell("plain", "exec sleep 1000"))
	n.runtimes(pod, id, true, false)
	n.remove(pod)
	n.removeLeftovers()
}

func TestHooksOfTheOperator(t *testing.T) {
	n := newNode(t)
	n.installOCI()
	dir, state := n.path("hooks.d"), n.path("hook-state")
	n.put(filepath.Join(dir, "state.json"), fmt.Sprintf(`{"version": "1.0.0", "hook": {"path": "/bin/sh", "args": ["sh", "-c", "cat >>%s"]}, "when": {"annotations": {"^example/hook$": "^yes$"}}, "stages": ["createRuntime", "poststop"]}`, state), 0o600)
	n.withFlags("--hooks-dirs", dir)
	config := n.pod("hooked")
	c := shell("c", "exec sleep 1000")
	pod, id := n.begin(config, c)
	n.runtimes(pod, id, false, false)
	c = shell("hooked", "exec sleep 1000")
	c.Annotations = map[string]string{"example/hook": "yes"}
	id = n.create(pod, config, c)
	n.runtimes(pod, id, false, true)
	if text, err := os.ReadFile(state); err != nil || !strings.Contains(string(text), id) || !strings.Contains(string(text), `"status":"creat`) {
		t.Errorf("state of the container for the hook: %s, %v", text, err)
	}
	if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	n.until(10*time.Second, "the hook of the stop is not called", func() bool {
		text, err := os.ReadFile(state)
		return err == nil && strings.Contains(string(text), `"status":"stopped"`)
	})
	n.remove(pod)
	n.removeLeftovers()
}

func TestContainersShareTheUTSNamespaceOfTheirPod(t *testing.T) {
	n := newNode(t)
	n.withFlags("--pod-uts-namespace")
	c := shell("c", "exec sleep 1000")
	n.needsOCI(c)
	config := n.pod("named")
	pod, id := n.begin(config, c)
	n.runtimes(pod, id, false, true)
	if got, want := n.proc(id, "ns/uts"), n.proc(pod, "ns/uts"); got != want {
		t.Errorf("UTS namespace %s, of the pod %s", got, want)
	}
	n.outputs(id, map[string]string{"hostname": "named\n"})
	other := shell("other", "hostname renamed; exec sleep 1000")
	other.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	n.create(pod, config, other)
	n.until(10*time.Second, "the host name of another container is not seen", func() bool { return n.exec(id, "hostname") == "renamed\n" })
	n.remove(pod)

	mapped := n.mappedPod("named-users")
	pod, id = n.begin(mapped, mappedShell("c", "exec sleep 1000"))
	if got, want := n.proc(id, "ns/uts"), n.proc(pod, "ns/uts"); got != want {
		t.Errorf("with a user namespace: UTS namespace %s, of the pod %s", got, want)
	}
	n.remove(pod)
	host := n.pod("named-by-node")
	host.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	pod, id = n.begin(host, shell("c", "exec sleep 1000"))
	n.runtimes(pod, id, false, false)
	n.remove(pod)
	n.removeLeftovers()
}

func TestPrivilegedContainerWithoutDevicesOfTheNode(t *testing.T) {
	n := newNode(t)
	n.withFlags("--privileged-without-host-devices", "default")
	c := shell("c", "exec sleep 1000")
	c.Linux.SecurityContext.Privileged = true
	c.Devices = []*runtimeapi.Device{{HostPath: "/dev/kmsg", ContainerPath: "/dev/messages", Permissions: "r"}, {HostPath: "/dev/fuse", ContainerPath: "/dev/fuse"}}
	n.needsOCI(c)
	config := n.pod("bare")
	config.Linux.SecurityContext.Privileged = true
	pod, id := n.begin(config, c)
	n.runtimes(pod, id, false, true)
	n.outputs(id, map[string]string{
		"for d in kmsg loop-control messages null; do test -e /dev/$d && echo $d; done; true":                      "messages\nnull\n",
		"(: </dev/messages) 2>/dev/null && echo read; (: >/dev/messages) 2>/dev/null && echo written; true":        "read\n",
		"mknod /made c 10 237 && (: </made) 2>/dev/null && echo opened; true":                                      "",
		"head -c 3 /dev/zero | wc -c; test -c /dev/fuse && echo fuse; grep CapEff /proc/1/status | grep -c ffffff": "3\nfuse\n1\n",
	})
	id = n.create(pod, config, shell("plain", "exec sleep 1000"))
	n.runtimes(pod, id, false, false)
	n.remove(pod)
	n.removeLeftovers()
}

// TestCDIDevicesWithTheOCIRuntime has hooks and nodes that differ from the host's, which the Engine API cannot express.
func TestCDIDevicesWithTheOCIRuntime(t *testing.T) {
	n := newNode(t)
	if len(n.info().CDISpecDirs) > 0 {
		t.Skip("the Engine resolves CDI devices itself")
	}
	const dir = "/run/cdi"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	state := n.path("cdi-hook")
	n.put(filepath.Join(dir, "berth-edited.json"), fmt.Sprintf(`{"cdiVersion": "0.6.0", "kind": "berth.test/edited", "devices": [{"name": "one", "containerEdits": {
		"deviceNodes": [{"path": "/dev/owned", "hostPath": "/dev/zero", "uid": 4242, "gid": 4243, "fileMode": 384, "permissions": "rw"}, {"path": "/dev/mine", "hostPath": "/dev/loop-control", "permissions": "rw"}],
		"hooks": [{"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "cat >%s"]}]}}]}`, state), 0o644)
	t.Cleanup(func() { _ = os.Remove(filepath.Join(dir, "berth-edited.json")) })
	c := shell("c", "exec sleep 1000")
	c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "berth.test/edited=one"}}
	c.Linux.SecurityContext.RunAsUser = runAs(1000)
	n.needsOCI(c)
	pod, id := n.begin(n.pod("cdi-edited"), c)
	n.runtimes(pod, id, false, true)
	n.outputs(id, map[string]string{
		"stat -c %u:%g:%a:%t:%T /dev/owned": "4242:4243:600:1:5\n", "stat -c %u:%t:%T /dev/mine": "1000:a:ed\n",
	})
	if text, err := os.ReadFile(state); err != nil || !strings.Contains(string(text), id) {
		t.Errorf("state of the container for the hook: %s, %v", text, err)
	}
	n.remove(pod)
	n.removeLeftovers()
}
