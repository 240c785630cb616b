package network

import (
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A daemon that was killed leaves its plugins running. The next one ends them, and nothing else.
func TestEndOrphansKillsPluginsOfAnEarlierDaemon(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	id := strings.Repeat("a", 64)
	running := map[string]<-chan error{}
	for name, netns := range map[string]string{
		"plugin": filepath.Join(dir, "berth-"+id), "plugin of an older version": filepath.Join(dir, "run", "netns", "berth-"+id),
		"other directory": filepath.Join(dir, "other", "berth-"+id), "other runtime": filepath.Join(dir, "cni-"+id), "no pod": filepath.Join(dir, "berth-test"), "none": "",
	} {
		cmd := exec.Command("sleep", "1000")
		cmd.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + id, "CNI_NETNS=" + netns}
		if err := cmd.Start(); err != nil {
			t.Skip(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		running[name] = ended
		t.Cleanup(func() { _ = cmd.Process.Kill() })
	}
	New(Config{NetNSDir: dir, RunDir: filepath.Join(dir, "run"), CacheDir: t.TempDir(), ConfDir: t.TempDir()}, slog.New(slog.DiscardHandler)).EndOrphans()
	for name, ended := range running {
		orphan := strings.HasPrefix(name, "plugin")
		select {
		case <-ended:
			if !orphan {
				t.Errorf("%s was killed", name)
			}
		case <-time.After(map[bool]time.Duration{true: 10 * time.Second}[orphan]):
			if orphan {
				t.Errorf("%s was not killed", name)
			}
		}
	}
}
