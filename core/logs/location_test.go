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

// notLogs make what is not a log at the path of one, by what the error calls it.
var notLogs = map[string]func(n *node, path string) error{
	"named pipe": func(_ *node, path string) error { return unix.Mkfifo(path, 0o600) },
	"directory":  func(_ *node, path string) error { return os.Mkdir(path, 0o755) },
	"symbolic link": func(n *node, path string) error {
		return os.Symlink(n.victim(), path)
	},
	"hard link": func(n *node, path string) error { return os.Link(n.victim(), path) },
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

// victim makes a file of the node that no log may get into.
func (n *node) victim() string {
	n.t.Helper()
	path := filepath.Join(n.dir, "victim")
	if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if text, err := os.ReadFile(path); err != nil || string(text) != "before" {
			n.t.Errorf("a file that is no log has %.200q, %v", text, err)
		}
	})
	return path
}

// within runs do, which must not hang.
func within(t *testing.T, what string, do func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-time.After(enginetest.Patience):
		t.Fatalf("%s hangs", what)
		return nil
	}
}

// refuses checks that err tells what is in the place of the log.
func refuses(t *testing.T, what, kind string, err error) {
	t.Helper()
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), kind) || !strings.Contains(err.Error(), "0.log") {
		t.Errorf("%s: %v, want FailedPrecondition that says %q and where", what, err, kind)
	}
}

func TestOpenRefusesWhatIsNoLog(t *testing.T) {
	t.Parallel()
	for kind, put := range notLogs {
		for _, mode := range []logs.Mode{logs.CRI, logs.Follow, logs.Link} {
			if kind == "symbolic link" {
				continue // of an earlier attempt: replaced
			}
			t.Run(kind+", "+string(mode), func(t *testing.T) {
				n := newNode(t, mode)
				if err := os.MkdirAll(filepath.Dir(n.path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := put(n, n.path); err != nil {
					t.Fatal(err)
				}
				refuses(t, "open", kind, within(t, "open", func() error { return n.logs.Open("c1", n.source, n.logDir(), n.path) }))
				err := within(t, "close", func() error { return n.logs.Close(t.Context(), "c1", n.source, n.logDir(), n.path) })
				if err != nil {
					t.Errorf("close: %v", err)
				}
				if _, err := os.Lstat(n.path); err != nil {
					t.Errorf("what is no log of ours was removed: %v", err)
				}
			})
		}
	}
}

// A log whose place is taken goes on where it was, and the new file is begun
// once it can be.
func TestReopenRefusesWhatIsNoLog(t *testing.T) {
	t.Parallel()
	for kind, put := range notLogs {
		t.Run(kind, func(t *testing.T) {
			n := newNode(t, logs.CRI)
			n.open()
			n.print(4)
			n.logs.Keep(t.Context(), n.seen(true))
			n.has(n.path, want(1, 4))
			older := n.path + ".1"
			if err := os.Rename(n.path, older); err != nil {
				t.Fatal(err)
			}
			if err := put(n, n.path); err != nil {
				t.Fatal(err)
			}
			refuses(t, "reopen", kind, within(t, "reopen", func() error { return n.logs.Reopen(t.Context(), "c1") }))
			n.print(3)
			n.has(older, want(1, 7))
			if err := os.Remove(n.path); err != nil {
				t.Fatal(err)
			}
			if err := n.logs.Reopen(t.Context(), "c1"); err != nil {
				t.Error(err)
			}
			n.print(3)
			n.has(n.path, want(8, 10))
			_ = within(t, "the end of the daemon", func() error { n.end(); return nil })
		})
	}
}

// What took the place of a log while berthd was away keeps neither the log of another container nor
// the end of berthd, and is told of.
func TestBerthdStartsWithWhatIsNoLog(t *testing.T) {
	t.Parallel()
	for kind, put := range notLogs {
		t.Run(kind, func(t *testing.T) {
			n := newNode(t, logs.CRI)
			n.open()
			n.print(4)
			n.logs.Keep(t.Context(), n.seen(true))
			n.has(n.path, want(1, 4))
			n.end()
			for _, name := range []string{n.path, n.path + ".1"} { // the second is looked at for what was written last
				_ = os.Remove(name)
				if err := put(n, name); err != nil {
					t.Fatal(err)
				}
			}
			n.begin()
			n.print(3)
			began := time.Now()
			n.logs.Keep(t.Context(), n.seen(true))
			ctx, cancel := context.WithTimeout(t.Context(), enginetest.Patience)
			defer cancel()
			refuses(t, "reopen", kind, n.logs.Reopen(ctx, "c1"))
			n.logs.Keep(t.Context(), n.seen(false))
			if took := time.Since(began); took > enginetest.Patience {
				t.Errorf("the end of a container is kept back for %v", took)
			}
			_ = within(t, "the end of the daemon", func() error { n.end(); return nil })
			if !strings.Contains(n.said.String(), kind) {
				t.Errorf("nothing is said of it:\n%s", n.said)
			}
		})
	}
}

// No component of a path below the log directory may be a link; the way to that
// directory may.
func TestNoLinkBelowTheLogDirectoryIsFollowed(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
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
		if err := n.logs.Open("c1", n.source, tt.dir, tt.path); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tt.link) {
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
	if err := n.logs.Open("c2", n.source, dir, filepath.Join(dir, "web", "0.log")); err != nil {
		t.Errorf("a link above the log directory: %v", err)
	}
	if _, err := os.Stat(filepath.Join(elsewhere, "ns_pod_uid", "web", "0.log")); err != nil {
		t.Error(err)
	}
}

// A link that takes the place of a directory later is not followed either.
func TestNoLinkIsFollowedLater(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.print(1)
	n.logs.Keep(t.Context(), n.seen(true))
	n.has(n.path, want(1, 1))
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
	n.logs.Keep(t.Context(), n.seen(false))
	if err := n.logs.Close(t.Context(), "c1", n.source, n.logDir(), n.path); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("close: %v, want FailedPrecondition", err)
	}
	if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
		t.Errorf("written through a link: %v, %v", left, err)
	}
}

