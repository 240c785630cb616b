package specedit

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cdi"
	"berth/core/engine"
	"berth/core/ociedit"
	"berth/core/podpolicy"
)

const dir = "/run/berth/oci"

// features returns an Engine with berth's OCI runtime, the cgroup driver systemd and cgroup v2.
func features() engine.Features {
	return engine.Features{CgroupDriver: "systemd", CgroupVersion: 2, DefaultRuntime: "runc", Runtimes: map[string]engine.Runtime{
		"runc": {RuncShim: true}, "crun": {RuncShim: true}, "kata": {}, "berth": {RuncShim: true, Instructions: dir}, "berth-mine": {RuncShim: true},
	}}
}

func withoutRuntime() engine.Features {
	f := features()
	delete(f.Runtimes, "berth")
	return f
}

type security = *runtimeapi.LinuxContainerSecurityContext

// container returns a container with changes.
func container(change ...func(*Container, security)) Container {
	sc := &runtimeapi.LinuxContainerSecurityContext{}
	c := Container{Dir: dir, Pod: &runtimeapi.PodSandboxConfig{}, Config: &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: sc, Resources: &runtimeapi.LinuxContainerResources{}}}}
	for _, f := range change {
		f(&c, sc)
	}
	return c
}

func id(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

var (
	patches = []json.RawMessage{json.RawMessage(`{"process":{"noNewPrivileges":true}}`)}
	hooks   = &ociedit.Hooks{Poststop: []ociedit.Hook{{Path: "/bin/end"}}}
	users   = &ociedit.UserNamespace{UIDMappings: []ociedit.IDMapping{{HostID: 1, Size: 2}}, GIDMappings: []ociedit.IDMapping{{HostID: 1, Size: 2}}}
)

func ambient(c *Container, s security) {
	s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"net_bind_service", "CAP_CHOWN"}, DropCapabilities: []string{"CHOWN"}}
}

func withFiles(c *Container, _ security)  { c.Files = Files{Patches: patches} }
func withHooks(c *Container, _ security)  { c.Files = Files{Hooks: hooks} }
func ownDevices(c *Container, _ security) { c.Options.DeviceOwnership = true }
func device(c *Container, s security) {
	s.RunAsUser = id(107)
	c.Config.Devices = []*runtimeapi.Device{{HostPath: "/dev/kvm", ContainerPath: "/dev/kvm"}, {HostPath: "/dev/snd", ContainerPath: "/dev/sound", Permissions: "r"}}
}
func podUTS(c *Container, _ security) { c.Options.PodUTSNamespace = true }
func privileged(c *Container, s security) {
	c.Options.WithoutHostDevices, s.Privileged = true, true
}
func withCDI(c *Container, _ security) {
	c.CDI = cdi.Edits{Devices: []ociedit.Device{{Path: "/dev/gpu", Type: "c"}}, Hooks: &ociedit.Hooks{CreateContainer: []ociedit.Hook{{Path: "/bin/cdi"}}}}
}
func unified(c *Container, _ security) {
	c.Config.Linux.Resources.Unified = map[string]string{"memory.high": "1048576"}
}

