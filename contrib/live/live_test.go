package live

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPodRunsAndIsRemoved runs a pod from creation to removal, with the calls of a kubelet in between.
func TestPodRunsAndIsRemoved(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	pod := n.pod("story")
	id, err := n.run(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := n.run(ctx, pod); err != nil || again != id {
		t.Errorf("the same pod again: %q, %v; want %s", again, err, id)
	}
	seen, err := n.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	s := seen.GetStatus()
	if s.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || !strings.HasPrefix(s.GetNetwork().GetIp(), "10.87.") ||
		len(s.GetNetwork().GetAdditionalIps()) != 1 || !strings.HasPrefix(s.GetNetwork().GetAdditionalIps()[0].GetIp(), "fd87:") {
		t.Errorf("status %v, want READY with an address of each family", s)
	}
	if fmt.Sprint(s.GetLabels()) != fmt.Sprint(pod.GetLabels()) || fmt.Sprint(s.GetAnnotations()) != fmt.Sprint(pod.GetAnnotations()) {
		t.Errorf("labels %v, annotations %v", s.GetLabels(), s.GetAnnotations())
	}

	made, err := n.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: shell("web", "echo hello; exec sleep 1000"), SandboxConfig: pod})
	if err != nil {
		t.Fatal(err)
	}
	c := made.GetContainerId()
	if _, err := n.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	_, err = n.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("start again: %v, want FailedPrecondition", err)
	}
	if got := n.exec(c, "cat", "/etc/resolv.conf"); got != "nameserver 10.0.0.53\nsearch live.local\noptions ndots:5\n" {
		t.Errorf("resolv.conf %q", got)
	}
	if got := n.exec(c, "cat", "/etc/hosts"); !strings.Contains(got, s.GetNetwork().GetIp()+"\tstory") {
		t.Errorf("hosts %q", got)
	}
	if got := n.exec(c, "hostname"); got != "story\n" {
		t.Errorf("hostname %q", got)
	}
	if got := n.exec(c, "sh", "-c", "ip -o addr show lo"); !strings.Contains(got, "127.0.0.1/8") || !strings.Contains(got, "::1/128") {
		t.Errorf("loopback %q", got)
	}
	n.until(5*time.Second, "no log", func() bool {
		log, err := os.ReadFile(n.path("logs", "story", "web", "0.log"))
		return err == nil && strings.HasSuffix(string(log), " stdout F hello\n")
	})

	// A restart of the daemon is nothing to the pod.
	n.kill()
	n.start()
	list, err := n.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: id}})
	if err != nil || len(list.GetContainers()) != 1 || list.GetContainers()[0].GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after a restart: %v, %v", list, err)
	}
	if seen, err := n.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id}); err != nil || seen.GetStatus().GetNetwork().GetIp() != s.GetNetwork().GetIp() {
		t.Errorf("after a restart: %v, %v", seen, err)
	}
	for range 2 {
		n.remove(id)
	}
	_, err = n.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if status.Code(err) != codes.NotFound {
		t.Errorf("status of what is gone: %v, want NotFound", err)
	}
	n.clean()
}

// exec runs a command in a container and returns what it wrote.
func (n *node) exec(id string, cmd ...string) string {
	n.t.Helper()
	r, err := n.runtime.ExecSync(n.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: 20})
	if err != nil || r.GetExitCode() != 0 {
		n.t.Errorf("exec %v: %v, %v", cmd, r, err)
	}
	return string(r.GetStdout())
}

// TestFailureAtEveryStepIsRolledBack has Docker refuse each request of making a pod and a
// container in turn. Whatever fails, nothing may be left, and the next try must
// succeed.
func TestFailureAtEveryStepIsRolledBack(t *testing.T) {
	n := newNode(t)
	refuse := func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusInternalServerError)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": "broken on purpose"})
		return true
	}
	n.walk(refuse, func(step string, err error) {
		if err != nil {
			n.until(10*time.Second, "something is left after "+step, func() bool { return len(n.leftovers()) == 0 })
		}
	})
}

