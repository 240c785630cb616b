package server_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/registry"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/daemon"
	"berth/core/engine/enginetest"
	"berth/core/logs"
	"berth/core/nri"
	"berth/core/nri/nritest"
	"berth/core/restore"
	"berth/core/server"
	"berth/core/testdir"
	"berth/core/testmain"
	"berth/network"
)

const busybox = "busybox:1"

// rounds is small for every run of the tests; 400 are ten thousand operations.
var rounds = flag.Int("rounds", 8, "how many `rounds` TestListsNeverContradictTheCaller takes, of 25 actions each")

// Most tests wait for an Engine that hangs or for time to pass, so many run in parallel.
func TestMain(m *testing.M) {
	if nritest.RunLaunched(context.Background()) {
		return
	}
	server.LimitResponses(responseLimit)
	testmain.M{M: m}.Run()
}

// responseLimit is a fifth of the product's limit: large messages are slow under the race
// detector.
const responseLimit = 3 << 20

// A testDaemon is berthd without its command line, on a fake Engine and with a fake network.
type testDaemon struct {
	testing.TB
	engine   *enginetest.Engine
	network  *fakeNetwork
	dir      string
	runtime  runtimeapi.RuntimeServiceClient
	images   runtimeapi.ImageServiceClient
	registry *prometheus.Registry
	stop     func()        // ends the daemon
	timeout  time.Duration // of short calls of Docker, 0 for the default
	tracing  daemon.Tracing
	log      *slog.Logger
	nri      nri.Options
}

// newDaemon starts a daemon on a fake Engine of its own.
func newDaemon(t testing.TB, options ...enginetest.Option) *testDaemon {
	t.Helper()
	h := prepareDaemon(t, options...)
	h.start()
	return h
}

// prepareDaemon is newDaemon without the start.
func prepareDaemon(t testing.TB, options ...enginetest.Option) *testDaemon {
	t.Helper()
	dir := testdir.New(t)
	h := &testDaemon{TB: t, engine: enginetest.New(t, options...), dir: dir, network: &fakeNetwork{attached: map[string]bool{}, bound: map[string]bool{}}, log: slog.New(slog.DiscardHandler)}
	h.engine.AddImage(enginetest.Image{}, busybox)
	t.Cleanup(func() { h.stop() })
	return h
}

// start starts the daemon with the state of the one before.
func (h *testDaemon) start() {
	h.Helper()
	dir := h.dir
	h.registry = prometheus.NewPedanticRegistry()
	root := filepath.Join(dir, "root")
	d, err := daemon.New(daemon.Config{
		RootDir: root, RunDir: filepath.Join(dir, "run"), DockerHost: h.engine.Host, RequestTimeout: h.timeout, ContainerLogs: logs.ModeCRI,
		PauseImage: "berth.local/pause:1", PullProgress: 2 * time.Second, PodNetwork: h.network, Registry: h.registry, Tracing: h.tracing, NRI: h.nri,
		Restore: restore.Config{ArchiveDir: filepath.Join(dir, "archives")},
	}, h.log)
	h.must(err)
	l, err := net.Listen("unix", filepath.Join(dir, "cri.sock"))
	h.must(err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(h.Context()))
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, l) }()
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20))) // as a kubelet's
	h.must(err)
	h.stop = sync.OnceFunc(func() {
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			h.Error(err)
		}
	})
	h.runtime, h.images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	h.until("not ready", func() bool { return h.ready() })
}

func (h *testDaemon) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *testDaemon) until(what string, ok func() bool) {
	h.Helper()
	enginetest.Until(h, what, ok)
}

func (h *testDaemon) ready() bool {
	s, err := h.runtime.Status(h.Context(), &runtimeapi.StatusRequest{})
	return err == nil && !slices.ContainsFunc(s.GetStatus().GetConditions(), func(c *runtimeapi.RuntimeCondition) bool { return !c.GetStatus() })
}

