package logs_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/core/engine/enginetest"
	"berth/core/logs"
)

// nonLogs create files that cannot be a log, by what the error calls them.
var nonLogs = map[string]func(n *node, path string) error{
	"named pipe": func(_ *node, path string) error { return unix.Mkfifo(path, 0o600) },
	"directory":  func(_ *node, path string) error { return os.Mkdir(path, 0o755) },
	"symbolic link": func(n *node, path string) error {
		return os.Symlink(n.protectedFile(), path)
	},
	"hard link": func(n *node, path string) error { return os.Link(n.protectedFile(), path) },
	"socket": func(_ *node, path string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err == nil {
			l.SetUnlinkOnClose(false)
			err = l.Close()
		}
		return err
	},
	"device": func(n *node, path string) error {
		err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
		if err != nil {
			n.t.Skipf("cannot make a device: %v", err)
		}
		return err
	},
}

// protectedFile creates a file of the node that no log may change.
func (n *node) protectedFile() string {
	n.t.Helper()
	path := filepath.Join(n.dir, "protected")
	if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if text, err := os.ReadFile(path); err != nil || string(text) != "before" {
			n.t.Errorf("the protected file contains %.200q, %v", text, err)
		}
	})
	return path
}

// withTimeout returns the result of do, which must not hang.
func withTimeout(t *testing.T, what string, do func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-time.After(enginetest.WaitTimeout):
		t.Fatalf("%s hangs", what)
		return nil
	}
}

// checkRefused checks that err says what is at the path of the log.
func checkRefused(t *testing.T, what, kind string, err error) {
	t.Helper()
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), kind) || !strings.Contains(err.Error(), "0.log") {
		t.Errorf("%s: %v, want FailedPrecondition that says %q and where", what, err, kind)
	}
}

func TestCreateRefusesNonLogFiles(t *testing.T) {
	t.Parallel()
	for kind, put := range nonLogs {
		for _, mode := range []logs.Mode{logs.ModeCRI, logs.ModeFollow, logs.ModeSymlink} {
			if kind == "symbolic link" {
				continue // that of an earlier container: it is replaced
			}
			t.Run(kind+", "+string(mode), func(t *testing.T) {
				n := newNode(t, mode)
				if err := os.MkdirAll(filepath.Dir(n.path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := put(n, n.path); err != nil {
					t.Fatal(err)
				}
				checkRefused(t, "open", kind, withTimeout(t, "open", func() error { return n.logs.Create("c1", n.file(), n.logDir(), n.path) }))
				err := withTimeout(t, "close", func() error { return n.logs.Remove(t.Context(), "c1", n.source, n.logDir(), n.path) })
				if err != nil {
					t.Errorf("close: %v", err)
				}
				if _, err := os.Lstat(n.path); err != nil {
					t.Errorf("Close has removed a file that is not a log: %v", err)
				}
			})
		}
	}
}

// The log continues in the old file until a new one can be created.
func TestReopenRefusesNonLogFiles(t *testing.T) {
	t.Parallel()
	for kind, put := range nonLogs {
		t.Run(kind, func(t *testing.T) {
			n := newNode(t, logs.ModeCRI)
			n.create()
			n.printLines(4)
			n.logs.Observe(t.Context(), n.inspected(true))
			n.waitForContent(n.path, wantRecords(1, 4))
			older := n.path + ".1"
			if err := os.Rename(n.path, older); err != nil {
				t.Fatal(err)
			}
			if err := put(n, n.path); err != nil {
				t.Fatal(err)
			}
			checkRefused(t, "reopen", kind, withTimeout(t, "reopen", func() error { return n.logs.Reopen(t.Context(), "c1") }))
			n.printLines(3)
			n.waitForContent(older, wantRecords(1, 7))
			if err := os.Remove(n.path); err != nil {
				t.Fatal(err)
			}
			if err := n.logs.Reopen(t.Context(), "c1"); err != nil {
				t.Error(err)
			}
			n.printLines(3)
			n.waitForContent(n.path, wantRecords(8, 10))
			_ = withTimeout(t, "the end of the daemon", func() error { n.stop(); return nil })
		})
	}
}

// A file that replaced the log while berthd was stopped blocks neither Observe nor the end of
// berthd, and is logged.
func TestNonLogFileAtStartBlocksNothing(t *testing.T) {
	t.Parallel()
	for kind, put := range nonLogs {
		t.Run(kind, func(t *testing.T) {
			n := newNode(t, logs.ModeCRI)
			n.create()
			n.printLines(4)
			n.logs.Observe(t.Context(), n.inspected(true))
			n.waitForContent(n.path, wantRecords(1, 4))
			n.stop()
			for _, name := range []string{n.path, n.path + ".1"} { // the second is searched for the unacknowledged tail
				_ = os.Remove(name)
				if err := put(n, name); err != nil {
					t.Fatal(err)
				}
			}
			n.start()
			n.printLines(3)
			began := time.Now()
			n.logs.Observe(t.Context(), n.inspected(true))
			ctx, cancel := context.WithTimeout(t.Context(), enginetest.WaitTimeout)
			defer cancel()
			checkRefused(t, "reopen", kind, n.logs.Reopen(ctx, "c1"))
			n.logs.Observe(t.Context(), n.inspected(false))
			if took := time.Since(began); took > enginetest.WaitTimeout {
				t.Errorf("the exit of a container is held back for %v", took)
			}
			_ = withTimeout(t, "the end of the daemon", func() error { n.stop(); return nil })
			if !strings.Contains(n.logOutput.String(), kind) {
				t.Errorf("no error is logged:\n%s", n.logOutput)
			}
		})
	}
}

// The log directory and the components below it must not be links; those above it may be.
func TestSymlinksBelowLogDirectoryAreRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.ModeCRI)
	elsewhere := filepath.Join(n.dir, "elsewhere")
	if err := os.MkdirAll(filepath.Join(elsewhere, "web"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(n.logDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	pod := filepath.Join(n.dir, "pod")
	for name, tt := range map[string]struct{ link, target, dir, path string }{
		"a component":       {filepath.Join(n.logDir(), "web"), filepath.Join(elsewhere, "web"), n.logDir(), n.path},
		"the log directory": {pod, elsewhere, pod, filepath.Join(pod, "web", "0.log")},
	} {
		if err := os.Symlink(tt.target, tt.link); err != nil {
			t.Fatal(err)
		}
		if err := n.logs.Create("c1", n.file(), tt.dir, tt.path); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tt.link) {
			t.Errorf("%s: %v, want FailedPrecondition that names %s", name, err, tt.link)
		}
	}
	if _, err := os.Lstat(filepath.Join(elsewhere, "web", "0.log")); !os.IsNotExist(err) {
		t.Errorf("written through a link: %v", err)
	}

	// As /var/log -> /data/log.
	above := filepath.Join(n.dir, "log")
	if err := os.Symlink(elsewhere, above); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(above, "ns_pod_uid")
	if err := n.logs.Create("c2", n.file(), dir, filepath.Join(dir, "web", "0.log")); err != nil {
		t.Errorf("a link above the log directory: %v", err)
	}
	if _, err := os.Stat(filepath.Join(elsewhere, "ns_pod_uid", "web", "0.log")); err != nil {
		t.Error(err)
	}
}

func TestSymlinkThatReplacesDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.ModeCRI)
	n.create()
	n.printLines(1)
	n.logs.Observe(t.Context(), n.inspected(true))
	n.waitForContent(n.path, wantRecords(1, 1))
	dir, elsewhere := filepath.Dir(n.path), filepath.Join(n.dir, "elsewhere")
	if err := os.Mkdir(elsewhere, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, dir); err != nil {
		t.Fatal(err)
	}
	if err := n.logs.Reopen(t.Context(), "c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reopen: %v, want FailedPrecondition", err)
	}
	n.logs.Observe(t.Context(), n.inspected(false))
	if err := n.logs.Remove(t.Context(), "c1", n.source, n.logDir(), n.path); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("close: %v, want FailedPrecondition", err)
	}
	if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
		t.Errorf("written through a link: %v, %v", left, err)
	}
}