// TestDaemonKilledAtEveryStepLeavesNothing kills berthd at each request of the creation of a pod and a container in turn, before
// Docker has received it and after. The next berthd must clean up, and a repeated call must start the pod.
func TestDaemonKilledAtEveryStepLeavesNothing(t *testing.T) {
	for _, before := range []bool{true, false} {
		t.Run(map[bool]string{true: "before Docker", false: "after Docker"}[before], func(t *testing.T) {
			n := newNode(t)
			for step := 1; ; step++ {
				pod := n.pod(fmt.Sprintf("killed-%d", step))
				cmd := n.cmd
				n.proxy.arm(step, before, func(w http.ResponseWriter, _ *http.Request) bool {
					_ = cmd.Process.Kill()
					return true
				})
				_, _, err := n.whole(pod)
				acted := n.proxy.acted()
				n.proxy.arm(0, false, nil)
				if err == nil {
					if acted != "" {
						// By a look of its own that no call waited for.
						n.kill()
						n.start()
					}
					if step < 6 {
						t.Errorf("only %d steps were walked", step)
					}
					n.removeAll()
					n.clean()
					t.Logf("%d steps", step-1)
					return
				}
				n.kill()
				n.start()
				if _, _, err := n.whole(pod); err != nil {
					t.Fatalf("step %d, %s: the repeated call: %v", step, acted, err)
				}
				n.removeAll()
				n.clean()
				if t.Failed() {
					t.Fatalf("step %d, %s", step, acted)
				}
			}
		})
	}
}

// walk makes pods with containers until one is made without act being called,
// calls act at one request further each time, and check after each.
func (n *node) walk(act func(http.ResponseWriter, *http.Request) bool, check func(step string, err error)) {
	n.t.Helper()
	for step := 1; ; step++ {
		pod := n.pod(fmt.Sprintf("walk-%d", step))
		n.proxy.arm(step, true, act)
		id, _, err := n.whole(pod)
		acted := n.proxy.acted()
		n.proxy.arm(0, false, nil)
		if id != "" {
			n.remove(id)
		}
		n.t.Logf("%d: %s: %v", step, acted, err)
		check(fmt.Sprintf("step %d, %s", step, acted), err)
		if acted == "" {
			if err != nil {
				n.t.Errorf("nothing was broken, and yet: %v", err)
			}
			n.clean()
			return
		}
	}
}

// whole makes a pod with a container that has staged mounts, and starts it.
func (n *node) whole(pod *runtimeapi.PodSandboxConfig) (id, c string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if id, err = n.run(ctx, pod); err != nil {
		return "", "", err
	}
	config := shell("c", "sleep 1000")
	config.Mounts = []*runtimeapi.Mount{ // with steps of their own where the Docker API has none
		{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: *image}, Readonly: true},
		{ContainerPath: "/data", HostPath: n.path("run"), MountOptions: []string{"noexec"}},
	}
	var made *runtimeapi.CreateContainerResponse
	for {
		made, err = n.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: config, SandboxConfig: pod})
		if !unstaged(err) || len(config.Mounts) == 0 {
			break
		}
		config.Mounts = config.Mounts[:len(config.Mounts)-1]
	}
	if status.Code(err) == codes.AlreadyExists {
		return id, "", nil // an earlier call got as far as starting it
	}
	if err != nil {
		return id, "", err
	}
	_, err = n.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()})
	return id, made.GetContainerId(), err
}