// A fakeNetwork records attached and bound pods in maps.
type fakeNetwork struct {
	mu       sync.Mutex // guards following
	attached map[string]bool
	bound    map[string]bool
	failing  string // the failing step
}

func (c *fakeNetwork) step(name string, do func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failing == name {
		return errors.New("the plugin says no")
	}
	do()
	return nil
}

// failStep makes a step fail from now on; "" for none.
func (c *fakeNetwork) failStep(step string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failing = step
}

func (c *fakeNetwork) Plan(pod network.Pod) (network.Plan, error) {
	return network.Plan{Pod: pod}, c.step("plan", func() {})
}

func (c *fakeNetwork) Bind(id string, _ int) (string, error) {
	return "/run/netns/" + id, c.step("bind", func() { c.bound[id] = true })
}

func (c *fakeNetwork) Attach(_ context.Context, plan network.Plan) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("10.1.2.3")}, c.step("attach", func() { c.attached[plan.Pod.ID] = true })
}

func (c *fakeNetwork) Detach(_ context.Context, _ *network.Plan, id string) error {
	return c.step("detach", func() { delete(c.attached, id); delete(c.bound, id) })
}

func (c *fakeNetwork) Forget(ctx context.Context, id string) error { return c.Detach(ctx, nil, id) }

func (c *fakeNetwork) Attached() (ids []string, err error) {
	_ = c.step("", func() {
		for id := range c.attached {
			ids = append(ids, id)
		}
	})
	return ids, nil
}

func (c *fakeNetwork) Bound() (ids []string, err error) {
	_ = c.step("", func() {
		for id := range c.bound {
			ids = append(ids, id)
		}
	})
	return ids, nil
}

func (c *fakeNetwork) Addresses(id string) (addrs []netip.Addr, attached bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return []netip.Addr{netip.MustParseAddr("10.1.2.3")}, c.attached[id], nil
}

func (c *fakeNetwork) GC(context.Context, []string) error { return nil }
func (c *fakeNetwork) InNetNS(string, int) bool           { return true }
func (c *fakeNetwork) Status(ctx context.Context) error   { return ctx.Err() }
func (c *fakeNetwork) SetPodCIDR(string) error            { return nil }
func (c *fakeNetwork) NetNS(id string, _ int) string      { return "/run/netns/" + id }

func (c *fakeNetwork) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (c *fakeNetwork) Dial(context.Context, string, int, int) (net.Conn, error) {
	return nil, errors.New("the fake network has no connections")
}

// leftovers lists everything that a pod may leave behind.
func (h *testDaemon) leftovers() []string {
	left := h.engine.Leftovers()
	attached, _ := h.network.Attached()
	bound, _ := h.network.Bound()
	for _, id := range append(attached, bound...) {
		left = append(left, "network of "+id)
	}
	for _, pattern := range []string{"run/pods/*", "root/sandbox/*", "root/berth/v1/*/*", "logs/*/*/*"} {
		files, err := filepath.Glob(filepath.Join(h.dir, pattern))
		h.must(err)
		left = append(left, files...)
	}
	return left
}

// nothingLeft fails unless everything is removed within a while.
func (h *testDaemon) nothingLeft() {
	h.Helper()
	for limit := time.Now().Add(enginetest.WaitTimeout); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		if len(h.leftovers()) == 0 {
			return
		}
	}
	h.Errorf("left behind:\n  %s", strings.Join(h.leftovers(), "\n  "))
}

func (h *testDaemon) pod(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname: name, LogDirectory: filepath.Join(h.dir, "logs", name), Labels: map[string]string{"app": name},
	}
}

func command(name string, words ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: busybox},
		Command: words, LogPath: name + "/0.log",
	}
}

