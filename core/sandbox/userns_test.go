package sandbox_test

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/system"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
	"berth/core/ociedit"
)

// podWithUserNamespace returns the config of a pod with hostUsers: false.
func podWithUserNamespace() *runtimeapi.PodSandboxConfig {
	p := pod()
	mapping := []*runtimeapi.IDMapping{{HostId: 131072, Length: 65536}}
	p.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
		UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: mapping, Gids: mapping},
	}}}
	return p
}

// installOCI adds berth's OCI runtime to the Engine.
func (e *env) installOCI() {
	e.Helper()
	dir := filepath.Join(e.dir, "oci")
	e.engine.Reload(func(i *system.Info) {
		i.Runtimes["berth"] = system.RuntimeWithStatus{Runtime: system.Runtime{
			Path: "/usr/lib/berth/berth-oci", Args: []string{"--berth-instructions=" + dir, "--berth-runtime=runc"},
		}}
	})
	enginetest.Until(e, "the runtime is not reported", func() bool {
		conn, err := e.docker.Conn()
		return err == nil && conn.Features.Runtimes["berth"].Instructions == dir && e.cache.Ready(e.Context()) == nil
	})
}

func TestPodWithUserNamespaceFromRunToRemove(t *testing.T) {
	e := newEnv(t)
	e.installOCI()
	atStart := 0
	e.engine.On("POST /containers/{id}/start", func() {
		ids, err := ociedit.List(filepath.Join(e.dir, "oci"))
		if atStart = len(ids); err != nil {
			t.Error(err)
		}
	})
	config := podWithUserNamespace()
	id, err := e.Run(t.Context(), config, "")
	if err != nil {
		t.Fatal(err)
	}
	if atStart != 1 {
		t.Errorf("%d containers had instructions when the pause container was started, want 1", atStart)
	}
	instructions, err := ociedit.Read(filepath.Join(e.dir, "oci"), id)
	if err != nil || instructions.UserNamespace == nil || instructions.Sandbox != nil || instructions.UserNamespace.UIDMappings[0].HostID != 131072 || !instructions.UserNamespace.IDMapOthers {
		t.Errorf("instructions %+v, %v", instructions, err)
	}
	seen, err := e.client.ContainerInspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if got := seen.HostConfig; got.Runtime != "berth" || got.Sysctls["net.ipv4.ping_group_range"] != "0 65535" {
		t.Errorf("runtime %q, sysctls %v", got.Runtime, got.Sysctls)
	}
	status, err := e.Status(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := status.Status.GetLinux().GetNamespaces().GetOptions(), config.GetLinux().GetSecurityContext().GetNamespaceOptions(); !proto.Equal(got, want) {
		t.Errorf("namespaces in the status: %v, want %v", got, want)
	}
	if status.Row.GetRuntimeHandler() != "" {
		t.Errorf("runtime handler %q", status.Row.GetRuntimeHandler())
	}
	if err := e.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	e.requireClean("RemovePodSandbox")
}

// The settings of the node's network must stay as they are.
func TestPodWithUserNamespaceInTheNodesNetwork(t *testing.T) {
	e := newEnv(t)
	e.installOCI()
	config := podWithUserNamespace()
	config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	id, err := e.Run(t.Context(), config, "")
	if err != nil {
		t.Fatal(err)
	}
	seen, err := e.client.ContainerInspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if got := seen.HostConfig; got.Runtime != "berth" || !got.NetworkMode.IsHost() || len(got.Sysctls) > 0 {
		t.Errorf("runtime %q, network %q, sysctls %v", got.Runtime, got.NetworkMode, got.Sysctls)
	}
	if err := e.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	e.requireClean("RemovePodSandbox")
}

func TestPodWithUserNamespaceNeedsTheRuntime(t *testing.T) {
	e := newEnv(t)
	if _, err := e.Run(t.Context(), podWithUserNamespace(), ""); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "run berthd runtime install") {
		t.Errorf("%v, want the command that installs it", err)
	}
	e.requireClean("a refused Run")
	e.installOCI()
	if _, err := e.Run(t.Context(), pod(), "berth"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("berth's own runtime as a handler: %v", err)
	}
	e.engine.FailOnce("POST /containers/{id}/start", http.StatusInternalServerError, 1)
	if _, err := e.Run(t.Context(), podWithUserNamespace(), ""); err == nil {
		t.Error("a failed start is no error")
	}
	e.requireClean("a failed start")
}
