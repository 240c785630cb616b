package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/core/state"
	"berth/network"
	"berth/network/cnitemplate"
)

// With Docker's own network a node without plugins is ready, and pods that were attached by plugins
// before can be detached.
func TestBridgeNeedsNoPluginsAndDetachesOlderPods(t *testing.T) {
	dir := t.TempDir()
	store, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	node, err := state.OpenBucket[string](store, "node")
	if err != nil {
		t.Fatal(err)
	}
	pods := newPodNetwork(Config{Bridge: true, Network: network.Config{
		ConfDir: filepath.Join(dir, "none"), CacheDir: filepath.Join(dir, "cache"), RunDir: filepath.Join(dir, "run"),
	}}, node, slog.New(slog.DiscardHandler))
	if err := pods.Status(t.Context()); err != nil {
		t.Errorf("status: %v", err)
	}
	for what, list := range map[string]func() ([]string, error){"bound": pods.Bound, "attached": pods.Attached} {
		if ids, err := list(); err != nil || len(ids) > 0 {
			t.Errorf("%s: %v, %v, want no pods", what, ids, err)
		}
	}
	if err := pods.Detach(t.Context(), nil, strings.Repeat("f", 64)); err != nil {
		t.Errorf("detach: %v", err)
	}
}

// What the kubelet has sent outlives the daemon, also if there is an option pod-cidr, until the operator changes that.
func TestPodCIDROfTheKubeletOutlivesTheDaemon(t *testing.T) {
	dir := t.TempDir()
	store, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	node, err := state.OpenBucket[string](store, "node")
	if err != nil {
		t.Fatal(err)
	}
	template, err := cnitemplate.Load(cnitemplate.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	start := func(option, want string) PodNetwork {
		t.Helper()
		pods := newPodNetwork(Config{Network: network.Config{
			ConfDir: filepath.Join(dir, "net.d"), CacheDir: filepath.Join(dir, "cache"), RunDir: filepath.Join(dir, "run"), PodCIDR: option, Template: template,
		}}, node, slog.New(slog.DiscardHandler))
		text, _ := os.ReadFile(filepath.Join(dir, "net.d", cnitemplate.FileName)) // "" while the file does not exist
		if (want == "") != (len(text) == 0) || !strings.Contains(string(text), want) {
			t.Errorf("with pod-cidr %q the configuration is %s, want %s", option, text, want)
		}
		return pods
	}
	start("", "")
	pods := start("10.1.0.0/24", "10.1.0.0/24")
	if err := pods.SetPodCIDR("10.2.0.0/24"); err != nil {
		t.Fatal(err)
	}
	start("10.1.0.0/24", "10.2.0.0/24")
	start("", "10.2.0.0/24")
	start("10.3.0.0/24", "10.3.0.0/24")
}