// runPod runs a pod with one container as a kubelet does.
func (h *testDaemon) runPod(pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (sandboxID, id string, err error) {
	ran, err := h.runtime.RunPodSandbox(h.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return "", "", err
	}
	made, err := h.runtime.CreateContainer(h.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: ran.GetPodSandboxId(), Config: c, SandboxConfig: pod})
	if err != nil {
		return ran.GetPodSandboxId(), "", err
	}
	_, err = h.runtime.StartContainer(h.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()})
	return ran.GetPodSandboxId(), made.GetContainerId(), err
}

// removePod stops and removes a pod.
func (h *testDaemon) removePod(id string) {
	h.Helper()
	_, err := h.runtime.StopPodSandbox(h.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	h.must(err)
	_, err = h.runtime.RemovePodSandbox(h.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	h.must(err)
}

// removeAllPods stops and removes all pods.
func (h *testDaemon) removeAllPods() {
	h.Helper()
	list, err := h.runtime.ListPodSandbox(h.Context(), &runtimeapi.ListPodSandboxRequest{})
	h.must(err)
	for _, p := range list.GetItems() {
		h.removePod(p.GetId())
	}
	h.must(os.RemoveAll(filepath.Join(h.dir, "logs")))
}

func (h *testDaemon) containerState(id string) runtimeapi.ContainerState {
	h.Helper()
	s, err := h.runtime.ContainerStatus(h.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	h.must(err)
	return s.GetStatus().GetState()
}

func TestPodRunsAndIsRemoved(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	pod, id, err := h.runPod(h.pod("web"), command("c", "sh", "-c", "echo hello; sleep 1000"))
	h.must(err)
	if s := h.containerState(id); s != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("state %v", s)
	}
	h.until("no log", func() bool {
		log, err := os.ReadFile(filepath.Join(h.dir, "logs", "web", "c", "0.log"))
		return err == nil && strings.HasSuffix(string(log), " stdout F hello\n")
	})
	result, err := h.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}})
	if err != nil || string(result.GetStdout()) != "out\n" || string(result.GetStderr()) != "err\n" || result.GetExitCode() != 3 {
		t.Errorf("exec: %v, %v", result, err)
	}
	retried, err := h.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: h.pod("web")})
	if err != nil || retried.GetPodSandboxId() != pod {
		t.Errorf("the same pod again: %v, %v", retried, err)
	}
	h.until("lists and status cost calls of Docker", func() bool { // the images are read once more, after the load of the pause image
		h.engine.ResetCalls()
		for range 3 {
			_, err := h.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
			h.must(err)
			_, err = h.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
			h.must(err)
			seen, err := h.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
			h.must(err)
			// A kubelet 1.37 with the gate EventedPLEG would start sidecars again and again.
			if seen.GetTimestamp() != 0 || len(seen.GetContainersStatuses()) != 1 {
				t.Errorf("status of the pod: timestamp %d, %d containers", seen.GetTimestamp(), len(seen.GetContainersStatuses()))
			}
			images, err := h.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
			h.must(err)
			found, err := h.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: busybox}})
			h.must(err)
			_, err = h.images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
			h.must(err)
			if len(images.GetImages()) == 0 || found.GetImage() == nil {
				t.Errorf("images %v, status %v", images, found)
			}
		}
		return h.engine.Calls() == 0
	})
	for range 2 {
		_, err := h.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1})
		h.must(err)
	}
	if s := h.containerState(id); s != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("state %v after a stop", s)
	}
	for range 2 {
		h.removePod(pod)
	}
	h.must(os.RemoveAll(filepath.Join(h.dir, "logs")))
	h.nothingLeft()
}

// A stopped sandbox is removed without further kill or wait calls.
func TestRemoveStoppedSandboxReleasesAll(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	pod, _, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	h.must(err)
	_, err = h.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
	h.must(err)
	h.engine.ResetCalls()
	_, err = h.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
	h.must(err)
	for _, call := range []string{"POST /containers/{id}/kill", "POST /containers/{id}/wait"} {
		if n := h.engine.Calls(call); n > 0 {
			t.Errorf("%s is called %d times", call, n)
		}
	}
	h.must(os.RemoveAll(filepath.Join(h.dir, "logs")))
	h.nothingLeft()
}

