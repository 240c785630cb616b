package nri

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/go-units"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/testdir"
)

func newRuntime(t *testing.T) *Runtime {
	e := enginetest.New(t)
	return New(Config{
		Options: Options{Enable: true}, Engine: e.Connect(t), Log: slog.New(slog.DiscardHandler),
		NetNS: func(id string, _ int) string { return "/run/netns/" + id },
	})
}

func TestPodForPlugins(t *testing.T) {
	r := newRuntime(t)
	pod := &cache.Sandbox{
		Row:    &runtimeapi.PodSandbox{Id: "p", Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "ns", Uid: "u"}, Labels: map[string]string{"l": "1"}, RuntimeHandler: "h"},
		Status: &runtimeapi.PodSandboxStatus{Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.0.0.1", AdditionalIps: []*runtimeapi.PodIP{{Ip: "fd00::1"}}}},
		Config: &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/kubepods/pod1", Overhead: &runtimeapi.LinuxContainerResources{CpuShares: 7}}},
		Pid:    9, CgroupParent: "/kubepods/pod1",
	}
	want := &api.PodSandbox{
		Id: "p", Name: "web", Uid: "u", Namespace: "ns", Labels: map[string]string{"l": "1"}, RuntimeHandler: "h", Pid: 9, Ips: []string{"10.0.0.1", "fd00::1"},
		Linux: &api.LinuxPodSandbox{
			PodOverhead:  &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{Shares: api.UInt64(7)}},
			PodResources: &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{}}, Resources: &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{}},
			CgroupParent: "/kubepods/pod1", CgroupsPath: "/kubepods/pod1/p",
			Namespaces: []*api.LinuxNamespace{{Type: "mount"}, {Type: "ipc"}, {Type: "pid"}, {Type: "uts"}, {Type: "network", Path: "/run/netns/p"}},
		},
	}
	if diff := cmp.Diff(want, r.pod(pod), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	// A pod in the network of the node has no path that a plugin could move a link to.
	pod.HostNetwork = true
	for _, n := range r.pod(pod).GetLinux().GetNamespaces() {
		if n.GetType() == "network" {
			t.Errorf("namespaces of a pod in the network of the node: %v", n)
		}
	}
}

func TestWhatOnlyDockerKnowsOfAContainer(t *testing.T) {
	r := newRuntime(t)
	limit, swappiness := int64(5), int64(-1)
	c := &api.Container{Id: "c", Linux: &api.LinuxContainer{Resources: linuxResources(nil)}}
	r.addInspected(c, container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{Path: "sh", Args: []string{"-c", "x"}, HostConfig: &container.HostConfig{
			OomScoreAdj: 3, SecurityOpt: []string{"no-new-privileges=true", "seccomp=unconfined"}, NetworkMode: "container:p", PidMode: "host", IpcMode: "container:p",
			Resources: container.Resources{
				CgroupParent: "/kubepods/pod1", PidsLimit: &limit, MemorySwappiness: &swappiness, Ulimits: []*units.Ulimit{{Name: "nofile", Soft: 1, Hard: -1}},
				Devices:        []container.DeviceMapping{{PathOnHost: "/dev/null", PathInContainer: "/dev/x"}},
				DeviceRequests: []container.DeviceRequest{{Driver: "cdi", DeviceIDs: []string{"v.com/c=d"}}},
			},
		}},
		Config: &container.Config{Env: []string{"A=1", "REMOVED"}},
		Mounts: []container.MountPoint{{Type: mount.TypeBind, Source: "/s", Destination: "/d", Propagation: mount.PropagationRSlave}},
	}, engine.Features{CgroupVersion: 2})
	null, _ := HostNode("/dev/null")
	want := &api.Container{
		Id: "c", Args: []string{"sh", "-c", "x"}, Env: []string{"A=1"}, Rlimits: []*api.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 1<<64 - 1}},
		Mounts:     []*api.Mount{{Destination: "/d", Type: "bind", Source: "/s", Options: []string{"rbind", "ro", "rslave"}}},
		CDIDevices: []*api.CDIDevice{{Name: "v.com/c=d"}},
		Linux: &api.LinuxContainer{
			OomScoreAdj: api.Int(3), CgroupsPath: "/kubepods/pod1/c", Namespaces: []*api.LinuxNamespace{{Type: "mount"}, {Type: "ipc"}, {Type: "network"}, {Type: "uts"}},
			Devices:        []*api.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 1, Minor: 3, FileMode: api.FileMode(null.Mode), Uid: api.UInt32(null.UID), Gid: api.UInt32(null.GID)}},
			Resources:      &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{}, Pids: &api.LinuxPids{Limit: 5}},
			SeccompProfile: &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED},
		},
	}
	if diff := cmp.Diff(want, c, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestLibraryRecordsPluginsThatChangeSomething(t *testing.T) {
	r := newRuntime(t)
	m := metrics{r}
	m.RecordPluginAdjustments("10-other", "CreateContainer", &api.ContainerAdjustment{Args: []string{"x"}}, 0, 0) // without a creation
	found := &recording{}
	r.setRecording(found)
	m.RecordPluginAdjustments("20-empty", "CreateContainer", &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{}}, 0, 0)
	m.RecordPluginAdjustments("30-args", "CreateContainer", &api.ContainerAdjustment{Args: []string{"x"}}, 0, 1)
	if strings.Join(found.plugins, " ") != "30-args" || found.unknown {
		t.Errorf("%+v", found)
	}
	newer := &api.ContainerAdjustment{}
	newer.ProtoReflect().SetUnknown([]byte{0xfa, 0x01, 0x00})
	m.RecordPluginAdjustments("40-newer", "CreateContainer", newer, 0, 0)
	if !found.unknown || len(found.plugins) != 2 {
		t.Errorf("%+v", found)
	}
}

