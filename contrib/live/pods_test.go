package live

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// begin runs a pod with one container and returns their IDs.
func (n *node) begin(pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (podID, id string) {
	n.t.Helper()
	podID, err := n.run(n.t.Context(), pod)
	if err != nil {
		n.t.Fatal(err)
	}
	return podID, n.create(podID, pod, c)
}

// TestContainersCannotFillTheRunDirectory writes to the files of a pod as far as it goes.
func TestContainersCannotFillTheRunDirectory(t *testing.T) {
	n := newNode(t)
	for _, network := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE} {
		pod := n.pod("greedy-" + strings.ToLower(network.String()))
		pod.Linux.SecurityContext.NamespaceOptions.Network = network
		podID, id := n.begin(pod, shell("c", "sleep 1000"))
		for _, file := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
			n.exec(id, "cat", file)
			got := n.exec(id, "sh", "-c", "dd if=/dev/zero of="+file+" bs=64k count=160 2>&1; stat -c %s "+file+"; true")
			info, err := os.Stat(filepath.Join(n.path("run", "pods", podID), filepath.Base(file)))
			if err != nil || info.Size() > 1<<20 || !strings.Contains(got, "No space left") && !strings.Contains(got, "Read-only") {
				t.Errorf("network %v, %s: %v, %v, %s", network, file, info, err, got)
			}
		}
		// They are still there for the next container, also of another daemon.
		n.kill()
		n.start()
		again := n.create(podID, pod, shell("again", "sleep 1000"))
		n.exec(again, "cat", "/etc/hostname")
		n.remove(podID)
		n.clean()
	}
}

// TestContainersCanWritePodFiles changes its resolv.conf, as clients of VPNs do.
func TestContainersCanWritePodFiles(t *testing.T) {
	n := newNode(t)
	pod := n.pod("vpn")
	podID, id := n.begin(pod, shell("c", "sleep 1000"))
	if n.exec(id, "sh", "-c", "grep ' /etc/resolv.conf ' /proc/self/mountinfo | cut -d' ' -f6 | grep -q '^rw' && echo rw || echo ro") == "ro\n" {
		t.Skip("this Docker has mounts of its own, and the files are read-only for that")
	}
	n.exec(id, "sh", "-c", "echo 'nameserver 10.9.9.9' >/etc/resolv.conf")
	other := n.create(podID, pod, shell("other", "sleep 1000"))
	if got := n.exec(other, "cat", "/etc/resolv.conf"); got != "nameserver 10.9.9.9\n" {
		t.Errorf("another container of the pod reads %q", got)
	}
	n.remove(podID)
	n.clean()
}

// TestPrivilegedPodHasAWritableSys has an unprivileged container beside it, which has not.
func TestPrivilegedPodHasAWritableSys(t *testing.T) {
	n := newNode(t)
	pod := n.pod("tuner")
	pod.Linux.SecurityContext.Privileged = true
	plain := shell("plain", "sleep 1000")
	podID, beside := n.begin(pod, plain)
	c := shell("c", "sleep 1000")
	c.Linux.SecurityContext.Privileged = true
	id := n.create(podID, pod, c)
	n.exec(id, "sh", "-c", "echo tuned >/sys/class/net/lo/ifalias && grep -q tuned /sys/class/net/lo/ifalias")
	r, err := n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: beside, Cmd: []string{"sh", "-c", "echo x >/sys/class/net/lo/ifalias"}, Timeout: 20})
	if err != nil || r.GetExitCode() == 0 || !strings.Contains(string(r.GetStderr()), "Read-only") {
		t.Errorf("an unprivileged container writes to /sys: %v, %v", r, err)
	}
	n.remove(podID)
	n.clean()
}