// TestEveryFailingEngineCallIsRolledBack fails each Engine call, before and
// after it takes effect, while a pod is created and while it is removed.
func TestEveryFailingEngineCallIsRolledBack(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	order := command("c", "sleep", "1000")
	_, _, err := h.runPod(h.pod("warm"), order)
	h.must(err)
	h.engine.ResetCalls()
	h.removeAllPods()
	_, _, err = h.runPod(h.pod("count"), order)
	h.must(err)
	calls := h.engine.Calls()
	h.removeAllPods()
	h.nothingLeft()
	breaks := map[string]func(e *enginetest.Engine, n int){
		"refused":  func(e *enginetest.Engine, n int) { e.FailOnce("", 500, n) },
		"hung up":  func(e *enginetest.Engine, n int) { e.FailOnce("", enginetest.HangUp, n) },
		"not told": func(e *enginetest.Engine, n int) { e.DropResponse("", n) },
	}
	for name, how := range breaks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newDaemon(t)
			_, _, err := h.runPod(h.pod("warm"), order) // as above: the images are known then
			h.must(err)
			h.removeAllPods()
			for n := 1; n <= calls; n++ {
				pod := h.pod(fmt.Sprintf("p%d", n))
				how(h.engine, n)
				_, _, first := h.runPod(pod, order)
				h.engine.ClearFaults("")
				h.until("not back", h.ready)
				if _, _, err := h.runPod(pod, order); first != nil && status.Code(err) == codes.AlreadyExists {
					// The container runs: only the answer was lost.
				} else if first != nil && err != nil {
					t.Errorf("call %d: first %v, then %v", n, first, err)
				}
				h.removeAllPods()
				h.nothingLeft()
			}
		})
	}
}

// A kubelet whose CreateContainer exceeds its deadline gets the container when it retries.
func TestCreateSlowerThanItsCallerIsKeptForTheRetry(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	_, _, err := h.runPod(h.pod("warm"), command("c", "sleep", "1000")) // the image is known then
	h.must(err)
	sandbox := h.pod("slow")
	run, err := h.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	h.must(err)
	const create = "POST /containers/create"
	h.engine.ResetCalls()
	h.engine.Delay(create, 1500*time.Millisecond)
	createContainer := func(timeout time.Duration) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		made, err := h.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
			PodSandboxId: run.GetPodSandboxId(), Config: command("c", "sleep", "1000"), SandboxConfig: sandbox,
		})
		return made.GetContainerId(), err
	}
	if _, err := createContainer(time.Second); status.Code(err) != codes.DeadlineExceeded {
		t.Fatalf("the first time: %v", err)
	}
	id, err := createContainer(time.Minute)
	if err != nil || h.engine.Calls(create) != 1 {
		t.Errorf("the second time: %v, %d creates", err, h.engine.Calls(create))
	}
	if s := h.containerState(id); s != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("state %v", s)
	}

	// A container that is not claimed is removed with its pod.
	_, err = h.runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id})
	h.must(err)
	if _, err := createContainer(time.Second); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the third time: %v", err)
	}
	h.until("it is not made", func() bool { return len(h.engine.Leftovers()) == 4 })
	h.removeAllPods()
	h.nothingLeft()
}

func TestFailingNetworkLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	for _, step := range []string{"plan", "bind", "attach"} {
		h.network.failStep(step)
		if _, _, err := h.runPod(h.pod(step), command("c", "true")); err == nil {
			t.Errorf("a pod runs without its network: %s", step)
		}
		h.network.failStep("")
		h.nothingLeft()
	}
	// A network that cannot be taken back keeps the pod, so that the kubelet
	// comes back for it.
	pod, _, err := h.runPod(h.pod("stuck"), command("c", "sleep", "1000"))
	h.must(err)
	h.network.failStep("detach")
	if _, err := h.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err == nil {
		t.Error("a pod is reported as stopped while its network is still attached")
	}
	h.network.failStep("")
	h.removePod(pod)
}

