package daemon

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"berth/core/state"
	"berth/network"
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
	if ids := append(pods.Bound(), pods.Attached()...); len(ids) > 0 {
		t.Errorf("there are pods: %v", ids)
	}
	if err := pods.Detach(t.Context(), nil, strings.Repeat("f", 64)); err != nil {
		t.Errorf("detach: %v", err)
	}
}