// The library returns no variable or device that a plugin has removed.
func TestRemovedVariablesAndDevicesAreKept(t *testing.T) {
	r := newRuntime(t)
	found := &recording{}
	r.setRecording(found)
	removes := &api.ContainerAdjustment{}
	for range 2 {
		removes.RemoveEnv("GONE")
		removes.RemoveEnv("SET_BY_ANOTHER")
		removes.RemoveDevice("/dev/gone")
	}
	metrics{r}.RecordPluginAdjustments("10-removes", "CreateContainer", removes, 0, 0)
	sum := &api.ContainerAdjustment{}
	sum.AddEnv("SET_BY_ANOTHER", "1")
	want := &api.ContainerAdjustment{}
	want.AddEnv("SET_BY_ANOTHER", "1")
	want.RemoveEnv("GONE")
	want.RemoveDevice("/dev/gone")
	if diff := cmp.Diff(want, found.addRemovals(sum), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if sum := found.addRemovals(nil); len(sum.GetEnv()) != 2 {
		t.Errorf("without other adjustments: %v", sum)
	}
}

// Everything works on a nil Runtime, and without plugins nothing is sent.
func TestWithoutNRI(t *testing.T) {
	for _, r := range []*Runtime{New(Config{}), newRuntime(t)} {
		if r != nil {
			close(r.started)
			r.adaptation = &adaptation.Adaptation{}
		}
		ctx, pod := t.Context(), &cache.Sandbox{Row: &runtimeapi.PodSandbox{Id: "p"}}
		created, err := r.CreateContainer(ctx, "c", Created{})
		if err != nil || !created.Empty() || r.Finish(ctx, "c", created) != nil {
			t.Errorf("CreateContainer: %v, %v", created, err)
		}
		change := &runtimeapi.LinuxContainerResources{CpuShares: 7}
		if got, err := r.UpdateContainer(ctx, "c", change); err != nil || got.CRI != change {
			t.Errorf("UpdateContainer: %v, %v", got, err)
		}
		for _, err := range []error{r.RunPodSandbox(ctx, pod), r.UpdatePodSandbox(ctx, pod, nil)} {
			if err != nil {
				t.Error(err)
			}
		}
		r.PostCreateContainer(ctx, "c")
		ended, err := r.BeginStart(ctx, "c")
		ended(ctx, err == nil)
		r.PostUpdateContainer(ctx, "c")
		r.PostUpdatePodSandbox(ctx, "p")
		r.StopContainer(ctx, "c")
		r.StopPodSandbox(ctx, pod)
		r.BeginRemove(ctx, "c")(ctx)
		r.BeginRemovePod(ctx, "p")(ctx)
	}
}

func BenchmarkEventWithoutAPlugin(b *testing.B) {
	r := New(Config{Options: Options{Enable: true}})
	close(r.started)
	r.adaptation = &adaptation.Adaptation{}
	for b.Loop() {
		ended, err := r.BeginStart(b.Context(), "c")
		if err != nil {
			b.Fatal(err)
		}
		ended(b.Context(), true)
	}
}

func TestSocketOwner(t *testing.T) {
	path := filepath.Join(testdir.New(t), "s")
	if pid, ok := SocketOwner(path); ok {
		t.Errorf("no socket belongs to %d", pid)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if pid, ok := SocketOwner(path); !ok || pid != os.Getpid() || !strings.Contains(Process(pid), "PID") {
		t.Errorf("%d, %v, %s, want this process", pid, ok, Process(pid))
	}
	l.Close()
	if pid, ok := SocketOwner(path); ok {
		t.Errorf("a closed socket belongs to %d", pid)
	}
}

func TestReplacedSocketIsNoticed(t *testing.T) {
	r := &Runtime{Config: Config{Options: Options{SocketPath: filepath.Join(testdir.New(t), "s")}}}
	first, err := net.Listen("unix", r.SocketPath)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	own, err := os.Stat(r.SocketPath)
	if err != nil || !r.hasSocket(own) {
		t.Fatalf("own socket: %v", err)
	}
	if err := os.Rename(r.SocketPath, r.SocketPath+".old"); err != nil {
		t.Fatal(err)
	}
	if r.hasSocket(own) {
		t.Error("a socket that was removed is taken for the own one")
	}
	second, err := net.Listen("unix", r.SocketPath)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if r.hasSocket(own) {
		t.Error("the socket of another process is taken for the own one")
	}
}