func TestInstructionsOfContainers(t *testing.T) {
	owner := uint32(107)
	for name, tt := range map[string]struct {
		container Container
		want      ociedit.Instructions
	}{
		"nothing":              {container(), ociedit.Instructions{}},
		"a patch of a file":    {container(withFiles), ociedit.Instructions{Patches: patches}},
		"hooks of files":       {container(withHooks), ociedit.Instructions{Hooks: hooks}},
		"ambient capabilities": {container(ambient), ociedit.Instructions{AmbientCapabilities: []string{"CAP_NET_BIND_SERVICE"}}},
		"the owner of devices": {container(ownDevices, device), ociedit.Instructions{DeviceOwner: &ociedit.Owner{UID: &owner, Paths: []string{"/dev/kvm", "/dev/sound"}}}},
		"the group of devices": {container(ownDevices, device, func(_ *Container, s security) { s.RunAsUser, s.RunAsGroup = id(0), id(107) }),
			ociedit.Instructions{DeviceOwner: &ociedit.Owner{GID: &owner, Paths: []string{"/dev/kvm", "/dev/sound"}}}},
		"devices, without the option":       {container(device), ociedit.Instructions{}},
		"devices of root":                   {container(ownDevices, device, func(_ *Container, s security) { s.RunAsUser = id(0) }), ociedit.Instructions{}},
		"no devices":                        {container(ownDevices, func(_ *Container, s security) { s.RunAsUser = id(107) }), ociedit.Instructions{}},
		"devices of a privileged container": {container(ownDevices, device, func(_ *Container, s security) { s.Privileged = true }), ociedit.Instructions{}},
		"the UTS namespace of the pod":      {container(podUTS), ociedit.Instructions{JoinNamespaces: []string{"uts"}}},
		"the UTS namespace of the node": {container(podUTS, func(c *Container, _ security) {
			c.Pod.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}}
		}), ociedit.Instructions{}},
		"a checkpoint":               {container(func(c *Container, _ security) { c.Restore = &ociedit.Restore{Dir: "/a"} }), ociedit.Instructions{Restore: &ociedit.Restore{Dir: "/a"}}},
		"privileged without devices": {container(privileged), ociedit.Instructions{HostDevices: &ociedit.HostDevices{}}},
		"privileged with its own devices": {container(privileged, device), ociedit.Instructions{
			HostDevices: &ociedit.HostDevices{Allowed: []ociedit.DeviceAccess{{Path: "/dev/kvm", Access: "rwm"}, {Path: "/dev/sound", Access: "r"}}}}},
		"not privileged": {container(func(c *Container, _ security) { c.Options.WithoutHostDevices = true }), ociedit.Instructions{}},
		"CDI, and hooks of files": {container(withCDI, withHooks), ociedit.Instructions{
			Devices: []ociedit.Device{{Path: "/dev/gpu", Type: "c"}}, Hooks: &ociedit.Hooks{CreateContainer: []ociedit.Hook{{Path: "/bin/cdi"}}, Poststop: hooks.Poststop}}},
		"a user namespace": {container(func(c *Container, _ security) { c.UserNS, c.Runtime = users, "berth" }), ociedit.Instructions{UserNamespace: users}},
		"cgroup settings":  {container(unified), ociedit.Instructions{Unified: map[string]string{"memory.high": "1048576"}}},
	} {
		got, runtime, err := tt.container.Instructions(features())
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		if want := map[bool]string{true: "berth"}[tt.want.Changes()]; runtime != want {
			t.Errorf("%s: runtime %q, want %q", name, runtime, want)
		}
	}
}

// Containers without instructions cannot have berth's runtime, whatever their pod has.
func TestRuntimeOfContainersInPodsWithTheOCIRuntime(t *testing.T) {
	for runtime, want := range map[string]string{"": "", "runc": "runc", "crun": "crun", "kata": "kata", "berth": "runc", "berth-crun": "crun", "berth-mine": "berth-mine"} {
		c := container()
		c.Runtime = runtime
		if i, got, err := c.Instructions(features()); err != nil || got != want || i.Changes() {
			t.Errorf("%q: %q, %v, %v; want %q", runtime, got, i, err, want)
		}
	}
	c := container(podUTS)
	c.Runtime = "kata"
	if i, got, err := c.Instructions(features()); err != nil || got != "kata" || i.Changes() {
		t.Errorf("UTS namespace of a pod with a shim of its own: %q, %v, %v", got, i, err)
	}
}

func TestRefusedWithoutTheOCIRuntime(t *testing.T) {
	for name, c := range map[string]Container{
		"patches of OCI specs": container(withFiles), "OCI hooks": container(withHooks), "ambient capabilities": container(ambient),
		podpolicy.DeviceOwnershipOption: container(ownDevices, device), podpolicy.PodUTSNamespaceOption: container(podUTS), podpolicy.WithoutHostDevicesOption: container(privileged),
		"CDI devices": container(withCDI),
	} {
		if _, _, err := c.Instructions(withoutRuntime()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "run berthd runtime install") {
			t.Errorf("%s: %v", name, err)
		}
		c.Dir = "/run/other"
		if _, _, err := c.Instructions(features()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "this berthd writes them to /run/other") {
			t.Errorf("%s, another directory: %v", name, err)
		}
		c.Dir, c.Runtime = dir, "kata"
		if _, _, err := c.Instructions(features()); name != podpolicy.PodUTSNamespaceOption && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s, a shim of its own: %v", name, err)
		}
	}
	// These are written right after the start instead.
	for _, f := range []engine.Features{withoutRuntime(), {CgroupDriver: "systemd", CgroupVersion: 2}} {
		if i, runtime, err := container(unified).Instructions(f); err != nil || runtime != "" || i.Changes() {
			t.Errorf("cgroup settings: %v, %q, %v", i, runtime, err)
		}
	}
	if Installed("berth", dir, withoutRuntime()) || !Installed("", dir, features()) || !Installed("berth", dir, features()) || Installed("crun", dir, features()) || Installed("", "", features()) {
		t.Error("Installed does not agree with Runtime")
	}
}

