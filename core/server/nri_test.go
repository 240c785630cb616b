package server_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/docker/docker/api/types/container"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
	"berth/core/nri"
	"berth/core/nri/nritest"
)

// nriTimeout is the request timeout of plugins in these tests.
const nriTimeout = 500 * time.Millisecond

// withNRI starts the daemon with a socket of its own. change may be nil.
func (h *testDaemon) withNRI(change func(*nri.Options)) {
	h.nri = nri.Options{
		Enable: true, SocketPath: filepath.Join(h.dir, "nri", "nri.sock"), PluginPath: filepath.Join(h.dir, "plugins"), PluginConfigPath: filepath.Join(h.dir, "conf.d"),
		RegistrationTimeout: 2 * time.Second, RequestTimeout: nriTimeout,
	}
	if change != nil {
		change(&h.nri)
	}
	h.start()
}

// connect connects a plugin and waits until it gets events.
func (h *testDaemon) connect(index string, p *nritest.Plugin) *nritest.Plugin {
	h.Helper()
	h.until("no NRI socket", func() bool { _, ok := nri.SocketOwner(h.nri.SocketPath); return ok })
	h.must(p.Connect(h, h.nri.SocketPath, index))
	// It is among the plugins a moment after Synchronize: a pod shows it.
	h.until("the plugin gets no events", func() bool {
		ran, err := h.runtime.RunPodSandbox(h.Context(), &runtimeapi.RunPodSandboxRequest{Config: h.pod("probe" + index)})
		h.must(err)
		h.removePod(ran.GetPodSandboxId())
		return strings.Contains(p.Take(), "RunPodSandbox")
	})
	p.Take()
	return p
}

// createIn creates a container in a sandbox and returns its ID.
func (h *testDaemon) createIn(sandbox string, c *runtimeapi.ContainerConfig) (string, error) {
	made, err := h.runtime.CreateContainer(h.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: c, SandboxConfig: h.pod("web")})
	return made.GetContainerId(), err
}

func (h *testDaemon) inspect(id string) container.InspectResponse {
	h.Helper()
	found, err := h.engine.Client(h).ContainerInspect(h.Context(), id)
	h.must(err)
	return found
}

func cpus(set string) *api.LinuxResources { return &api.LinuxResources{Cpu: &api.LinuxCPU{Cpus: set}} }

func TestNRIEventsAreInOrder(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.withNRI(nil)
	p := h.connect("10", &nritest.Plugin{})
	pod, id, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	h.must(err)
	second, err := h.createIn(pod, command("second", "sleep", "1000")) // processes of the fake Engine have no cgroup that could be updated
	h.must(err)
	_, err = h.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: second, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 99}})
	h.must(err)
	_, err = h.runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: second})
	h.must(err)
	_, err = h.runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 99}})
	h.must(err)
	_, err = h.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id})
	h.must(err)
	h.removePod(pod)
	want := `RunPodSandbox POD
CreateContainer C
PostCreateContainer C
StartContainer C
PostStartContainer C
CreateContainer SECOND
PostCreateContainer SECOND
UpdateContainer SECOND
PostUpdateContainer SECOND
StopContainer SECOND
RemoveContainer SECOND
UpdatePodSandbox POD
PostUpdatePodSandbox POD
StopContainer C
StopPodSandbox POD
RemoveContainer C
RemovePodSandbox POD`
	if got := p.Take(pod, "POD", id, "C", second, "SECOND"); got != want {
		t.Errorf("events\n%s\nwant\n%s", got, want)
	}
}

// untilSent waits until a plugin has been sent an event, with names for IDs as in Take.
func (h *testDaemon) untilSent(p *nritest.Plugin, event string, names ...string) {
	h.Helper()
	var all string
	h.until("no "+event, func() bool {
		all += p.Take(names...) + "\n"
		return strings.Contains(all, event)
	})
}

// A container that exits by itself is stopped for plugins, once.
func TestNRIStopIsSentOnExit(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.withNRI(nil)
	p := h.connect("10", &nritest.Plugin{})
	pod, id, err := h.runPod(h.pod("web"), command("c", "sh", "-c", "exit 3"))
	h.must(err)
	h.untilSent(p, "StopContainer C", pod, "POD", id, "C")
	h.removePod(pod)
	if got := p.Take(pod, "POD", id, "C"); got != "StopPodSandbox POD\nRemoveContainer C\nRemovePodSandbox POD" {
		t.Errorf("events after the exit\n%s", got)
	}
}