// A path counts only below the log directory of the container's pod, whatever a
// label says.
func TestPathsOutsideTheLogDirectory(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ dir, path string }{
		"another file of the node": {"/pods", "/victim"},
		"no pod is known":          {"", "/victim"},
		"the directory itself":     {"/pods", "/pods"},
		"a sibling":                {"/pods", "/pods-of-another/0.log"},
		"upwards":                  {"/pods", "/pods/../victim"},
	} {
		for _, mode := range []logs.Mode{logs.CRI, logs.Link, logs.Follow} {
			t.Run(name+", "+string(mode), func(t *testing.T) {
				n := newNode(t, mode)
				n.victim()
				dir, path := tt.dir, n.dir+tt.path
				if dir != "" {
					dir = n.dir + dir
				}
				if err := n.logs.Open("c1", n.source, dir, path); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("open: %v, want FailedPrecondition", err)
				}
				n.print(3)
				for _, ours := range []bool{true, false} {
					c := n.seen(true)
					c.Status.LogPath, c.LogDirectory, c.Ours = path, dir, ours
					for range 2 {
						n.logs.Keep(t.Context(), c)
					}
				}
				if err := n.logs.Close(t.Context(), "c1", n.source, dir, path); err != nil {
					t.Error(err)
				}
				n.end()
				if got := strings.Count(n.said.String(), "is not written"); got != 1 {
					t.Errorf("it is said %d times:\n%s", got, n.said)
				}
				left, _ := filepath.Glob(n.dir + "/pods*")
				if len(left) > 0 {
					t.Errorf("made: %v", left)
				}
			})
		}
	}
}

// Of a container in a pod of cri-dockerd the log directory is known by who has created
// it, also to another daemon.
func TestTheLogDirectoryIsRemembered(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.print(1)
	n.end()
	n.begin()
	c := n.seen(true)
	c.LogDirectory = ""
	n.logs.Keep(t.Context(), c)
	n.has(n.path, want(1, 1))
}

// The log directory may be gone for a while, also when berthd starts.
func TestALogDirectoryThatIsGoneForAWhile(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.print(4)
	n.logs.Keep(t.Context(), n.seen(true))
	n.has(n.path, want(1, 4))
	n.noted()
	n.end()
	if err := os.RemoveAll(n.logDir()); err != nil {
		t.Fatal(err)
	}
	n.begin()
	n.print(3)
	n.logs.Keep(t.Context(), n.seen(true))
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Patience)
	defer cancel()
	if err := n.logs.Reopen(ctx, "c1"); err == nil {
		t.Error("a file was begun in a directory that is not there")
	}
	n.logs.Keep(t.Context(), n.seen(false)) // waits for what cannot be written
	if err := os.MkdirAll(filepath.Dir(n.path), 0o755); err != nil {
		t.Fatal(err)
	}
	n.has(n.path, want(5, 7))
	n.end()
	if !strings.Contains(n.said.String(), "cannot be written") {
		t.Errorf("nothing is said of it:\n%s", n.said)
	}
}
