package live

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/nri"
	"berth/core/nri/nritest"
)

// nriSocket is the socket of a berthd with a run-dir of its own.
func (n *node) nriSocket() string { return n.path("run", "nri", "nri.sock") }

// plugin connects an NRI plugin and waits until it is sent events.
func (n *node) plugin(index string, p *nritest.Plugin) *nritest.Plugin {
	n.t.Helper()
	return n.connectPlugin(index, p, n.pod)
}

// connectPlugin is plugin with pods of another kind.
func (n *node) connectPlugin(index string, p *nritest.Plugin, pod func(name string) *runtimeapi.PodSandboxConfig) *nritest.Plugin {
	n.t.Helper()
	n.until(20*time.Second, "no NRI socket", func() bool { _, ok := nri.SocketOwner(n.nriSocket()); return ok })
	if err := p.Connect(n.t, n.nriSocket(), index); err != nil {
		n.t.Fatal(err)
	}
	n.until(20*time.Second, "the plugin gets no events", func() bool {
		id, err := n.run(n.t.Context(), pod("probe"+index))
		if err != nil {
			n.t.Fatal(err)
		}
		n.remove(id)
		return strings.Contains(p.Take(), "RunPodSandbox")
	})
	p.Take()
	return p
}

// answer is a plugin that changes the containers with the name.
func answer(name string, change func(*api.ContainerAdjustment, *api.Container)) *nritest.Plugin {
	return &nritest.Plugin{Create: func(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		if c.GetName() == name {
			change(a, c)
		}
		return a, nil, nil
	}}
}

// TestNRIEventsOfAPod compares the events of a pod with what containerd 2.3 sends for the same calls.
func TestNRIEventsOfAPod(t *testing.T) {
	n := newNode(t)
	p := n.plugin("10", &nritest.Plugin{})
	pod, id := n.begin(n.pod("nri"), shell("c", "exec sleep 1000"))
	if _, err := n.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 99}}); err != nil {
		t.Error(err)
	}
	if _, err := n.runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 99}}); err != nil {
		t.Error(err)
	}
	exits := n.create(pod, n.pod("nri"), shell("exits", "exit 3"))
	var seen string
	n.until(20*time.Second, "no event of the exit", func() bool {
		seen += p.Take(pod, "POD", id, "C", exits, "EXITS") + "\n"
		return strings.Contains(seen, "StopContainer EXITS")
	})
	if _, err := n.runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: exits}); err != nil {
		t.Error(err)
	}
	n.remove(pod)
	seen = strings.TrimSpace(strings.ReplaceAll(seen+p.Take(pod, "POD", id, "C", exits, "EXITS"), "\n\n", "\n"))
	want := `RunPodSandbox POD
CreateContainer C
PostCreateContainer C
StartContainer C
PostStartContainer C
UpdateContainer C
PostUpdateContainer C
UpdatePodSandbox POD
PostUpdatePodSandbox POD
CreateContainer EXITS
PostCreateContainer EXITS
StartContainer EXITS
PostStartContainer EXITS
StopContainer EXITS
RemoveContainer EXITS
StopContainer C
StopPodSandbox POD
RemoveContainer C
RemovePodSandbox POD`
	if got := strings.Join(strings.FieldsFunc(seen, func(r rune) bool { return r == '\n' }), "\n"); got != want {
		t.Errorf("events\n%s\nwant\n%s", got, want)
	}
	n.removeLeftovers()
}

