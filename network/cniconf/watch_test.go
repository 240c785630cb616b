package cniconf

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"berth/core/testmain"
	"berth/network/networktest"
)

// TestMain runs more tests in parallel: most wait for a change to be noticed.
func TestMain(m *testing.M) { os.Exit(testmain.M{M: m}.Run()) }

// A fixture is a configuration directory, a directory of plugins, and a log.
type fixture struct {
	t   *testing.T
	dir string // has both
	cfg Config
	log networktest.Log
}

// newFixture returns a fixture in which the given plugins are installed.
func newFixture(t *testing.T, plugins ...string) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{t: t, dir: dir}
	f.cfg = Config{Dir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin")}, Log: f.log.Logger()}
	for _, sub := range []string{"net.d", "bin"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range plugins {
		if err := os.WriteFile(filepath.Join(dir, "bin", name), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// write writes a file of the configuration directory, which may be read half written.
func (f *fixture) write(name, text string) {
	f.t.Helper()
	path := filepath.Join(f.cfg.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// replace creates or replaces a file of the configuration directory in one step.
func (f *fixture) replace(name, text string) string {
	f.t.Helper()
	path := filepath.Join(f.cfg.Dir, name)
	f.write("../half-written", text)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(f.dir, "half-written"), path); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// list returns a .conflist of the network name with one plugin.
func list(name, plugin string) string {
	return `{"cniVersion": "1.0.0", "name": "` + name + `", "plugins": [{"type": "` + plugin + `"}]}`
}

// start runs d until the test ends and checks that Run then returns nil.
func start(t *testing.T, d *Dir) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not return")
		}
	})
}

// selected returns the name of the network that pods get, or "".
func selected(d *Dir) string {
	nw, err := d.Select()
	if err != nil || !nw.Complete() {
		return ""
	}
	return nw.List.Name
}

func TestSelectionFollowsConfigurationFiles(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "fake")
	d := New(f.cfg)
	start(t, d)
	becomes := func(want string) {
		t.Helper()
		networktest.Eventually(t, "the network is "+want, func() bool { return selected(d) == want })
	}
	becomes("")
	f.replace("20-b.conflist", list("b", "fake"))
	becomes("b")
	f.replace("10-a.conflist", list("a", "fake"))
	becomes("a")
	f.replace("10-a.conflist", list("a2", "fake"))
	becomes("a2")

	invalid := f.replace("10-a.conflist", `{"name": "a2", `)
	becomes("b")
	f.replace("30-c.conflist", list("c", "fake")) // the invalid file is read again
	networktest.Eventually(t, "the third file is read", func() bool { return len(d.Networks()) == 2 })
	if got := f.log.Count("skipped"); got != 1 {
		t.Errorf("the invalid file was logged %d times, want once", got)
	}

	temp := filepath.Join(f.dir, "temp")
	if err := os.WriteFile(temp, []byte(list("moved", "fake")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, invalid); err != nil {
		t.Fatal(err)
	}
	becomes("moved")
	if err := os.RemoveAll(f.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	becomes("")
	f.write("10-a.conflist", list("back", "fake"))
	becomes("back")
	if err := os.Rename(f.cfg.Dir, f.cfg.Dir+".old"); err != nil {
		t.Fatal(err)
	}
	becomes("")
	if err := os.Rename(f.cfg.Dir+".old", f.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	becomes("back")
	f.write("10-a.conflist", list("still", "fake"))
	becomes("still")
	if got := f.log.Count("cannot be watched"); got != 0 {
		t.Errorf("the watch failed: %s", f.log.String())
	}
}

func TestDirectoryIsWatchedOnceCreated(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "fake")
	f.cfg.Dir = filepath.Join(f.dir, "etc", "cni", "net.d")
	d := New(f.cfg)
	start(t, d)
	if _, err := d.Select(); err == nil {
		t.Fatal("a network without a directory")
	}
	// Level by level, the next when the change of the first has been handled.
	before := d.content.Load()
	if err := os.Mkdir(filepath.Join(f.dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	networktest.Eventually(t, "the configuration is read again", func() bool { return d.content.Load() != before })
	f.write("10-a.conflist", list("a", "fake"))
	networktest.Eventually(t, "the network is a", func() bool { return selected(d) == "a" })
	f.write("10-a.conflist", list("b", "fake"))
	networktest.Eventually(t, "the network is b", func() bool { return selected(d) == "b" })
}

func TestDirectoryBehindSymbolicLinkIsWatched(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "fake")
	target := filepath.Join(f.dir, "elsewhere")
	if err := os.Rename(f.cfg.Dir, target); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, f.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	d := New(f.cfg)
	start(t, d)
	f.write("10-a.conflist", list("a", "fake"))
	networktest.Eventually(t, "the network is a", func() bool { return selected(d) == "a" })
}

func TestPluginSubdirectoryIsWatched(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "fake", "extra")
	f.write("10-a.conflist", list("a", "fake"))
	d := New(f.cfg)
	start(t, d)
	plugins := func() int {
		networks := d.Networks()
		if len(networks) == 0 {
			return 0 // a file was read half written, and its network is invalid
		}
		return len(networks[0].List.Plugins)
	}
	f.write("a/10-extra.conf", `{"type": "extra"}`)
	networktest.Eventually(t, "there are two plugins", func() bool { return plugins() == 2 })
	f.write("a/20-extra.conf", `{"type": "extra"}`)
	networktest.Eventually(t, "there are three plugins", func() bool { return plugins() == 3 })
}

// A file in the subdirectory that is read half written makes the network invalid, until it is complete.
func TestPluginSubdirectoryOfInvalidNetworkIsWatched(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "fake", "extra")
	f.write("10-a.conflist", list("a", "fake"))
	d := New(f.cfg)
	start(t, d)
	f.replace("a/10-extra.conf", `{"type": `)
	networktest.Eventually(t, "the network is invalid", func() bool { return selected(d) == "" })
	time.Sleep(3 * debounceInterval) // the change has been handled
	f.write("a/10-extra.conf", `{"type": "extra"}`)
	networktest.Eventually(t, "it is valid again", func() bool { return selected(d) == "a" })
}

// The parent of the configuration directory is watched too, but only for the directory itself.
func TestChangesOutsideDirectoryAreIgnored(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "fake")
	f.write("10-a.conflist", list("a", "fake"))
	d := New(f.cfg)
	start(t, d)
	networktest.Eventually(t, "changes are noticed", func() bool { // by a change that is seen
		f.write("10-a.conflist", list("seen", "fake"))
		return selected(d) == "seen"
	})
	before := d.content.Load()
	for quiet := 0; quiet < 3; quiet++ { // until the changes above have been handled
		time.Sleep(3 * debounceInterval)
		if now := d.content.Load(); now != before {
			before, quiet = now, 0
		}
	}
	for range 10 {
		if err := os.WriteFile(filepath.Join(f.dir, "noise"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(3 * debounceInterval)
	if d.content.Load() != before {
		t.Error("a file beside the directory made it read again")
	}
}
