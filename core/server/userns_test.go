package server_test

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/system"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/ociruntime"
)

func TestUserNamespacesAreAnnouncedWithTheRuntime(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	announced := func() (handlers []string) {
		s, err := h.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
		h.must(err)
		for _, handler := range s.GetRuntimeHandlers() {
			if handler.GetName() == "berth" {
				t.Error("berth's own runtime is a runtime handler")
			}
			if handler.GetFeatures().GetUserNamespaces() {
				handlers = append(handlers, handler.GetName())
			}
		}
		return handlers
	}
	if got := announced(); len(got) > 0 {
		t.Errorf("without the runtime: %q", got)
	}
	// details returns the reasons in the verbose status, and whether the feature for the node's network is announced.
	details := func() (reasons map[string]string, hostNetwork bool) {
		s, err := h.runtime.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
		h.must(err)
		h.must(json.Unmarshal([]byte(s.GetInfo()["withoutUserNamespaces"]), &reasons))
		return reasons, s.GetFeatures().GetUserNamespacesHostNetwork()
	}
	if reasons, hostNetwork := details(); !strings.Contains(reasons[""], "run berthd runtime install") || hostNetwork {
		t.Errorf("without the runtime: reasons %v, in the node's network %v", reasons, hostNetwork)
	}
	const kernel = "6.12.1-amd64"
	h.engine.Reload(func(i *system.Info) {
		i.KernelVersion = kernel
		i.Runtimes["crun"] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: "crun"}}
		i.Runtimes["berth"] = system.RuntimeWithStatus{Runtime: system.Runtime{
			Path: "/usr/lib/berth/berth-oci", Args: []string{"--berth-instructions=" + filepath.Join(h.dir, "run", "oci"), "--berth-runtime=runc"},
		}}
	})
	reported := func() bool {
		s, err := h.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
		return err == nil && slices.ContainsFunc(s.GetRuntimeHandlers(), func(handler *runtimeapi.RuntimeHandler) bool { return handler.GetName() == "crun" })
	}
	h.until("the new runtimes are not reported", reported)
	var want []string
	err := ociruntime.NewProber().Probe(engine.Features{Kernel: kernel, StorageDriver: "overlay2", RootDir: h.engine.RootDir})
	if err == nil {
		want = []string{"", "io.containerd.runc.v2", "runc"} // names of one runtime
	}
	if got := announced(); !slices.Equal(got, want) {
		t.Errorf("user namespaces are announced for %q, want %q (this machine: %v)", got, want, err)
	}
	reasons, hostNetwork := details()
	if reasons["crun"] == "" || (reasons[""] == "") != (err == nil) || hostNetwork != (err == nil) {
		t.Errorf("reasons %v, in the node's network %v (this machine: %v)", reasons, hostNetwork, err)
	}
}