func TestNRIAdjustmentIsApplied(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t, enginetest.API("1.43"))
	h.withNRI(nil)
	p := h.connect("10", &nritest.Plugin{Create: func(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		if c.GetName() == "c" {
			a.AddEnv("ADDED", "1")
			a.AddAnnotation("by.plugin", "yes")
			a.AddRlimit("RLIMIT_NOFILE", 77, 66)
			a.SetLinuxCPUSetCPUs("0")
		}
		return a, nil, nil
	}})
	ran, err := h.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: h.pod("web")})
	h.must(err)
	pod := ran.GetPodSandboxId()
	id, err := h.createIn(pod, command("c", "sleep", "1000"))
	h.must(err)
	found := h.inspect(id)
	if !slices.Contains(found.Config.Env, "ADDED=1") || found.HostConfig.CpusetCpus != "0" || len(found.HostConfig.Ulimits) != 1 || found.HostConfig.Ulimits[0].Soft != 66 {
		t.Errorf("env %v, cpuset %q, ulimits %v", found.Config.Env, found.HostConfig.CpusetCpus, found.HostConfig.Ulimits)
	}
	if label := found.Config.Labels["berth.nri"]; label != "10-test" {
		t.Errorf("label %q, want the name of the plugin", label)
	}
	s, err := h.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	h.must(err)
	if info := s.GetInfo()["info"]; !strings.Contains(info, `"nri":{"plugins":["10-test"],"fields":["annotations","env","linux.resources","rlimits"]}`) {
		t.Errorf("verbose status %s", info)
	}
	if s.GetStatus().GetAnnotations()["by.plugin"] != "yes" || s.GetStatus().GetResources().GetLinux().GetCpusetCpus() != "0" {
		t.Errorf("status %v", s.GetStatus())
	}
	// Plugins have been sent the container that was replaced, and its end.
	ids := p.Created()
	if len(ids) != 2 || ids[1] != id {
		t.Fatalf("created %v, want two, the last one %s", ids, id)
	}
	if got := p.Take(pod, "POD", ids[0], "OLD", id, "NEW"); got != "RunPodSandbox POD\nCreateContainer OLD\nStopContainer OLD\nRemoveContainer OLD\nCreateContainer NEW\nPostCreateContainer NEW" {
		t.Errorf("events\n%s", got)
	}
	// It survives an update.
	_, err = h.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 99}})
	h.must(err) // of a container that does not run: processes of the fake Engine have no cgroup
	if host := h.inspect(id).HostConfig; host.CpusetCpus != "0" || host.CPUShares != 99 {
		t.Errorf("after an update: cpuset %q, shares %d", host.CpusetCpus, host.CPUShares)
	}
	h.removePod(pod)
	h.removeAllPods()
	h.nothingLeft()
}

// Resources alone need no other container.
func TestNRIResourcesAreAppliedByAnUpdate(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.withNRI(nil)
	p := h.connect("10", &nritest.Plugin{Create: func(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: cpus("0")}}, nil, nil
	}})
	ran, err := h.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: h.pod("web")})
	h.must(err)
	id, err := h.createIn(ran.GetPodSandboxId(), command("c", "sleep", "1000"))
	h.must(err)
	if ids := p.Created(); len(ids) != 1 || ids[0] != id || h.inspect(id).HostConfig.CpusetCpus != "0" {
		t.Errorf("created %v, cpuset %q", ids, h.inspect(id).HostConfig.CpusetCpus)
	}
}