// TestNRIAdjustments sees in the container what plugins have changed, without the OCI runtime.
func TestNRIAdjustments(t *testing.T) {
	n := newNode(t)
	dir := n.path("volume")
	n.put(filepath.Join(dir, "file"), "of the plugin", 0o644)
	n.plugin("10", answer("c", func(a *api.ContainerAdjustment, _ *api.Container) {
		a.AddEnv("ADDED", "1")
		a.RemoveEnv("OLD")
		a.AddMount(&api.Mount{Destination: "/volume", Type: "bind", Source: dir, Options: []string{"rbind", "ro"}})
		a.AddMount(&api.Mount{Destination: "/scratch", Type: "tmpfs", Options: []string{"size=1048576"}})
		a.AddDevice(&api.LinuxDevice{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11})
		a.AddRlimit("RLIMIT_NOFILE", 778, 777)
		a.SetLinuxCPUSetCPUs("0")
		a.SetLinuxPidLimits(123)
		a.SetLinuxOomScoreAdj(&[]int{555}[0])
	}))
	c := shell("c", "exec sleep 1000")
	c.Envs = []*runtimeapi.KeyValue{{Key: "OLD", Value: []byte("1")}}
	pod, id := n.begin(n.pod("adjusted"), c)
	n.outputs(id, map[string]string{
		"echo $ADDED$OLD": "1\n",
		"cat /volume/file; touch /volume/x 2>/dev/null || echo read-only": "of the pluginread-only\n",
		"df -k /scratch | tail -n 1 | awk '{print $2}'":                   "1024\n",
		"test -c /dev/kmsg && echo yes":                                   "yes\n",
		"cat /proc/1/oom_score_adj":                                       "555\n",
		"grep Cpus_allowed_list /proc/1/status | cut -f 2":                "0\n",
		"grep 'Max open files' /proc/1/limits | awk '{print $4, $5}'":     "777 778\n",
	})
	seen, err := n.docker.ContainerInspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if seen.Config.Labels["berth.nri"] != "10-test" || seen.HostConfig.PidsLimit == nil || *seen.HostConfig.PidsLimit != 123 {
		t.Errorf("label %q, pids %v", seen.Config.Labels["berth.nri"], seen.HostConfig.PidsLimit)
	}
	s, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil || !strings.Contains(s.GetInfo()["info"], `"nri":{"plugins":["10-test"]`) {
		t.Errorf("verbose status: %v, %v", s.GetInfo()["info"], err)
	}
	// It survives an update by the kubelet.
	if _, err := n.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 99}}); err != nil {
		t.Error(err)
	}
	n.outputs(id, map[string]string{"grep Cpus_allowed_list /proc/1/status | cut -f 2": "0\n"})
	n.remove(pod)
	n.removeLeftovers()
}

// statePlugin is a plugin that mounts a directory of each container, named by the container's ID, as balloons and topology-aware do. The directory
// exists from CreateContainer to RemoveContainer.
func (n *node) statePlugin() *nritest.Plugin {
	return &nritest.Plugin{
		Create: func(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			dir := n.path("state", c.GetId())
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "id"), []byte(c.GetId()), 0o644)); err != nil {
				return nil, nil, err
			}
			a := &api.ContainerAdjustment{}
			a.AddMount(&api.Mount{Destination: "/.state", Type: "bind", Source: dir, Options: []string{"bind", "ro", "rslave"}})
			a.AddMount(&api.Mount{Destination: "/etc/id", Type: "bind", Source: filepath.Join(dir, "id")})
			return a, nil, nil
		},
		Removed: func(c *api.Container) error { return os.RemoveAll(n.path("state", c.GetId())) },
	}
}

// TestNRIMountsNamedByTheContainer: the source of a mount can contain the ID, which Docker chooses when it creates the container.
func TestNRIMountsNamedByTheContainer(t *testing.T) {
	n := newNode(t)
	n.plugin("10", n.statePlugin())
	if !n.stages() {
		pod, err := n.run(t.Context(), n.pod("refused"))
		if err != nil {
			t.Fatal(err)
		}
		if err := n.refused(pod, n.pod("refused"), shell("c", "true")); !unstaged(err) {
			t.Errorf("Docker has a mount namespace of its own: %v", err)
		}
		n.remove(pod)
		n.removeLeftovers()
		return
	}
	pod, id := n.begin(n.pod("named"), shell("c", "exec sleep 1000"))
	n.outputs(id, map[string]string{
		"cat /.state/id; touch /.state/x 2>/dev/null || echo ' read-only'": id + " read-only\n",
		"cat /etc/id; test -w /etc/id && echo ' writable'":                 id + " writable\n",
	})
	s, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil || !slices.ContainsFunc(s.GetStatus().GetMounts(), func(m *runtimeapi.Mount) bool { return m.GetHostPath() == n.path("state", id) }) {
		t.Errorf("mounts %v, %v", s.GetStatus().GetMounts(), err)
	}
	n.put(n.path("state", id, "later"), "later", 0o644)
	n.outputs(id, map[string]string{"cat /.state/later": "later"})
	n.remove(pod)
	if left, err := os.ReadDir(n.path("state")); err != nil || len(left) > 0 {
		t.Errorf("plugins were not sent the end of %v, %v", left, err)
	}
	n.removeLeftovers()
}