func TestCallsWhileDockerIsAway(t *testing.T) {
	t.Parallel()
	h := newDaemon(t, enginetest.LiveRestore())
	pod, id, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	h.must(err)
	h.engine.Stop()
	h.until("not noticed", func() bool { return !h.ready() })
	h.until("lists without Docker", func() bool {
		_, err := h.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		return status.Code(err) == codes.Unavailable
	})
	if _, _, err := h.runPod(h.pod("other"), command("c", "true")); status.Code(err) != codes.Unavailable {
		t.Errorf("run without Docker: %v", err)
	}
	h.engine.Version("1.51") // upgraded meanwhile
	h.engine.Restart()
	h.until("not back", h.ready)
	if s := h.containerState(id); s != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("state %v after Docker is back", s)
	}
	h.removePod(pod)
}

// An Engine that does not answer says nothing about the network.
func TestStatusWhilePingHangs(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	release := h.engine.Hang("HEAD /_ping")
	defer release()
	h.until("a sign of life", func() bool {
		s, err := h.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
		h.must(err)
		for _, c := range s.GetStatus().GetConditions() {
			if c.GetType() == runtimeapi.NetworkReady && !c.GetStatus() {
				t.Fatalf("the network is not ready: %s", c.GetMessage())
			}
		}
		return !s.GetStatus().GetConditions()[0].GetStatus()
	})
}

func TestEngineTooOldIsReportedByStatus(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	h.engine.Stop()
	h.engine.Version("1.40")
	h.engine.Restart()
	h.until("served by an Engine that is too old", func() bool {
		s, err := h.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
		return err == nil && !s.GetStatus().GetConditions()[0].GetStatus() && strings.Contains(s.GetStatus().GetConditions()[0].GetMessage(), "20.10")
	})
}

// A container whose inspect hangs does not delay calls about others.
func TestHungContainerDoesNotBlockOthers(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	_, hung, err := h.runPod(h.pod("hung"), command("c", "sleep", "1000"))
	h.must(err)
	pod, id, err := h.runPod(h.pod("fine"), command("c", "sleep", "1000"))
	h.must(err)
	release := h.engine.Hang(hung)
	defer release()
	h.engine.BreakEvents() // makes the cache inspect everything again
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	h.until("the other container cannot be stopped", func() bool { // Unavailable until the events are read again
		_, err := h.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
		return err == nil
	})
	h.until("the containers are not listed", func() bool { // the stop may have come before the end of the events was seen
		list, err := h.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		return err == nil && len(list.GetContainers()) == 2
	})
	release()
	h.removePod(pod)
}

// A sandbox that could not be inspected since berthd started is ready, but CreateContainer
// fails: the settings that containers inherit from it are not known.
func TestSandboxKnownFromListOnly(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	config := h.pod("web")
	pod, running, err := h.runPod(config, command("c", "sleep", "1000"))
	h.must(err)
	h.stop()
	release := h.engine.Hang(pod)
	defer release()
	releaseContainer := h.engine.Hang(running)
	defer releaseContainer()
	h.start()
	seen, err := h.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil || seen.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || seen.GetStatus().GetNetwork().GetIp() != "10.1.2.3" {
		t.Errorf("status %v, %v; want it ready, with its address", seen.GetStatus(), err)
	}
	create := func() error {
		_, err := h.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: command("d", "true"), SandboxConfig: config})
		return err
	}
	if err := create(); status.Code(err) != codes.Unavailable {
		t.Errorf("create: %v, want Unavailable", err)
	}
	if _, err := h.runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: running}); status.Code(err) != codes.Unavailable {
		t.Errorf("reopen the log of a container known from the list: %v, want Unavailable", err)
	}
	release()
	releaseContainer()
	h.until("no container after inspect succeeded", func() bool { return create() == nil })
	h.removePod(pod)
}