// A label of an image can name any path: only paths below the log directory of the pod are
// used.
func TestPathsOutsideLogDirectoryAreIgnored(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ dir, path string }{
		"another file of the node": {"/pods", "/protected"},
		"no pod is known":          {"", "/protected"},
		"the directory itself":     {"/pods", "/pods"},
		"a sibling":                {"/pods", "/pods-of-another/0.log"},
		"upwards":                  {"/pods", "/pods/../protected"},
	} {
		for _, mode := range []logs.Mode{logs.ModeCRI, logs.ModeSymlink, logs.ModeFollow} {
			t.Run(name+", "+string(mode), func(t *testing.T) {
				n := newNode(t, mode)
				n.protectedFile()
				dir, path := tt.dir, n.dir+tt.path
				if dir != "" {
					dir = n.dir + dir
				}
				if err := n.logs.Create("c1", n.file(), dir, path); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("open: %v, want FailedPrecondition", err)
				}
				n.printLines(3)
				for _, ours := range []bool{true, false} {
					c := n.inspected(true)
					c.Status.LogPath, c.LogDirectory, c.CreatedByBerth = path, dir, ours
					for range 2 {
						n.logs.Observe(t.Context(), c)
					}
				}
				if err := n.logs.Remove(t.Context(), "c1", n.source, dir, path); err != nil {
					t.Error(err)
				}
				n.stop()
				if got := strings.Count(n.logOutput.String(), "is not written"); got != 1 {
					t.Errorf("logged %d times, want once:\n%s", got, n.logOutput)
				}
				left, _ := filepath.Glob(n.dir + "/pods*")
				if len(left) > 0 {
					t.Errorf("created: %v", left)
				}
			})
		}
	}
}

// In a pod of cri-dockerd only the checkpoint has the log directory.
func TestLogDirectoryIsStored(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.ModeCRI)
	n.create()
	n.printLines(1)
	n.stop()
	n.start()
	c := n.inspected(true)
	c.LogDirectory = ""
	n.logs.Observe(t.Context(), c)
	n.waitForContent(n.path, wantRecords(1, 1))
}

// Also when it does not exist while berthd starts.
func TestLogContinuesWhenLogDirectoryReturns(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.ModeCRI)
	n.create()
	n.printLines(4)
	n.logs.Observe(t.Context(), n.inspected(true))
	n.waitForContent(n.path, wantRecords(1, 4))
	n.waitForCheckpoint()
	n.stop()
	if err := os.RemoveAll(n.logDir()); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.printLines(3)
	n.logs.Observe(t.Context(), n.inspected(true))
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.WaitTimeout)
	defer cancel()
	if err := n.logs.Reopen(ctx, "c1"); err == nil {
		t.Error("a file was created in a directory that does not exist")
	}
	n.logs.Observe(t.Context(), n.inspected(false)) // waits until the timeout, for nothing can be written
	if err := os.MkdirAll(filepath.Dir(n.path), 0o755); err != nil {
		t.Fatal(err)
	}
	n.waitForContent(n.path, wantRecords(5, 7))
	n.stop()
	if !strings.Contains(n.logOutput.String(), "cannot be written") {
		t.Errorf("no error is logged:\n%s", n.logOutput)
	}
}