// TestNRIUpdates changes running containers: by the plugin itself, and with the creation of another one.
func TestNRIUpdates(t *testing.T) {
	n := newNode(t)
	var first string
	cpus := func(set string) *api.ContainerUpdate {
		return &api.ContainerUpdate{ContainerId: first, Linux: &api.LinuxContainerUpdate{Resources: &api.LinuxResources{Cpu: &api.LinuxCPU{Cpus: set}}}}
	}
	p := n.plugin("10", &nritest.Plugin{})
	pod, id := n.begin(n.pod("updated"), shell("first", "exec sleep 1000"))
	first = id
	if failed, err := p.Stub.UpdateContainers([]*api.ContainerUpdate{cpus("0")}); err != nil || len(failed) > 0 {
		t.Errorf("%v, %v", failed, err)
	}
	n.outputs(first, map[string]string{"grep Cpus_allowed_list /proc/1/status | cut -f 2": "0\n"})
	p.Create = func(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Cpu: &api.LinuxCPU{Cpus: "0"}}}}, []*api.ContainerUpdate{cpus("1")}, nil
	}
	second := n.create(pod, n.pod("updated"), shell("second", "exec sleep 1000"))
	n.outputs(first, map[string]string{"grep Cpus_allowed_list /proc/1/status | cut -f 2": "1\n"})
	n.outputs(second, map[string]string{"grep Cpus_allowed_list /proc/1/status | cut -f 2": "0\n"})
	n.remove(pod)
	n.removeLeftovers()
}

// TestNRIAdjustmentsWithTheOCIRuntime: what the Engine API cannot express is refused without berth's OCI runtime, and applied with it.
func TestNRIAdjustmentsWithTheOCIRuntime(t *testing.T) {
	n := newNode(t)
	hook := n.path("hook")
	n.put(hook, "#!/bin/sh\ncat >"+n.path("hooked")+"\n", 0o755)
	n.plugin("10", answer("c", func(a *api.ContainerAdjustment, _ *api.Container) {
		a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: hook, Args: []string{"hook"}}}})
		a.AddDevice(&api.LinuxDevice{Path: "/dev/other", Type: "c", Major: 1, Minor: 3, Uid: api.UInt32(uint32(1234)), FileMode: api.FileMode(os.FileMode(0o640))})
		a.AddRlimit("RLIMIT_AS", 1<<40, 1<<39)
		a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "ipc"})
	}))
	config := n.pod("nri-oci")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.refused(pod, config, shell("c", "true")); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "NRI plugin 10-test") || !strings.Contains(err.Error(), "run berthd runtime install") {
		t.Errorf("without the OCI runtime: %v", err)
	}
	n.remove(pod)
	n.installOCI()
	pod, id := n.begin(config, shell("c", "exec sleep 1000"))
	n.outputs(id, map[string]string{"stat -c %u:%a:%t:%T /dev/other": "1234:640:1:3\n", "grep 'Max address space' /proc/1/limits | awk '{print $4, $5}'": "549755813888 1099511627776\n"})
	if n.proc(id, "ns/ipc") == n.proc(pod, "ns/ipc") {
		t.Error("the container has the IPC namespace of its pod")
	}
	if text, err := os.ReadFile(n.path("hooked")); err != nil || !strings.Contains(string(text), id) {
		t.Errorf("the hook got %s, %v, want the state of the container", text, err)
	}
	n.remove(pod)
	n.removeLeftovers()
}

// TestNRINetworkDevice has a plugin move a network device of the node into a pod, as network-device-injector does. runc >= 1.4 can do that.
func TestNRINetworkDevice(t *testing.T) {
	n := newNode(t)
	if out, err := exec.Command("ip", "link", "add", "nridev0", "type", "veth", "peer", "name", "nridev1").CombinedOutput(); err != nil {
		t.Fatalf("ip link: %v: %s", err, out)
	}
	deleteDevice := func() { _ = exec.Command("ip", "link", "del", "nridev1").Run() } // it ends with a pod that has its other end
	defer deleteDevice()
	n.plugin("10", answer("c", func(a *api.ContainerAdjustment, _ *api.Container) {
		a.AddLinuxNetDevice("nridev0", &api.LinuxNetDevice{Name: "net1"})
	}))
	n.installOCI()
	config := n.pod("nri-net")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	made, err := n.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: shell("c", "exec sleep 1000"), SandboxConfig: config})
	if codeOf(err) == codes.FailedPrecondition && strings.Contains(err.Error(), "NRI plugin 10-test") && strings.Contains(err.Error(), "linux.net_devices") {
		t.Log("the runtime of this Engine cannot do it:", err)
		deleteDevice()
		n.remove(pod)
		n.removeLeftovers()
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetContainerId()
	if _, err := n.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	n.outputs(id, map[string]string{"ip link show net1 >/dev/null && echo there": "there\n"})
	if err := exec.Command("ip", "link", "show", "nridev0").Run(); err == nil {
		t.Error("the node still has the device")
	}
	n.remove(pod)
	n.removeLeftovers()
}