func TestConcurrentPullsShareOneDownload(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	h.engine.Registry("registry.test/a:1", enginetest.Remote{Pace: 20 * time.Millisecond})
	var all errgroup.Group
	for range 5 {
		all.Go(func() error {
			_, err := h.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "registry.test/a:1"}})
			return err
		})
	}
	h.must(all.Wait())
	if n := len(h.engine.Pulls()); n != 1 {
		t.Errorf("%d pulls of the same image at a time", n)
	}
	h.engine.Registry("registry.test/private:1", enginetest.Remote{Allow: func(a registry.AuthConfig) bool { return a.Username == "u" && a.Password == "p" }})
	private := &runtimeapi.ImageSpec{Image: "registry.test/private:1"}
	if _, err := h.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: private}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("without credentials: %v", err)
	}
	_, err := h.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: private, Auth: &runtimeapi.AuthConfig{Username: "u", Password: "p"}})
	h.must(err)
	h.engine.Registry("registry.test/stuck:1", enginetest.Remote{Stall: "Downloading", Repeats: true})
	begin := time.Now()
	_, err = h.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "registry.test/stuck:1"}})
	if err == nil || time.Since(begin) > 5*time.Second {
		t.Errorf("a pull without progress: %v after %v", err, time.Since(begin))
	}
	if _, err := h.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "registry.test/none:1"}}); status.Code(err) != codes.NotFound {
		t.Errorf("an image that is not there: %v", err)
	}
	for range 2 {
		var all errgroup.Group
		for range 5 {
			all.Go(func() error {
				_, err := h.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "registry.test/a:1"}})
				return err
			})
		}
		h.must(all.Wait())
	}
	if h.engine.HasImage("registry.test/a:1") {
		t.Error("the image is still there")
	}
}

// unimplemented lists the methods that are not supported yet (contrib/docs/open.md).
var unimplemented []string