// Plugins update other containers: with the creation of one, with an update, and by themselves.
func TestNRIUpdatesOfOthers(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.withNRI(nil)
	p := h.connect("10", &nritest.Plugin{})
	ran, err := h.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: h.pod("web")})
	h.must(err)
	pod := ran.GetPodSandboxId()
	first, err := h.createIn(pod, command("first", "sleep", "1000"))
	h.must(err)
	other := func(set string) *api.ContainerUpdate {
		return &api.ContainerUpdate{ContainerId: first, Linux: &api.LinuxContainerUpdate{Resources: cpus(set)}}
	}
	cpuset := func(want string) {
		t.Helper()
		if got := h.inspect(first).HostConfig.CpusetCpus; got != want {
			t.Errorf("cpuset %q, want %q", got, want)
		}
	}
	p.Create = func(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return nil, []*api.ContainerUpdate{other("1")}, nil
	}
	second, err := h.createIn(pod, command("second", "sleep", "1000"))
	h.must(err)
	cpuset("1")
	p.Update = func(c *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
		own := &api.ContainerUpdate{ContainerId: c.GetId(), Linux: &api.LinuxContainerUpdate{Resources: cpus("3")}}
		return []*api.ContainerUpdate{other("2"), own}, nil
	}
	_, err = h.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: second, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 99}})
	h.must(err)
	cpuset("2")
	if host := h.inspect(second).HostConfig; host.CpusetCpus != "3" || host.CPUShares != 99 {
		t.Errorf("updated: cpuset %q, shares %d", host.CpusetCpus, host.CPUShares)
	}
	failed, err := p.Stub.UpdateContainers([]*api.ContainerUpdate{other("0"), {ContainerId: "none", Linux: &api.LinuxContainerUpdate{Resources: cpus("0")}}})
	if err != nil || len(failed) != 1 || failed[0].GetContainerId() != "none" {
		t.Errorf("failed %v, %v, want the container that does not exist", failed, err)
	}
	cpuset("0")
}

func TestNRIPluginsThatConflictFailTheCreate(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.withNRI(nil)
	set := func(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddEnv("SAME", "1")
		return a, nil, nil
	}
	h.connect("10", &nritest.Plugin{Create: set})
	h.connect("20", &nritest.Plugin{Create: set})
	pod, _, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	if err == nil || !strings.Contains(err.Error(), "10-test") || !strings.Contains(err.Error(), "20-test") {
		t.Errorf("%v, want an error with both plugins", err)
	}
	h.removePod(pod)
	h.removeAllPods()
	h.nothingLeft()
}

// The ID, which Docker chooses, cannot be in what Docker must be sent: the error says so, and nothing stays.
func TestNRIAdjustmentThatDependsOnTheID(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.withNRI(nil)
	p := h.connect("10", &nritest.Plugin{Create: func(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddEnv("ID", c.GetId())
		return a, nil, nil
	}})
	pod, _, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "NRI plugin 10-test: env: the ID of the container can only be") {
		t.Errorf("%v, want FailedPrecondition that names the plugin", err)
	}
	if n := len(p.Created()); n != 1 {
		t.Errorf("%d containers were created, want 1", n)
	}
	h.removePod(pod)
	h.removeAllPods()
	h.nothingLeft()
}

// A plugin that refuses, hangs, disconnects or panics at an event leaves nothing behind and does not keep others from their pods.
func TestNRIFaultyPlugins(t *testing.T) {
	t.Parallel()
	refuse := func(*nritest.Plugin) error { return errors.New("not this one") }
	faults := map[string]func(*nritest.Plugin) error{
		"refuses":     refuse,
		"hangs":       func(*nritest.Plugin) error { time.Sleep(4 * nriTimeout); return nil },
		"disconnects": func(p *nritest.Plugin) error { go p.Stub.Stop(); time.Sleep(nriTimeout / 2); return nil },
	}
	for fault, do := range faults {
		for _, event := range []string{"RunPodSandbox", "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer", "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"} {
			t.Run(event+" "+fault, func(t *testing.T) {
				t.Parallel()
				h := prepareDaemon(t)
				h.withNRI(nil)
				p := h.connect("10", &nritest.Plugin{})
				p.SetOn(func(e string) error {
					if e == event {
						return do(p)
					}
					return nil
				})
				start := time.Now()
				pod, _, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
				mustFail := fault == "refuses" && slices.Contains([]string{"RunPodSandbox", "CreateContainer", "StartContainer"}, event)
				if (err != nil) != mustFail {
					t.Errorf("err %v, want one: %v", err, mustFail)
				}
				if err != nil && !strings.Contains(err.Error(), "not this one") {
					t.Errorf("%v, want the reason of the plugin", err)
				}
				if took := time.Since(start); took > 10*nriTimeout {
					t.Errorf("took %v", took)
				}
				if pod != "" {
					h.removePod(pod)
				}
				h.removeAllPods()
				h.nothingLeft()
				p.SetOn(nil)
				pod, _, err = h.runPod(h.pod("web"), command("c", "sleep", "1000"))
				if err != nil {
					t.Errorf("the pod again: %v", err)
				}
				h.removePod(pod)
			})
		}
	}
}

