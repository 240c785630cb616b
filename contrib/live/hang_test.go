package live

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pidIn returns the process whose number is in a file beside the Engine's socket.
func pidIn(t *testing.T, elem ...string) int {
	t.Helper()
	file := filepath.Join(append([]string{filepath.Dir(strings.TrimPrefix(*host, "unix://"))}, elem...)...)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Skip("needs an Engine whose process is known:", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// condition returns the runtime's condition in Status.
func (n *node) condition() *runtimeapi.RuntimeCondition {
	n.t.Helper()
	s, err := n.runtime.Status(n.t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	return s.GetStatus().GetConditions()[0]
}

// TestHungDockerFailsNoProbe stops Docker's process under a liveness probe. The kubelet kills a container whose probe is
// DeadlineExceeded.
func TestHungDockerFailsNoProbe(t *testing.T) {
	n := newNode(t, "--runtime-request-timeout", "20s")
	_, c, err := n.whole(n.pod("hangs"))
	if err != nil {
		t.Fatal(err)
	}
	pid := pidIn(t, "pid")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := sync.OnceFunc(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	defer resume()
	probe := func() (codes.Code, time.Duration, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		_, err := n.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"true"}, Timeout: 2})
		return codeOf(err), time.Since(begin), err
	}
	probes := 0
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); probes++ {
		if code, took, err := probe(); code != codes.Unavailable || took > 10*time.Second {
			t.Errorf("probe %d: %v after %v, want Unavailable", probes, err, took)
		}
		time.Sleep(200 * time.Millisecond)
	}
	if _, err := n.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{}); codeOf(err) != codes.Unavailable {
		t.Errorf("list: %v", err)
	}
	if got := n.condition(); got.GetStatus() || got.GetReason() != "DockerDaemonNotReady" || got.GetMessage() == "" {
		t.Errorf("status %v", got)
	}
	resume()
	n.waitReady(20 * time.Second)
	n.until(10*time.Second, "no probe succeeds after Docker continues", func() bool { code, _, _ := probe(); return code == codes.OK })
	t.Logf("%d probes while Docker hung", probes)
	n.removeAll()
	n.clean()
}

// TestLostContainerdIsUnavailable kills Docker's containerd while pods are started. A start that did not reach containerd is not
// the failure of a container.
func TestLostContainerdIsUnavailable(t *testing.T) {
	n := newNode(t)
	pod := n.pod("lost")
	id, running, err := n.whole(pod)
	if err != nil {
		t.Fatal(err)
	}
	made, err := n.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: shell("late", "sleep 1000"), SandboxConfig: pod})
	if err != nil {
		t.Fatal(err)
	}
	pidIn(t, "exec", "containerd", "containerd.pid")
	stop := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				_ = syscall.Kill(pidIn(t, "exec", "containerd", "containerd.pid"), syscall.SIGKILL)
			}
		}
	})
	end := sync.OnceFunc(func() { close(stop); killer.Wait() })
	defer end()
	// Docker may still have its connection for a moment, and a start succeed: so the sandbox comes first.
	n.until(20*time.Second, "Docker starts pods without containerd", func() bool {
		_, err := n.run(t.Context(), n.pod("other"))
		if err != nil && codeOf(err) != codes.Unavailable {
			t.Fatalf("run: %v, want Unavailable", err)
		}
		return err != nil
	})
	start := func() error {
		_, err := n.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()})
		return err
	}
	if err := start(); codeOf(err) != codes.Unavailable {
		t.Errorf("start: %v, want Unavailable", err)
	}
	state := func() *runtimeapi.ContainerStatus {
		s, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: made.GetContainerId()})
		if err != nil {
			t.Fatal(err)
		}
		return s.GetStatus()
	}
	if s := state(); s.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("after a start that did not reach containerd: %v", s)
	}
	_, err = n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: running, Cmd: []string{"true"}, Timeout: 10})
	if codeOf(err) != codes.Unavailable {
		t.Errorf("exec: %v, want Unavailable", err)
	}
	if got := n.condition(); got.GetStatus() || !strings.Contains(got.GetMessage(), "containerd") {
		t.Errorf("status %v", got)
	}
	seen, err := n.docker.ContainerInspect(t.Context(), made.GetContainerId())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("docker: %+v", seen.State)
	// The same after a restart of berthd.
	n.kill()
	end()
	n.start()
	if s := state(); s.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("after a restart: %v", s)
	}
	n.until(30*time.Second, "not started once containerd is back", func() bool { return start() == nil })
	n.removeAll()
	n.clean()
}
