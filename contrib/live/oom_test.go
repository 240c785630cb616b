package live

import (
	"context"
	"fmt"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hog takes more memory than small has, at once.
const hog = "dd if=/dev/zero of=/dev/null bs=60M count=1"

// small gives a container 32 MiB and no swap.
func small(name, command string) *runtimeapi.ContainerConfig {
	c := shell(name, command)
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}
	return c
}

// TestOOMKilledIfAndOnlyIfTheKernelKilled has containers end in all the ways that look alike.
func TestOOMKilledIfAndOnlyIfTheKernelKilled(t *testing.T) {
	n := newNode(t)
	config := n.pod("oom")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	const survived = "; touch /survived; "
	wait := func(id string) *runtimeapi.ContainerStatus {
		t.Helper()
		var s *runtimeapi.ContainerStatus
		n.until(time.Minute, "it does not end", func() bool {
			r, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
			if err != nil {
				t.Fatal(err)
			}
			s = r.GetStatus()
			return s.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
		})
		return s
	}
	ready := func(id string) {
		t.Helper()
		n.until(time.Minute, "its child is not killed", func() bool {
			r, err := n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"test", "-e", "/survived"}, Timeout: 10})
			return err == nil && r.GetExitCode() == 0
		})
	}
	stop := func(id string) {
		ready(id)
		if _, err := n.runtime.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
			t.Fatal(err)
		}
	}
	kill := func(id string) {
		ready(id)
		if err := n.docker.ContainerKill(context.Background(), id, "KILL"); err != nil {
			t.Fatal(err)
		}
	}
	ends := map[string]string{}
	for name, c := range map[string]struct {
		command string
		then    func(id string)
		want    string
	}{
		"a-child-and-success":  {hog + "; exit 0", nil, "Completed 0"},
		"b-child-then-term":    {"trap 'exit 143' TERM; " + hog + survived + "while :; do sleep 0.1; done", stop, "Error 143"},
		"c-child-then-stop":    {hog + survived + "sleep 1000", stop, "Error 137"},
		"d-first-process":      {"exec " + hog, nil, "OOMKilled 137"},
		"e-child-passed-on":    {hog + "; exit $?", nil, "OOMKilled 137"},
		"h-child-then-killed":  {hog + survived + "sleep 1000", kill, "Error 137"},
		"i-killed":             {"touch /survived; sleep 1000", kill, "Error 137"},
		"j-exit-code-alone":    {"exit 137", nil, "Error 137"},
		"k-first-and-too-late": {"sleep 3; exec " + hog, nil, "OOMKilled 137"},
	} {
		id := n.create(pod, config, small(name, c.command))
		if c.then != nil {
			c.then(id)
		}
		s := wait(id)
		if got := fmt.Sprint(s.GetReason(), " ", s.GetExitCode()); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		ends[id] = c.want
	}

	// Many at a time: Docker 20.10 does not notice some of them.
	const many = 16
	for i := range many {
		name := fmt.Sprint("many", i)
		made, err := n.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: small(name, "exec "+hog), SandboxConfig: config})
		if err != nil {
			t.Fatal(err)
		}
		ends[made.GetContainerId()] = "OOMKilled 137"
		go func() {
			_, _ = n.runtime.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()})
		}()
	}
	missed := 0
	for id, want := range ends {
		s := wait(id)
		if got := fmt.Sprint(s.GetReason(), " ", s.GetExitCode()); got != want {
			t.Errorf("%s: %s, want %s", s.GetMetadata().GetName(), got, want)
		}
		if c, err := n.docker.ContainerInspect(context.Background(), id); err == nil && c.State.OOMKilled != (want == "OOMKilled 137") {
			missed++
		}
	}
	t.Logf("of %d ends Docker has %d flags that are not right", len(ends), missed)

	// It stays so after a restart, and so it does while Docker kills what it knows.
	n.kill()
	n.start()
	for id, want := range ends {
		if s := wait(id); fmt.Sprint(s.GetReason(), " ", s.GetExitCode()) != want {
			t.Errorf("%s after a restart: %s %d, want %s", s.GetMetadata().GetName(), s.GetReason(), s.GetExitCode(), want)
		}
	}
	for id := range ends {
		if _, err := n.runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
	}
}
