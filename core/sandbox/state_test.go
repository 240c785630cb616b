package sandbox_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/core/sandbox"
	"berth/core/state"
)

// berth before 1.1 kept the updates of sandboxes in the bucket of containers.
func TestOpenStateMovesSandboxUpdatesOfEarlierReleases(t *testing.T) {
	dir := t.TempDir()
	pod, container, torn := strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)
	write := func(bucket, name, text string) {
		t.Helper()
		path := filepath.Join(dir, "v1", bucket, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("updates", pod, `{"podSandboxId":"`+pod+`","overhead":{"cpuShares":"2"},"resources":{"cpuShares":"512","memoryLimitInBytes":"1048576"}}`)
	write("updates", container, `{"cpuShares":"100","unified":{"memory.high":"max"}}`)
	write("updates", torn, `{"podSandboxId":"`)
	write("updates", ".123", `{"podSandboxId":"`+pod+`"}`)
	write("sandboxes", "k8s_POD_web_ns_u_0", `{"Name":"k8s_POD_web_ns_u_0","Suffix":"","ID":"`+pod+`","Plan":null}`)
	for _, when := range []string{"at the first start", "at the next start"} {
		store, err := state.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		s, err := sandbox.OpenState(store)
		if err != nil {
			t.Fatal(err)
		}
		got, ok, err := s.Updates.Get(pod)
		if err != nil || !ok || got.GetPodSandboxId() != pod || got.GetResources().GetCpuShares() != 512 || got.GetOverhead().GetCpuShares() != 2 {
			t.Errorf("%s: update of the sandbox = %v, %t", when, got, ok)
		}
		if names, err := s.Updates.Keys(); err != nil || !slices.Equal(names, []string{pod}) {
			t.Errorf("%s: sandboxes with updates = %q, %v, want one", when, names, err)
		}
		left, err := filepath.Glob(filepath.Join(dir, "v1", "updates", "[^.]*"))
		if want := []string{filepath.Join(dir, "v1", "updates", container), filepath.Join(dir, "v1", "updates", torn)}; err != nil || !slices.Equal(left, want) {
			t.Errorf("%s: records of containers = %q, %v, want %q", when, left, err, want)
		}
	}
}