// TestNoRequestIsAnInternalError calls every method with an empty request: none may
// panic, and no error is Internal, Unknown or Unavailable.
func TestNoRequestIsAnInternalError(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	seen := 0
	for _, service := range []any{h.runtime, h.images} {
		v := reflect.ValueOf(service)
		for i := range v.NumMethod() {
			name := v.Type().Method(i).Name
			seen++
			method := v.Method(i)
			if method.Type().Out(0).Kind() == reflect.Interface {
				continue // a stream, see its list
			}
			request := reflect.New(method.Type().In(1).Elem())
			out := method.Call([]reflect.Value{reflect.ValueOf(t.Context()), request})
			err, _ := out[1].Interface().(error)
			switch code := status.Code(err); {
			case (code == codes.Unimplemented) != slices.Contains(unimplemented, name):
				t.Errorf("%s: %v", name, err)
			case code == codes.Internal, code == codes.Unknown, code == codes.Unavailable:
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if seen != 43 {
		t.Errorf("%d calls, want the CRI's 43", seen)
	}
}

// TestListsNeverContradictTheCaller performs random operations on pods, half of them with
// Docker directly and with event streams that break, and compares berth's lists with
// Docker's.
func TestListsNeverContradictTheCaller(t *testing.T) {
	t.Parallel()
	h := newDaemon(t, enginetest.LiveRestore())
	docker := h.engine.Client(t)
	rng := rand.New(rand.NewPCG(1, 2))
	ctx := t.Context()
	type made struct{ pod, container string }
	var all []made
	orphans := map[string]bool{} // sandboxes removed behind berth's back
	created, done := 0, 0
	succeeded := func(err error) bool { // whether something has been done
		if err == nil {
			done++
		}
		return err == nil
	}
	force := container.RemoveOptions{Force: true}
	var stale time.Duration
	for round := range *rounds {
		for range 25 {
			i := rng.IntN(max(1, len(all)))
			var one made
			if len(all) > 0 {
				one = all[i]
			}
			removed := false
			switch n := rng.IntN(100); {
			case len(all) < 5 || n < 25 && len(all) < 15:
				pod, id, err := h.runPod(h.pod(fmt.Sprintf("p%d", created)), command("c", "sleep", "1000"))
				created++
				if succeeded(err) {
					all = append(all, made{pod, id})
				} else if status.Code(err) != codes.Unavailable {
					t.Fatal(err)
				}
			case n < 35:
				_, err := h.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: one.container})
				succeeded(err)
			case n < 40:
				_, err := h.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: one.container})
				succeeded(err)
			case n < 48:
				_, err := h.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: one.pod})
				removed = succeeded(err)
			case n < 58:
				succeeded(docker.ContainerKill(ctx, one.container, "KILL"))
			case n < 63:
				succeeded(docker.ContainerKill(ctx, one.pod, "KILL"))
			case n < 68:
				succeeded(docker.ContainerRemove(ctx, one.container, force))
			case n < 73:
				err := docker.ContainerRemove(ctx, one.container, force)
				removed = succeeded(docker.ContainerRemove(ctx, one.pod, force)) && (err == nil || errdefs.IsNotFound(err))
				if removed {
					orphans[one.pod] = true
				}
			case n < 83:
				succeeded(docker.ContainerStart(ctx, one.container, container.StartOptions{}))
			case n < 87:
				h.engine.BreakEvents()
				done++
			case n < 90:
				h.engine.Restart()
				done++
			default:
				_, err := h.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: one.container})
				succeeded(err)
			}
			if removed {
				all = slices.Delete(all, i, i+1)
			}
		}
		quiet := time.Now()
		differ := ""
		for time.Since(quiet) < 5*time.Second {
			if differ = h.diffLists(orphans); differ == "" {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		if differ != "" {
			t.Fatalf("round %d: %s", round, differ)
		}
		stale = max(stale, time.Since(quiet))
	}
	t.Logf("%d things tried and %d done to %d pods; %d comparisons, equal %v after the last change at the latest", 25**rounds, done, created, *rounds, stale)
}

// diffLists compares what is listed with what the Engine has. The sandboxes in ghosts,
// which it does not have, must be listed as not ready: their network is still to be
// taken back.
func (h *testDaemon) diffLists(orphans map[string]bool) string {
	list, err := h.runtime.ListContainers(h.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err.Error()
	}
	docker := h.engine.Client(h.TB)
	all, err := docker.ContainerList(h.Context(), container.ListOptions{All: true})
	if err != nil {
		return err.Error()
	}
	truth, pods := map[string]bool{}, map[string]bool{}
	for _, c := range all {
		if c.Labels["io.kubernetes.docker.type"] == "container" {
			truth[c.ID] = c.State == container.StateRunning
		} else {
			pods[c.ID] = c.State == container.StateRunning
		}
	}
	for _, c := range list.GetContainers() {
		running, there := truth[c.GetId()]
		if !there || running != (c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING) {
			return fmt.Sprintf("%s is listed as %v; there: %v, runs: %v", c.GetId(), c.GetState(), there, running)
		}
		delete(truth, c.GetId())
	}
	sandboxes, err := h.runtime.ListPodSandbox(h.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err.Error()
	}
	for id := range orphans {
		pods[id] = false
	}
	for _, p := range sandboxes.GetItems() {
		running, there := pods[p.GetId()]
		if !there || running != (p.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY) {
			return fmt.Sprintf("%s is listed as %v; there: %v, runs: %v", p.GetId(), p.GetState(), there, running)
		}
		delete(pods, p.GetId())
	}
	if len(truth)+len(pods) > 0 {
		return fmt.Sprintf("not listed: containers %v, sandboxes %v", truth, pods)
	}
	return ""
}