// removeAll removes every pod there is.
func (n *node) removeAll() {
	n.t.Helper()
	list, err := n.runtime.ListPodSandbox(context.Background(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, s := range list.GetItems() {
		n.remove(s.GetId())
	}
}

// TestCancelledCallsLeaveNothing has callers give up on RunPodSandbox at any moment: there must be
// the whole pod or nothing.
func TestCancelledCallsLeaveNothing(t *testing.T) {
	n := newNode(t)
	for _, after := range []time.Duration{1, 5, 20, 50, 80, 120, 200} {
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(after*time.Millisecond, cancel)
		_, err := n.run(ctx, n.pod(fmt.Sprintf("hung-%d", after)))
		timer.Stop()
		cancel()
		if err == nil {
			continue
		}
		n.until(20*time.Second, "half a pod is left", func() bool {
			ready := 0
			list, err := n.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
			if err != nil {
				return false
			}
			for _, s := range list.GetItems() {
				if s.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
					ready++
				}
			}
			have, err := n.docker.ContainerList(t.Context(), container.ListOptions{All: true})
			return err == nil && len(have) == ready && ready == len(list.GetItems())
		})
	}
	// A caller whose deadline passes retries, and gets the pod that was created meanwhile.
	for _, after := range []time.Duration{20, 120} {
		config := n.pod(fmt.Sprintf("late-%d", after))
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		_, err := n.run(ctx, config)
		cancel()
		if err == nil {
			continue
		}
		if _, err := n.run(t.Context(), config); err != nil {
			t.Errorf("retry of a call whose deadline passed after %v: %v", after*time.Millisecond, err)
		}
	}
	n.removeAll()
	n.clean()
}

// TestDockerAway has Docker go away and come back.
func TestCallsWhileDockerIsAway(t *testing.T) {
	n := newNode(t)
	id, _, err := n.whole(n.pod("before"))
	if err != nil {
		t.Fatal(err)
	}
	n.proxy.close()
	n.until(3*time.Second, "Status still says that Docker is there", func() bool { return !n.ready() })
	seen, err := n.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range seen.GetStatus().GetConditions() {
		if c.GetType() == runtimeapi.RuntimeReady && (c.GetStatus() || c.GetReason() != "DockerDaemonNotReady" || !strings.HasPrefix(c.GetMessage(), "docker: ")) {
			t.Errorf("condition %v", c)
		}
	}
	_, err = n.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("list: %v, want Unavailable", err)
	}
	_, err = n.run(t.Context(), n.pod("meanwhile"))
	if status.Code(err) != codes.Unavailable {
		t.Errorf("run: %v, want Unavailable", err)
	}
	if v, err := n.runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil || v.GetRuntimeName() != "docker" {
		t.Errorf("version: %v, %v", v, err)
	}
	n.proxy.open()
	n.until(3*time.Second, "no pod can be run", func() bool {
		_, _, err := n.whole(n.pod("after"))
		return err == nil
	})
	if s, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id}); err != nil || s.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod from before: %v, %v", s, err)
	}
	n.removeAll()
	n.clean()
}

var manyPods = flag.Int("pods", 20, "number of `pods` of TestListsMakeNoEngineCalls")

// TestListsMakeNoEngineCalls counts the calls of Docker for what the kubelet calls once a second.
func TestListsMakeNoEngineCalls(t *testing.T) {
	n := newNode(t)
	pods := *manyPods
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() {
			if _, _, err := n.whole(n.pod(fmt.Sprintf("many-%d", i))); err != nil {
				t.Error(err)
			}
		})
		if i%4 == 3 {
			wg.Wait()
		}
	}
	wg.Wait()
	time.Sleep(500 * time.Millisecond) // for the last events
	// Every 30 seconds the cache compares itself with Docker's list, which may happen meanwhile.
	n.until(time.Minute, "lists call Docker each time", func() bool {
		n.proxy.reset()
		n.listPods(pods)
		calls, which := n.proxy.total()
		t.Logf("%d calls to Docker: %s", calls, which)
		return calls == 0
	})
	n.removeAll()
	n.clean()
}

// listPods makes the calls that a kubelet makes in some minutes.
func (n *node) listPods(pods int) {
	t := n.t
	t.Helper()
	const rounds = 200
	begin := time.Now()
	for range rounds {
		list, err := n.runtime.ListContainers(context.Background(), &runtimeapi.ListContainersRequest{})
		if err != nil || len(list.GetContainers()) != pods {
			t.Fatalf("%d containers, %v", len(list.GetContainers()), err)
		}
	}
	took := time.Since(begin) / rounds
	for range 10 {
		if list, err := n.runtime.ListPodSandbox(context.Background(), &runtimeapi.ListPodSandboxRequest{}); err != nil || len(list.GetItems()) != pods {
			t.Fatalf("%d pods, %v", len(list.GetItems()), err)
		}
	}
	t.Logf("ListContainers with %d pods: %v", pods, took)
}