func TestInstructionsOfSandboxes(t *testing.T) {
	for name, s := range map[string]Sandbox{
		"nothing": {Dir: dir}, "a patch": {Dir: dir, Files: Files{Patches: patches}}, "a user namespace": {Dir: dir, UserNS: users}, "hooks": {Dir: dir, Files: Files{Hooks: hooks}},
	} {
		i, runtime, err := s.Instructions(features())
		if want := map[bool]string{true: "berth"}[name == "a patch" || name == "a user namespace"]; err != nil || runtime != want || i.Changes() != (want != "") || i.Hooks != nil {
			t.Errorf("%s: %v, runtime %q, %v; want %q", name, i, runtime, err, want)
		}
		if _, _, err := s.Instructions(withoutRuntime()); i.Changes() != errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s, without the runtime: %v", name, err)
		}
	}
}

func TestCgroupSettingsBeforeTheFirstInstruction(t *testing.T) {
	c := container(func(c *Container, _ security) {
		*c.Config.Linux.Resources = runtimeapi.LinuxContainerResources{
			MemoryLimitInBytes: 64 << 20,
			Unified: map[string]string{
				"memory.high": "1048576", "memory.oom.group": "1", "memory.low": "1M", "memory.swap.max": "0", "io.max": "8:0 rbps=1\n8:16 rbps=1\n", "cpu.weight": "idle", "pids.max": "max",
			},
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}},
		}
	})
	want := ociedit.Instructions{
		Unified: map[string]string{"memory.high": "1048576", "memory.oom.group": "1", "pids.max": "max"},
		Patches: []json.RawMessage{json.RawMessage(`{"linux":{"resources":{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}}}`)},
	}
	got, _, err := c.Instructions(features())
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	f := features()
	f.CgroupDriver = "cgroupfs" // they are written before the start
	if got, runtime, err := c.Instructions(f); err != nil || got.Changes() || runtime != "" {
		t.Errorf("cgroupfs: %v, %q, %v", got, runtime, err)
	}
	// A patch of a file stays before them, and is not changed.
	shared := append(make([]json.RawMessage, 0, 2), patches...)
	c.Files.Patches = shared
	if got, _, err := c.Instructions(features()); err != nil || len(got.Patches) != 2 || string(got.Patches[0]) != string(patches[0]) || shared[:2][1] != nil {
		t.Errorf("with a file: %s, %v", got.Patches, err)
	}
	c.Config.Linux.Resources.Unified["no/file"] = "1"
	if _, _, err := c.Instructions(features()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a file with a path: %v", err)
	}
}

func TestCapabilities(t *testing.T) {
	for name, tt := range map[string]struct {
		c                  *runtimeapi.Capability
		add, drop, ambient string
	}{
		"none":                   {nil, "", "", ""},
		"dropped after all":      {&runtimeapi.Capability{AddCapabilities: []string{"net_admin", "CAP_SYS_TIME"}, DropCapabilities: []string{"NET_ADMIN"}}, "CAP_SYS_TIME", "CAP_NET_ADMIN", ""},
		"all, and none":          {&runtimeapi.Capability{AddCapabilities: []string{"all"}, DropCapabilities: []string{"ALL"}}, "", "ALL", ""},
		"ambient ones alone":     {&runtimeapi.Capability{AddAmbientCapabilities: []string{"CHOWN"}, DropCapabilities: []string{"ALL"}}, "CAP_CHOWN", "ALL", "CAP_CHOWN"},
		"an ambient one dropped": {&runtimeapi.Capability{AddAmbientCapabilities: []string{"CHOWN"}, DropCapabilities: []string{"CHOWN"}}, "", "CAP_CHOWN", ""},
	} {
		add, drop, ambient, err := Capabilities(tt.c)
		if got := []string{strings.Join(add, " "), strings.Join(drop, " "), strings.Join(ambient, " ")}; err != nil || !cmp.Equal(got, []string{tt.add, tt.drop, tt.ambient}) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, _, _, err := Capabilities(&runtimeapi.Capability{AddAmbientCapabilities: []string{"all"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("all ambient capabilities: %v", err)
	}
}

func TestCheckpointsThatCannotBeRestored(t *testing.T) {
	checkpoint := func(c *Container, _ security) { c.Restore = &ociedit.Restore{Dir: "/a"} }
	for name, tt := range map[string]struct {
		container Container
		features  engine.Features
		want      string
	}{
		"no OCI runtime": {container(checkpoint), withoutRuntime(), "containers that are restored from a checkpoint need the OCI runtime berth"},
		"terminal":       {container(checkpoint, func(c *Container, _ security) { c.Config.Tty = true }), features(), "with a terminal"},
		"user namespace": {container(checkpoint, func(c *Container, _ security) { c.UserNS = &ociedit.UserNamespace{} }), features(), "in a pod with a user namespace"},
		"another shim":   {container(checkpoint, func(c *Container, _ security) { c.Runtime = "kata" }), features(), "has a containerd shim of its own"},
	} {
		if _, _, err := tt.container.Instructions(tt.features); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