// TestUnusualPods has what kubelets send and Docker alone would refuse or change.
func TestUnusualPods(t *testing.T) {
	n := newNode(t)
	pod := n.pod("odd")
	pod.Hostname = "h." + strings.Repeat("a", 30) + "." + strings.Repeat("b", 31)
	pod.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}
	for _, d := range []string{"a", "b"} {
		if err := os.MkdirAll(n.path("data", d), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(n.path("data", d, "which"), []byte(d), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := shell("c", "trap 'exit 42' 37; while :; do sleep 0.1; done")
	c.Annotations = map[string]string{"io.kubernetes.pod.terminationGracePeriod": "60"}
	c.Mounts = []*runtimeapi.Mount{{HostPath: n.path("data", "a"), ContainerPath: "/d"}, {HostPath: n.path("data", "b"), ContainerPath: "/x/../d/"}}
	c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 1000}
	podID, id := n.begin(pod, c)
	if got := n.exec(id, "cat", "/d/which"); got != "b" {
		t.Errorf("of two mounts at one path %q is there, want b", got)
	}
	if got := n.exec(id, "hostname"); got != pod.Hostname+"\n" {
		t.Errorf("hostname %q, want %q", got, pod.Hostname)
	}
	if got := n.exec(id, "id", "-g"); got != "1000\n" {
		t.Errorf("group %q", got)
	}
	seen, err := n.docker.ContainerInspect(t.Context(), id)
	if err != nil || seen.Config.StopTimeout == nil || *seen.Config.StopTimeout != 60 {
		t.Errorf("StopTimeout %v, %v; want 60", seen.Config.StopTimeout, err)
	}
	n.remove(podID)

	n.build("berth-signal:1", "FROM "+*image+"\nSTOPSIGNAL 37\n")
	pod = n.pod("signal")
	c = shell("c", "trap 'exit 42' 37; while :; do sleep 0.1; done")
	c.Image.Image = "berth-signal:1"
	podID, id = n.begin(pod, c)
	status, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil || status.GetStatus().GetStopSignal() != runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3 {
		t.Errorf("stop_signal %v, %v", status.GetStatus().GetStopSignal(), err)
	}
	n.remove(podID)
	n.clean()
}

// TestContainerEndInSharedPIDNamespaceIsSeen: whether it is stopped, ends by itself or its first process is
// killed, none of its processes is left, and the rest of the pod goes on. See moby#50523 and kubernetes#92214.
func TestContainerEndInSharedPIDNamespaceIsSeen(t *testing.T) {
	n := newNode(t)
	pod := n.pod("shared")
	inPod := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}
	pod.Linux.SecurityContext.NamespaceOptions = inPod
	several := func(name, script string) *runtimeapi.ContainerConfig {
		c := shell(name, script)
		c.Linux.SecurityContext.NamespaceOptions = inPod
		return c
	}
	podID, other := n.begin(pod, several("other", "exec sleep 1002"))
	process := func(id string) int {
		seen, err := n.docker.ContainerInspect(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return seen.State.Pid
	}
	first := process(other)
	for i, tt := range []struct {
		name, last string
		end        func(id string) error
	}{
		{"stopped", "wait", func(id string) error {
			_, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1})
			return err
		}},
		{"ends", "sleep 1", func(string) error { return nil }},
		{"killed", "wait", func(id string) error { return syscall.Kill(process(id), syscall.SIGKILL) }},
	} {
		seconds := fmt.Sprint(10_000 + i)
		id := n.create(podID, pod, several(tt.name, "sleep "+seconds+" & sleep "+seconds+" & "+tt.last))
		if err := tt.end(id); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		n.exited(id)
		n.until(10*time.Second, tt.name+": it has left processes", func() bool {
			return !strings.Contains(n.exec(other, "ps"), "sleep "+seconds)
		})
		seen, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
		if err != nil || seen.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("%s: the sandbox is %v, %v", tt.name, seen.GetStatus().GetState(), err)
		}
		if now := process(other); now != first {
			t.Errorf("%s: the first process of the other container was %d and is %d", tt.name, first, now)
		}
	}
	n.remove(podID)
	n.clean()
}

// TestIPv6AsTheNodeHasIt switches IPv6 off for new interfaces of the node.
func TestIPv6AsTheNodeHasIt(t *testing.T) {
	n := newNode(t)
	const setting = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
	was, err := os.ReadFile(setting)
	if err != nil {
		t.Skip(err)
	}
	defer os.WriteFile(setting, was, 0)
	for _, value := range []string{"1\n", "0\n"} {
		if err := os.WriteFile(setting, []byte(value), 0); err != nil {
			t.Skip(err)
		}
		pod := n.pod("six-" + value[:1])
		podID, id := n.begin(pod, shell("c", "sleep 1000"))
		if got := n.exec(id, "cat", setting); got != value {
			t.Errorf("%s in the pod %q, on the node %q", setting, got, value)
		}
		n.remove(podID)
	}
	n.until(10*time.Second, "something is left", func() bool { return len(n.leftovers()) == 0 })
}