// TestChangesMadeWithDockerAreSeen has Docker's own users kill and remove what is ours.
func TestChangesMadeWithDockerAreSeen(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id, c, err := n.whole(n.pod("victim"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.docker.ContainerKill(ctx, c, "KILL"); err != nil {
		t.Fatal(err)
	}
	n.until(time.Second, "the kill is not seen", func() bool {
		s, err := n.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c})
		return err == nil && s.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED && s.GetStatus().GetExitCode() == 137
	})
	if err := n.docker.ContainerRemove(ctx, id, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	n.until(time.Second, "the sandbox is not listed as not ready", func() bool {
		s, err := n.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		return err == nil && s.GetStatus().GetState() == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	})
	n.remove(id)
	n.clean()
}

// TestDockerPruneSparesRunningPods is what operating.md says of docker container prune: of several labels
// that are to be spared, an Engine spares what has them all.
func TestDockerPruneSparesRunningPods(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	const ours, mark = "io.kubernetes.docker.type", "berth.test.prune"
	left := func() (names []string) {
		list, err := n.docker.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", mark))})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			names = append(names, c.Labels[mark])
		}
		slices.Sort(names)
		return names
	}
	for _, set := range []map[string]string{{mark: "plain"}, {mark: "other", "other": ""}, {mark: "pod", ours: "x"}, {mark: "both", ours: "x", "other": ""}} {
		made, err := n.docker.ContainerCreate(ctx, &container.Config{Image: *image, Labels: set}, &container.HostConfig{NetworkMode: "none"}, nil, nil, "")
		if err != nil {
			t.Fatal(err)
		}
		defer n.docker.ContainerRemove(context.WithoutCancel(ctx), made.ID, container.RemoveOptions{})
	}
	for _, tt := range []struct{ spare, want []string }{
		{[]string{ours}, []string{"both", "pod"}},
		{[]string{ours, "other"}, []string{"both"}},
	} {
		args := filters.NewArgs(filters.Arg("label", mark)) // nobody else's
		for _, label := range tt.spare {
			args.Add("label!", label)
		}
		if _, err := n.docker.ContainersPrune(ctx, args); err != nil {
			t.Fatal(err)
		}
		if got := left(); !slices.Equal(got, tt.want) {
			t.Errorf("sparing %v leaves %v, want %v", tt.spare, got, tt.want)
		}
	}
}

// TestFailedStartIsReportedAsStartError is what becomes of a container that cannot run.
func TestFailedStartIsReportedAsStartError(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	pod := n.pod("fails")
	id, err := n.run(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	config := shell("c", "")
	config.Command = []string{"/no/such/program"}
	made, err := n.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: config, SandboxConfig: pod})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_, err = n.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()})
	if err == nil || strings.Contains(err.Error(), "Error response from daemon") {
		t.Errorf("start: %v, want the reason alone", err)
	}
	for range 2 {
		got, err := n.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: made.GetContainerId()})
		if err != nil {
			t.Fatal(err)
		}
		s := got.GetStatus()
		if s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetReason() != "StartError" || s.GetExitCode() != 127 ||
			s.GetMessage() == "" || s.GetFinishedAt() < begin.UnixNano() || s.GetStartedAt() != 0 {
			t.Errorf("status %v", s)
		}
		n.kill() // what is known of it must outlive us
		n.start()
	}
	n.removeAll()
	n.clean()
}

// TestExecTimeoutKillsTheCommand has a command run out of time: it must be gone with its
// children, whatever sessions those have made.
func TestExecTimeoutKillsTheCommand(t *testing.T) {
	n := newNode(t)
	id, c, err := n.whole(n.pod("exec"))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_, err = n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"sh", "-c", "sleep 501 & setsid sleep 502 & sleep 503"}, Timeout: 1})
	if status.Code(err) != codes.DeadlineExceeded || time.Since(begin) > 5*time.Second {
		t.Errorf("%v after %v, want DeadlineExceeded after 1s", err, time.Since(begin))
	}
	n.until(3*time.Second, "the command still runs", func() bool { return !strings.Contains(n.exec(c, "ps"), "sleep 50") })
	r, err := n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"sh", "-c", "head -c 20000000 /dev/zero; exit 7"}})
	if err != nil || r.GetExitCode() != 7 || len(r.GetStdout()) < 15<<20 || len(r.GetStdout()) > 16<<20 {
		t.Errorf("exit code %d, %d bytes, %v; want 7 and nearly 16 MiB", r.GetExitCode(), len(r.GetStdout()), err)
	}
	n.remove(id)
	n.clean()
}
