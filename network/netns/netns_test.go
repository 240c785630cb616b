package netns

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth/network/networktest"
)

// newConfig returns a Config with both directories the same.
func newConfig(t *testing.T) Config {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run", "netns")
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // if Bind made it a mount point
	return Config{Dir: dir, LegacyDir: dir, Log: slog.New(slog.DiscardHandler)}
}

// files returns the names of the files in dir.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// countMounts returns how many mounts there are on path.
func countMounts(t *testing.T, path string) int {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil {
		t.Fatal(err)
	}
	return len(mounts)
}

func TestBindIsIdempotentAndReplacesAnotherNamespace(t *testing.T) {
	t.Parallel()
	if !networktest.InOwnNamespaces(t) {
		return
	}
	id, cfg := strings.Repeat("c", 64), newConfig(t)
	s := New(cfg)
	first, second := networktest.StartPause(t), networktest.StartPause(t)
	path, err := s.Bind(id, first.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Bind(id, first.Process.Pid); err != nil || again != path {
		t.Errorf("again: got %s, %v, want %s", again, err, path)
	}
	if got := countMounts(t, path); got != 1 {
		t.Errorf("got %d mounts, want 1", got)
	}
	requireContains := func(s *Store, cmd *exec.Cmd, want bool) {
		t.Helper()
		if got := s.Contains(id, cmd.Process.Pid); got != want {
			t.Errorf("Contains: got %v, want %v", got, want)
		}
	}
	requireContains(s, first, true)
	requireContains(s, second, false)

	// A second Store, as after a restart of the daemon, mounts nothing twice.
	next := New(cfg)
	requireContains(next, first, true)
	if got, err := next.List(); err != nil || !slices.Equal(got, []string{id}) {
		t.Errorf("bound: got %q, %v, want %s", got, err, id)
	}
	if got, want := next.PathOrProcess(id, 1), path; got != want {
		t.Errorf("path: got %s, want %s", got, want)
	}
	if _, err := next.Bind(id, second.Process.Pid); err != nil {
		t.Fatal(err)
	}
	requireContains(next, first, false)
	requireContains(next, second, true)
	if got := countMounts(t, path); got != 1 {
		t.Errorf("got %d mounts, want 1", got)
	}
	if got := countMounts(t, filepath.Dir(path)); got != 1 {
		t.Errorf("got %d mounts on the directory, want 1", got)
	}

	networktest.Kill(second)
	requireContains(next, second, false)
	if _, err := next.Bind("dddd", second.Process.Pid); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a process that has ended: got %v, want an error of kind FailedPrecondition", err)
	}
	if _, err := next.Bind("dddd", os.Getpid()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("the daemon's own namespace: got %v, want an error of kind FailedPrecondition", err)
	}
	if err := next.Unbind(id); err != nil {
		t.Fatal(err)
	}
	if got, err := next.List(); err != nil || len(got) > 0 {
		t.Errorf("still bound: %q, %v", got, err)
	}
}

// On a shared mount, which systemd makes of everything, no mount is added for the directory.
func TestBindOnSharedMountAddsNoMountForDirectory(t *testing.T) {
	t.Parallel()
	if !networktest.InOwnNamespaces(t) {
		return
	}
	runDir := t.TempDir()
	if err := unix.Mount("tmpfs", runDir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(runDir, unix.MNT_DETACH) })
	if err := unix.Mount("", runDir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	cfg := newConfig(t)
	cfg.Dir = filepath.Join(runDir, "elsewhere")
	s := New(cfg)
	path, err := s.Bind("eeee", networktest.StartPause(t).Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := path, filepath.Join(runDir, "elsewhere", "berth-eeee"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := countMounts(t, cfg.Dir); got != 0 {
		t.Errorf("got %d mounts on the directory, want none", got)
	}
	if got := countMounts(t, path); got != 1 {
		t.Errorf("got %d mounts, want 1", got)
	}
	if err := s.Unbind("eeee"); err != nil {
		t.Fatal(err)
	}
	if got := countMounts(t, path); got != 0 {
		t.Errorf("after Unbind: got %d mounts, want none", got)
	}
}

// A namespace that an earlier version has bound in another directory stays there until
// another one is bound. Files of other programs in the directory are not touched.
func TestNamespaceInLegacyDirIsFoundAndUnbound(t *testing.T) {
	t.Parallel()
	if !networktest.InOwnNamespaces(t) {
		return
	}
	cfg := newConfig(t)
	id, pod, next := strings.Repeat("e", 64), networktest.StartPause(t), networktest.StartPause(t)
	legacyPath, err := New(cfg).Bind(id, pod.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Dir = filepath.Join(t.TempDir(), "elsewhere")
	t.Cleanup(func() { _ = unix.Unmount(cfg.Dir, unix.MNT_DETACH) })
	s := New(cfg)
	if got, err := s.List(); err != nil || !slices.Equal(got, []string{id}) {
		t.Errorf("bound: got %q, %v, want %s", got, err, id)
	}
	if path, err := s.Bind(id, pod.Process.Pid); err != nil || path != legacyPath || s.PathOrProcess(id, 1) != legacyPath {
		t.Errorf("bound again at %s, %v, path %s; want %s", path, err, s.PathOrProcess(id, 1), legacyPath)
	}
	if !s.Contains(id, pod.Process.Pid) || s.Contains(id, next.Process.Pid) {
		t.Error("Contains mistakes one process for the other")
	}
	path, err := s.Bind(id, next.Process.Pid)
	if want := filepath.Join(cfg.Dir, FileName(id)); err != nil || path != want {
		t.Errorf("another namespace is bound at %s, %v; want %s", path, err, want)
	}
	if bound, err := s.List(); err != nil || IsNetNS(legacyPath) || !s.Contains(id, next.Process.Pid) || len(bound) != 1 {
		t.Errorf("bound are %q, %v", bound, err)
	}
	for _, name := range []string{"berth-test", "berth-" + strings.Repeat("E", 64), "cni-1"} {
		if err := os.WriteFile(filepath.Join(cfg.Dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.List(); err != nil || !slices.Equal(got, []string{id}) {
		t.Errorf("bound: got %q, %v, want %s", got, err, id)
	}
	if err := s.Unbind(id); err != nil {
		t.Fatal(err)
	}
	if got, err := s.List(); err != nil || len(got) > 0 {
		t.Errorf("still bound: %q", got)
	}
	if IsNetNS(path) || len(files(t, cfg.LegacyDir)) > 0 || len(files(t, cfg.Dir)) != 3 {
		t.Errorf("left: %s %q %q", path, files(t, cfg.LegacyDir), files(t, cfg.Dir))
	}
}