// What is no plugin, and answers nonsense or nothing, is disconnected.
func TestNRIGarbageOnTheSocket(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.withNRI(nil)
	h.until("no NRI socket", func() bool { _, ok := nri.SocketOwner(h.nri.SocketPath); return ok })
	for _, text := range []string{"", "GET / HTTP/1.0\r\n\r\n", strings.Repeat("\x00\x00\x00\x01\x00\x00\x00\x05hello", 100)} {
		conn, err := net.Dial("unix", h.nri.SocketPath)
		h.must(err)
		defer conn.Close()
		_, err = conn.Write([]byte(text))
		h.must(err)
	}
	pod, _, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	h.must(err)
	h.removePod(pod)
	h.connect("10", &nritest.Plugin{})
}

// A restarted plugin, and one after a restart of the daemon, is sent what runs.
func TestNRISynchronizeAfterRestarts(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.withNRI(nil)
	pod, id, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	h.must(err)
	for range 2 {
		for range 2 {
			p := h.connect("10", &nritest.Plugin{})
			if synced := p.Synced(); !slices.Contains(synced, pod) || !slices.Contains(synced, id) || len(synced) != 2 {
				t.Errorf("synchronized %v, want %s and %s", synced, pod, id)
			}
			p.Stub.Stop()
		}
		h.stop()
		h.start()
	}
}

// The pods of a daemon whose socket another process has do not depend on it.
func TestNRISocketOfAnotherProcess(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.must(os.Mkdir(filepath.Join(h.dir, "nri"), 0o700))
	l, err := net.Listen("unix", filepath.Join(h.dir, "nri", "nri.sock"))
	h.must(err)
	defer l.Close()
	var lines strings.Builder
	var mu sync.Mutex
	h.log = slog.New(slog.NewTextHandler(lockedWriter{&mu, &lines}, nil))
	h.withNRI(nil)
	pod, _, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	h.must(err)
	h.removePod(pod)
	mu.Lock()
	defer mu.Unlock()
	if text := lines.String(); strings.Count(text, "NRI is off") != 1 || !strings.Contains(text, fmt.Sprintf("(PID %d) listens on", os.Getpid())) {
		t.Errorf("log %s, want one line that names the process", text)
	}
	if _, err := os.Lstat(filepath.Join(h.dir, "nri", "nri.sock")); err != nil {
		t.Errorf("the socket of the other process: %v", err)
	}
}

type lockedWriter struct {
	mu  *sync.Mutex
	out *strings.Builder
}

func (w lockedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(b)
}

func TestNRIRequiredPlugins(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.withNRI(func(o *nri.Options) { o.Validator.Enable, o.Validator.RequiredPlugins = true, []string{"test"} })
	pod, _, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	if err == nil || !strings.Contains(err.Error(), "test") {
		t.Errorf("%v, want an error that names the plugin", err)
	}
	h.connect("10", &nritest.Plugin{})
	if _, err := h.createIn(pod, command("c", "sleep", "1000")); err != nil {
		t.Errorf("with the plugin: %v", err)
	}
}

// The socket is only for root.
func TestNRISocketIsPrivate(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.withNRI(nil)
	h.until("no private socket", func() bool {
		st, err := os.Stat(h.nri.SocketPath)
		return err == nil && st.Mode().Perm() == 0o600
	})
	if st, err := os.Stat(filepath.Dir(h.nri.SocketPath)); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v, want mode 0700", st.Mode(), err)
	}
}

