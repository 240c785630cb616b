package sandbox_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"berth/core/ociedit"
)

// putPatch writes the patch of the default runtime handler.
func (e *env) putPatch(text string) {
	e.Helper()
	dir := filepath.Join(e.dir, "spec.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		e.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "default.json"), []byte(text), 0o600); err != nil {
		e.Fatal(err)
	}
}

func TestPauseContainerIsPatched(t *testing.T) {
	e := newEnv(t)
	e.putPatch(`{"process": {"noNewPrivileges": true}}`)
	if _, err := e.Run(t.Context(), pod(), ""); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "patches of OCI specs need the OCI runtime berth") {
		t.Errorf("without the OCI runtime: %v", err)
	}
	e.requireClean("a refused Run")
	e.installOCI()
	id, err := e.Run(t.Context(), pod(), "")
	if err != nil {
		t.Fatal(err)
	}
	instructions, err := ociedit.Read(filepath.Join(e.dir, "oci"), id)
	if err != nil || len(instructions.Patches) != 1 || string(instructions.Patches[0]) != `{"process":{"noNewPrivileges":true}}` || instructions.Sandbox != nil {
		t.Errorf("instructions %+v, %v", instructions, err)
	}
	if seen, err := e.client.ContainerInspect(t.Context(), id); err != nil || seen.HostConfig.Runtime != "berth" {
		t.Errorf("runtime %q, %v", seen.HostConfig.Runtime, err)
	}
	if err := e.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	e.putPatch(`{"linux": null}`)
	if _, err := e.Run(t.Context(), pod(), ""); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "default.json: changes linux.namespaces") {
		t.Errorf("with a patch of namespaces: %v", err)
	}
	e.requireClean("RemovePodSandbox")
}
