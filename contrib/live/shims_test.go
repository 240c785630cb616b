package live

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// parent returns the parent of a container's first process, "" if the container does not run.
func (n *node) parent(id string) string {
	seen, err := n.docker.ContainerInspect(context.Background(), id)
	if err != nil || seen.State.Pid == 0 {
		return ""
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", seen.State.Pid))
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(status), "\nPPid:\t")
	parent, _, _ := strings.Cut(after, "\n")
	return parent
}

// shim returns the process that holds a container for containerd.
func (n *node) shim(id string) int {
	n.t.Helper()
	parent := n.parent(id)
	name, err := os.ReadFile("/proc/" + parent + "/comm")
	if err != nil || !strings.HasPrefix(string(name), "containerd-shim") {
		n.t.Fatalf("the parent %q of container %s is %q, which is not a shim: %v", parent, id, name, err)
	}
	pid, err := strconv.Atoi(parent)
	if err != nil {
		n.t.Fatal(err)
	}
	return pid
}

// shims returns the shims of containers, each once.
func (n *node) shims(ids ...string) (pids []int) {
	n.t.Helper()
	for _, id := range ids {
		if pid := n.shim(id); !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// serves reports whether the process is the shim of a container that runs.
func (n *node) serves(pid string, running map[string]bool) bool {
	for id := range running {
		if running[id] && n.parent(id) == pid {
			return true
		}
	}
	return false
}

// containerStatus returns the status of a container.
func (n *node) containerStatus(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	r, err := n.runtime.ContainerStatus(context.Background(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.GetStatus()
}

// waitExited waits until a container has exited and returns its status.
func (n *node) waitExited(id string) (s *runtimeapi.ContainerStatus) {
	n.t.Helper()
	n.until(time.Minute, "container "+id+" does not exit", func() bool {
		s = n.containerStatus(id)
		return s.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return s
}

// TestContainersOfAPodShareAShim takes a pod through its life. With a Docker that passes no annotations, each
// container has a shim of its own.
func TestContainersOfAPodShareAShim(t *testing.T) {
	n := newNode(t)
	config := n.pod("one-shim")
	pod, a := n.begin(config, shell("a", "trap 'exit 7' TERM; while :; do sleep 0.1; done"))
	b := n.create(pod, config, shell("b", "for i in $(seq 2000); do echo line $i; done; exec sleep 1000"))
	other, err := n.run(t.Context(), n.pod("another"))
	if err != nil {
		t.Fatal(err)
	}
	all := []string{pod, a, b}
	if !n.since("1.43") {
		if got := n.shims(all...); len(got) != len(all) {
			t.Errorf("the shims of %d containers are %v", len(all), got)
		}
		n.remove(pod)
		n.remove(other)
		n.removeLeftovers()
		return
	}
	shim := n.shim(pod)
	same := func(when string, ids ...string) {
		t.Helper()
		if got := n.shims(ids...); len(got) != 1 || got[0] != shim {
			t.Errorf("%s: the shims of %d containers of the pod are %v, want %d", when, len(ids), got, shim)
		}
	}
	same("at first", all...)
	if got := n.shim(other); got == shim {
		t.Errorf("two pods share the shim %d", got)
	}
	n.kill()
	n.start()
	c := n.create(pod, config, shell("c", "exec sleep 1000"))
	same("created by another berthd", append(all, c)...)
	for _, id := range []string{a, b, c} {
		if got := n.exec(id, "echo", "alive"); got != "alive\n" {
			t.Errorf("exec: %q", got)
		}
	}
	n.until(time.Minute, "the log of b is not complete", func() bool {
		return len(n.records(n.path("logs", "one-shim", "b", "0.log"))) == 2000
	})

	if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: a, Timeout: 10}); err != nil {
		t.Error(err)
	}
	if s := n.waitExited(a); s.GetExitCode() != 7 {
		t.Errorf("a was stopped and has exited with %d, want 7", s.GetExitCode())
	}
	killed := n.create(pod, config, small("killed", hog))
	if s := n.waitExited(killed); s.GetReason() != "OOMKilled" {
		t.Errorf("a container that took too much memory: %s, exit code %d", s.GetReason(), s.GetExitCode())
	}
	same("after a stop and an OOM kill", pod, b, c)

	// The pause container ends first, as when someone kills it.
	if err := n.docker.ContainerKill(t.Context(), pod, "KILL"); err != nil {
		t.Fatal(err)
	}
	n.until(time.Minute, "the sandbox stays ready", func() bool {
		r, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
		return err == nil && r.GetStatus().GetState() == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	})
	same("without the pause container", b, c)
	if got := n.exec(b, "echo", "alive"); got != "alive\n" {
		t.Errorf("exec without the pause container: %q", got)
	}
	n.remove(pod)
	n.until(time.Minute, "the shim stays", func() bool { return syscall.Kill(shim, 0) != nil })

	// The same sandbox again has another shim.
	for range 3 {
		again, id := n.begin(config, shell("a", "exec sleep 1000"))
		if got := n.shims(again, id); len(got) != 1 {
			t.Errorf("again: the shims are %v", got)
		}
		n.remove(again)
	}
	n.remove(other)
	n.removeLeftovers()
}

// TestKilledShimEndsItsPod kills the shim of a pod: its containers are over, and the next sandbox works.
func TestKilledShimEndsItsPod(t *testing.T) {
	n := newNode(t)
	if !n.since("1.43") {
		t.Skip("this Docker passes no annotations")
	}
	config := n.pod("killed-shim")
	pod, a := n.begin(config, shell("a", "exec sleep 1000"))
	b := n.create(pod, config, shell("b", "exec sleep 1000"))
	bystander, c := n.begin(n.pod("bystander"), shell("c", "exec sleep 1000"))
	events := n.listen()
	if err := syscall.Kill(n.shim(b), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{a, b} {
		if s := n.waitExited(id); s.GetExitCode() != 137 {
			t.Errorf("a container of the killed shim: %s, exit code %d", s.GetReason(), s.GetExitCode())
		}
	}
	n.until(time.Minute, "the sandbox stays ready", func() bool {
		r, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
		return err == nil && r.GetStatus().GetState() == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	})
	for _, id := range []string{pod, a, b} {
		n.until(10*time.Second, "no event says that "+id+" has stopped", func() bool { return slices.Contains(events.of(id), "stopped") })
	}
	if got := n.exec(c, "echo", "alive"); got != "alive\n" {
		t.Errorf("exec in another pod: %q", got)
	}
	n.remove(pod)
	config.Metadata.Attempt++
	again, id := n.begin(config, shell("a", "exec sleep 1000"))
	if got := n.exec(id, "echo", "alive"); got != "alive\n" {
		t.Errorf("exec in the next sandbox: %q", got)
	}
	n.remove(again)
	n.remove(bystander)
	n.removeLeftovers()
}

// TestShimPerPodIsOff requires a shim for each container, also in a pod that was created with one for all.
func TestShimPerPodIsOff(t *testing.T) {
	n := newNode(t)
	config := n.pod("before")
	before, a := n.begin(config, shell("a", "exec sleep 1000"))
	n.kill()
	n.flags = append(n.flags, "--shim-per-pod=false")
	n.start()
	b := n.create(before, config, shell("b", "exec sleep 1000"))
	if n.shim(b) == n.shim(a) {
		t.Error("a new container has the shim of its pod")
	}
	after, c := n.begin(n.pod("after"), shell("c", "exec sleep 1000"))
	if got := n.shims(after, c); len(got) != 2 {
		t.Errorf("the shims of the pause container and of a container are %v", got)
	}
	n.kill()
	n.flags = nil
	n.start()
	// The pause container has no group that a new container could join.
	d := n.create(after, n.pod("after"), shell("d", "exec sleep 1000"))
	if got := n.shims(after, c, d); len(got) != 3 {
		t.Errorf("the shims of a pod that was created without one for all are %v", got)
	}
	n.remove(before)
	n.remove(after)
	n.removeLeftovers()
}
