package main

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"berth/core/state"
)

// On a node without plugins nothing is missing; what they did before is still
// taken back.
func TestPodNetworkWithoutPlugins(t *testing.T) {
	dir := t.TempDir()
	notes, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	node, err := state.OpenBucket[string](notes, "node")
	if err != nil {
		t.Fatal(err)
	}
	pods := podNetwork(Config{NetworkPlugin: noCNI, CNIConfDir: filepath.Join(dir, "none"), CNICacheDir: filepath.Join(dir, "cache"), RunDir: filepath.Join(dir, "run")},
		node, slog.New(slog.DiscardHandler))
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

// Agents of networks see what is in /var/run/netns; two daemons on a node must
// not share it, for what one does not know it takes down.
func TestWhereNetworkNamespacesAre(t *testing.T) {
	for run, want := range map[string]string{"/run/berth": "/var/run/netns", "/run/other": ""} {
		if got := netnsDir(Config{RunDir: run}); got != want {
			t.Errorf("with run-dir %s: got %q, want %q", run, got, want)
		}
	}
}
