package container_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/ociedit"
)

// editedConfig returns a container that needs berth's OCI runtime.
func editedConfig() *runtimeapi.ContainerConfig {
	c := config("serve", "all")
	c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		RunAsUser: &runtimeapi.Int64Value{Value: 1000}, Capabilities: &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}},
	}}
	c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/thing"}}
	return c
}

func (f *fixture) put(dir, name, text string) {
	f.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		f.Fatal(err)
	}
}

// runtime returns the HostConfig.Runtime of a container.
func (f *fixture) runtime(id string) string {
	f.Helper()
	seen, err := f.client.ContainerInspect(f.Context(), id)
	if err != nil {
		f.Fatal(err)
	}
	return seen.HostConfig.Runtime
}

func TestContainerThatNeedsTheOCIRuntimeInAPodWithout(t *testing.T) {
	f := newFixture(t)
	if _, err := f.Create(t.Context(), f.pod, editedConfig(), nil); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "run berthd runtime install") {
		t.Errorf("without the OCI runtime: %v", err)
	}
	f.addOCIRuntime()
	f.put(f.files.SpecDir, "default.json", `{"linux": {"rootfsPropagation": "shared"}}`)
	f.put(f.files.SpecDir, "other.json", `{`)
	f.put(f.files.HooksDirs[0], "a.json", `{"version": "1.0.0", "hook": {"path": "/bin/sh"}, "when": {"commands": ["^serve$"]}, "stages": ["poststop"]}`)
	f.put(f.files.HooksDirs[0], "b.json", `{"version": "1.0.0", "hook": {"path": "/bin/ls"}, "when": {"commands": ["^all$"]}, "stages": ["poststop"]}`)
	id, err := f.Create(t.Context(), f.pod, editedConfig(), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ociedit.Read(f.ociDir, id)
	if err != nil {
		t.Fatal(err)
	}
	owner := uint32(1000)
	want := &ociedit.Instructions{
		Version: 1, ContainerID: id, AmbientCapabilities: []string{"CAP_NET_BIND_SERVICE"}, DeviceOwner: &ociedit.Owner{UID: &owner, Paths: []string{"/dev/thing"}},
		Hooks: &ociedit.Hooks{Poststop: []ociedit.Hook{{Path: "/bin/sh"}}}, Patches: got.Patches,
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got.Patches) != 1 || string(got.Patches[0]) != `{"linux":{"rootfsPropagation":"shared"}}` {
		t.Errorf("patches %s (-want +got):\n%s", got.Patches, diff)
	}
	if got := f.runtime(id); got != "berth" {
		t.Errorf("runtime %q", got)
	}
	if err := f.Start(t.Context(), id); err != nil {
		t.Error(err)
	}
	if err := f.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	f.requireNoInstructions("RemoveContainer")
}

func TestContainerThatNeedsNoEditKeepsTheRuntimeOfItsPod(t *testing.T) {
	f := newFixture(t)
	f.addOCIRuntime()
	if got := f.runtime(f.create("serve")); got == "berth" {
		t.Errorf("runtime %q", got)
	}
	f.requireNoInstructions("a create without an edit")
}

func TestFileThatCannotBeUsedRefusesContainers(t *testing.T) {
	f := newFixture(t)
	f.addOCIRuntime()
	f.put(f.files.HooksDirs[0], "a.json", `{"version": "2"}`)
	if _, err := f.Create(t.Context(), f.pod, config("serve"), nil); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), filepath.Join(f.files.HooksDirs[0], "a.json")) {
		t.Errorf("%v, want the name of the file", err)
	}
	f.requireClean("a refused create")
}