// Plugins of the directory are started with their configuration.
func TestNRIPluginOfTheDirectory(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.must(os.Mkdir(filepath.Join(h.dir, "plugins"), 0o755))
	h.must(os.Mkdir(filepath.Join(h.dir, "conf.d"), 0o755))
	self, err := os.Executable()
	h.must(err)
	program, err := os.ReadFile(self)
	h.must(err)
	h.must(os.WriteFile(filepath.Join(h.dir, "plugins", "10-launched"), program, 0o755))
	h.must(os.WriteFile(filepath.Join(h.dir, "conf.d", "10-launched.conf"), []byte(filepath.Join(h.dir, "events")), 0o600))
	h.withNRI(nil)
	pod, _, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	h.must(err)
	if text, err := os.ReadFile(filepath.Join(h.dir, "events")); err != nil || string(text) != "RunPodSandbox web" {
		t.Errorf("events %q, %v", text, err)
	}
	h.removePod(pod)
}

// A container that is removed with docker is removed for plugins.
func TestNRIRemovalWithDocker(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.withNRI(nil)
	p := h.connect("10", &nritest.Plugin{})
	pod, id, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	h.must(err)
	h.must(h.engine.Client(t).ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}))
	h.untilSent(p, "RemoveContainer C", pod, "POD", id, "C")
	h.removePod(pod)
	if got := p.Take(pod, "POD", id, "C"); got != "StopPodSandbox POD\nRemovePodSandbox POD" {
		t.Errorf("events after the removal\n%s", got)
	}
}

// Without a plugin NRI makes no call of the Engine.
func TestNRIWithoutAPluginMakesNoCalls(t *testing.T) {
	t.Parallel()
	calls := func(enable bool) int {
		h := prepareDaemon(t)
		h.withNRI(func(o *nri.Options) { o.Enable = enable })
		_, _, err := h.runPod(h.pod("first"), command("c", "sleep", "1000"))
		h.must(err)
		least := math.MaxInt
		for i := range 5 { // events of the Engine are inspected in the background, some of them by the next pod's
			h.engine.ResetCalls()
			_, _, err = h.runPod(h.pod(fmt.Sprint("web", i)), command("c", "sleep", "1000"))
			h.must(err)
			least = min(least, h.engine.Calls())
		}
		return least
	}
	if on, off := calls(true), calls(false); on > off+2 || off > on+2 {
		t.Errorf("%d calls with NRI, %d without", on, off)
	}
}

// A plugin that adds to what is requested is shown what is requested, not what it has added before.
func TestNRIPluginIsShownTheRequest(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	h.withNRI(nil)
	p := h.connect("10", &nritest.Plugin{Create: func(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.SetArgs(append([]string{"env"}, c.GetArgs()...))
		a.AddEnv("LEVEL", c.GetEnv()[len(c.GetEnv())-1]+"+")
		return a, nil, nil
	}})
	c := command("c", "sleep", "1000")
	c.Envs = []*runtimeapi.KeyValue{{Key: "LAST", Value: []byte("x")}}
	_, id, err := h.runPod(h.pod("web"), c)
	h.must(err)
	if found := h.inspect(id); strings.Join(found.Config.Entrypoint, " ") != "env sleep 1000" || !slices.Contains(found.Config.Env, "LEVEL=LAST=x+") || len(p.Created()) != 2 {
		t.Errorf("entrypoint %v, env %v, %d containers", found.Config.Entrypoint, found.Config.Env, len(p.Created()))
	}
}

// What the kernel of the node lacks, so that Docker leaves it out with a warning, is refused.
func TestNRIChangeThatDockerDiscardsIsRefused(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	classes := filepath.Join(h.dir, "blockio.yaml")
	h.must(os.WriteFile(classes, []byte("classes: {light: [{weight: 20}]}"), 0o600))
	h.withNRI(func(o *nri.Options) { o.BlockIOFile = classes })
	class := "light"
	h.connect("10", &nritest.Plugin{Create: func(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.SetLinuxBlockIOClass(class)
		return a, nil, nil
	}})
	for _, want := range []string{"Weight discarded.: failed precondition (NRI plugin 10-test changes linux.resources of the container)", `NRI plugin 10-test: linux.resources: blockio_class "other": there is no such class`} {
		pod, _, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want FailedPrecondition with %q", err, want)
		}
		h.removePod(pod)
		h.removeAllPods()
		h.nothingLeft()
		class = "other"
	}
}