// nriEvents are the events of a pod that is run and removed.
var nriEvents = []string{"RunPodSandbox", "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer", "StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox"}

// TestNRIKilledAtEachEvent ends a plugin, and berthd, at each event of a pod. Nothing may be left, and the pod starts when it is requested again.
func TestNRIKilledAtEachEvent(t *testing.T) {
	for _, who := range []string{"plugin", "berthd"} {
		for _, event := range nriEvents {
			t.Run(event+" kills "+who, func(t *testing.T) {
				n := newNode(t)
				p := &nritest.Plugin{}
				if n.stages() {
					p = n.statePlugin()
				}
				n.plugin("10", p)
				cmd := n.cmd
				p.SetOn(func(e string) error {
					switch {
					case e != event:
					case who == "plugin":
						go p.Stub.Stop()
						time.Sleep(100 * time.Millisecond)
					default:
						_ = cmd.Process.Kill()
					}
					return nil
				})
				pod, _, err := n.whole(n.pod("killed"))
				if err != nil && who == "plugin" {
					t.Errorf("the pod: %v", err)
				}
				if pod != "" {
					_, _ = n.runtime.StopPodSandbox(context.Background(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
					_, _ = n.runtime.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
				}
				if who == "berthd" {
					n.kill()
					n.start()
				}
				if _, _, err := n.whole(n.pod("killed")); err != nil {
					t.Errorf("the pod again: %v", err)
				}
				n.removeAll()
				n.removeLeftovers()
			})
		}
	}
}

// TestNRIFaultyPluginsDoNotBlockPods: a plugin that hangs is disconnected, one that refuses a pod leaves nothing.
func TestNRIFaultyPluginsDoNotBlockPods(t *testing.T) {
	n := newNode(t)
	n.withFlags("--nri-request-timeout", "1s")
	p := n.plugin("10", &nritest.Plugin{})
	p.SetOn(func(event string) error {
		if event == "CreateContainer" || event == "RunPodSandbox" {
			return errors.New("not on this node")
		}
		return nil
	})
	if _, _, err := n.whole(n.pod("refused")); err == nil || !strings.Contains(err.Error(), "not on this node") {
		t.Errorf("%v, want the reason of the plugin", err)
	}
	n.removeAll()
	n.removeLeftovers()
	p.SetOn(func(string) error { time.Sleep(5 * time.Second); return nil })
	start := time.Now()
	pod, _, err := n.whole(n.pod("delayed"))
	if err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("a plugin that hangs has delayed the pod by %v", took)
	}
	n.remove(pod)
	n.removeLeftovers()
}

// TestNRISynchronize: a plugin is sent what runs, also after restarts of berthd and of Docker's containers.
func TestNRISynchronize(t *testing.T) {
	n := newNode(t)
	pod, id := n.begin(n.pod("synced"), shell("c", "exec sleep 1000"))
	for range 2 {
		p := n.plugin("10", &nritest.Plugin{})
		if synced := strings.Join(p.Synced(), " "); !strings.Contains(synced, pod) || !strings.Contains(synced, id) {
			t.Errorf("synchronized %s, want %s and %s", synced, pod, id)
		}
		p.Stub.Stop()
		n.kill()
		n.start()
	}
	n.remove(pod)
	n.removeLeftovers()
}

// TestNRIStartsWithoutAPlugin measures the start of pods with NRI and without. No plugin is connected.
func TestNRIStartsWithoutAPlugin(t *testing.T) {
	n := newNode(t)
	median := func() time.Duration {
		var all []time.Duration
		for range 15 {
			start := time.Now()
			pod, _ := n.begin(n.pod("measured"), shell("c", "exec sleep 1000"))
			all = append(all, time.Since(start))
			n.remove(pod)
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	with := median()
	n.withFlags("--nri=false")
	without := median()
	// Not an error: on a busy machine the times of starts differ by more than what is measured.
	t.Logf("a pod with a container starts in %v with NRI, %v without", with, without)
	n.removeLeftovers()
}
