package container_test

import (
	"os"
	"testing"

	"github.com/containerd/errdefs"
	dockercontainer "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/system"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/ociedit"
)

// userNamespace returns the namespaces of a pod with hostUsers: false.
func userNamespace() *runtimeapi.NamespaceOption {
	mapping := []*runtimeapi.IDMapping{{HostId: 131072, Length: 65536}}
	return &runtimeapi.NamespaceOption{
		Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: mapping, Gids: mapping},
	}
}

// addOCIRuntime adds berth's OCI runtime to the Engine.
func (f *fixture) addOCIRuntime() {
	f.Helper()
	f.engine.Reload(func(i *system.Info) {
		i.Runtimes["berth"] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: "/usr/lib/berth/berth-oci", Args: []string{"--berth-instructions=" + f.ociDir}}}
	})
	enginetest.Until(f, "the runtime is not seen", func() bool {
		conn, err := f.docker.Conn()
		return err == nil && conn.Features.Runtimes["berth"].Instructions == f.ociDir && f.cache.Ready(f.Context()) == nil
	})
}

// addPodWithUserNamespace adds berth's OCI runtime to the Engine, and a sandbox in a user namespace.
func (f *fixture) addPodWithUserNamespace() string {
	f.Helper()
	f.addOCIRuntime()
	config, err := protojson.Marshal(&runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "mapped", Namespace: "ns", Uid: "u"}, LogDirectory: "/logs",
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: userNamespace()}},
	})
	if err != nil {
		f.Fatal(err)
	}
	set := labels.Set{Kind: labels.Sandbox, Config: string(config)}
	created, err := f.client.ContainerCreate(f.Context(), &dockercontainer.Config{
		Image: "server", Cmd: []string{"pause"}, Labels: set.Encode(), NetworkDisabled: true,
	}, &dockercontainer.HostConfig{IpcMode: dockercontainer.IPCModeShareable, Init: new(bool), Runtime: "berth"}, nil, nil,
		names.Name{Container: names.Pod, Pod: "mapped", Namespace: "ns", UID: "u"}.String())
	if err != nil {
		f.Fatal(err)
	}
	if err := f.client.ContainerStart(f.Context(), created.ID, dockercontainer.StartOptions{}); err != nil {
		f.Fatal(err)
	}
	enginetest.Until(f, "the sandbox is not seen", func() bool {
		_, err := f.cache.Refresh(f.Context(), created.ID)
		return err == nil
	})
	return created.ID
}

// mappedConfig returns a container for such a pod.
func mappedConfig() *runtimeapi.ContainerConfig {
	c := config("serve")
	c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: userNamespace()}}
	return c
}

func TestContainerInAUserNamespaceFromCreateToRemove(t *testing.T) {
	f := newFixture(t)
	pod := f.addPodWithUserNamespace()
	c := mappedConfig()
	mapping := []*runtimeapi.IDMapping{{HostId: 131072, Length: 65536}}
	c.Mounts = []*runtimeapi.Mount{
		{HostPath: t.TempDir(), ContainerPath: "/data", UidMappings: mapping, GidMappings: mapping}, {HostPath: t.TempDir(), ContainerPath: "/node"},
	}
	id, err := f.Create(t.Context(), pod, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	sandbox, err := f.cache.Sandbox(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	process, err := ociedit.FindProcess(sandbox.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ids := []ociedit.IDMapping{{HostID: 131072, Size: 65536}}
	want := &ociedit.Instructions{Version: 1, ContainerID: id, Sandbox: &process, UserNamespace: &ociedit.UserNamespace{
		UIDMappings: ids, GIDMappings: ids, IDMapOthers: true,
		Mounts: []ociedit.MountMapping{{Destination: "/data", UIDMappings: ids, GIDMappings: ids}, {Destination: "/node"}},
	}}
	got, err := ociedit.Read(f.ociDir, id)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if seen, err := f.client.ContainerInspect(t.Context(), id); err != nil || seen.HostConfig.Runtime != "berth" {
		t.Errorf("runtime %q, %v", seen.HostConfig.Runtime, err)
	}
	if err := f.Start(t.Context(), id); err != nil {
		t.Error(err)
	}
	if _, err := ociedit.Read(f.ociDir, id); err != nil {
		t.Errorf("after the start: %v", err) // docker restart reads them again
	}
	if err := f.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	f.requireNoInstructions("RemoveContainer")
}

func (f *fixture) requireNoInstructions(after string) {
	f.Helper()
	if left, err := ociedit.List(f.ociDir); err != nil || len(left) > 0 {
		f.Errorf("instructions left after %s: %v, %v", after, left, err)
	}
}

func TestContainersThatDoNotFitTheirPodAreRefused(t *testing.T) {
	f := newFixture(t)
	pod := f.addPodWithUserNamespace()
	if _, err := f.Create(t.Context(), pod, config("serve"), nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("without the user namespace of its pod: %v", err)
	}
	if _, err := f.Create(t.Context(), f.pod, mappedConfig(), nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("with a user namespace in a pod without: %v", err)
	}
	c := config("serve")
	c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/data", UidMappings: []*runtimeapi.IDMapping{{HostId: 1, Length: 1}}}}
	if _, err := f.Create(t.Context(), f.pod, c, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("with a mapped mount in a pod without: %v", err)
	}
	f.requireNoInstructions("refused creates")
}

func TestFailedCreateLeavesNoInstructions(t *testing.T) {
	f := newFixture(t)
	pod := f.addPodWithUserNamespace()
	f.logs.broken = os.ErrPermission // the step after the instructions
	if _, err := f.Create(t.Context(), pod, mappedConfig(), nil); err == nil {
		t.Error("a container without its log was created")
	}
	f.requireNoInstructions("a failed create")
	f.logs.broken = nil

	// What no call could remove goes with the garbage collection.
	id, err := f.Create(t.Context(), pod, mappedConfig(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.client.ContainerRemove(t.Context(), id, dockercontainer.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	enginetest.Until(t, "the cache has the removed container", func() bool { // its first round must not be before that
		_, err := f.cache.Container(t.Context(), id)
		return errdefs.IsNotFound(err)
	})
	enginetest.Background(t, f.RunGC)
	enginetest.Until(t, "the instructions stay", func() bool {
		left, err := ociedit.List(f.ociDir)
		return err == nil && len(left) == 0
	})
}
