package network

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// run runs n until the test ends and checks that it then returns nil.
func run(t *testing.T, n *CNI) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
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

// current returns the name of the network that pods get, or "".
func current(n *CNI) string {
	plan, err := n.Plan(Pod{ID: "pod"})
	if err != nil {
		return ""
	}
	return plan.Network
}

func TestConfigurationComesAndGoes(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	n := d.new()
	run(t, n)
	becomes := func(want string) {
		t.Helper()
		eventually(t, "the network is "+want, func() bool { return current(n) == want })
	}
	becomes("")
	d.place("20-b.conflist", list("b", "fake"))
	becomes("b")
	d.place("10-a.conflist", list("a", "fake"))
	becomes("a")
	d.place("10-a.conflist", list("a2", "fake"))
	becomes("a2")

	broken := d.place("10-a.conflist", `{"name": "a2", `)
	becomes("b")
	d.place("30-c.conflist", list("c", "fake")) // one more look at the broken file
	eventually(t, "the third file is read", func() bool { return len(n.found.Load().networks) == 2 })
	if got := d.log.count("skipped"); got != 1 {
		t.Errorf("the broken file was logged %d times, want once", got)
	}

	temp := filepath.Join(d.dir, "temp")
	if err := os.WriteFile(temp, []byte(list("moved", "fake")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, broken); err != nil {
		t.Fatal(err)
	}
	becomes("moved")
	if err := os.RemoveAll(d.cfg.ConfDir); err != nil {
		t.Fatal(err)
	}
	becomes("")
	d.conf("10-a.conflist", list("back", "fake"))
	becomes("back")
	if err := os.Rename(d.cfg.ConfDir, d.cfg.ConfDir+".old"); err != nil {
		t.Fatal(err)
	}
	becomes("")
	if err := os.Rename(d.cfg.ConfDir+".old", d.cfg.ConfDir); err != nil {
		t.Fatal(err)
	}
	becomes("back")
	d.conf("10-a.conflist", list("still", "fake"))
	becomes("still")
	if got := d.log.count("cannot be watched"); got != 0 {
		t.Errorf("watching failed: %s", d.log.buf.String())
	}
}

func TestDirectoryCreatedLater(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.cfg.ConfDir = filepath.Join(d.dir, "etc", "cni", "net.d")
	n := d.new()
	run(t, n)
	if err := n.Status(t.Context()); err == nil {
		t.Fatal("ready without a directory")
	}
	// Level by level, each noticed or not before the next.
	if err := os.Mkdir(filepath.Join(d.dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * settle)
	d.conf("10-a.conflist", list("a", "fake"))
	eventually(t, "the network is a", func() bool { return current(n) == "a" })
	d.conf("10-a.conflist", list("b", "fake"))
	eventually(t, "the network is b", func() bool { return current(n) == "b" })
}

func TestDirectoryBehindASymbolicLink(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	behind := filepath.Join(d.dir, "elsewhere")
	if err := os.Rename(d.cfg.ConfDir, behind); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(behind, d.cfg.ConfDir); err != nil {
		t.Fatal(err)
	}
	n := d.new()
	run(t, n)
	d.conf("10-a.conflist", list("a", "fake"))
	eventually(t, "the network is a", func() bool { return current(n) == "a" })
}

func TestFolderOfPluginsIsWatched(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake", "extra")
	d.conf("10-a.conflist", list("a", "fake"))
	n := d.new()
	run(t, n)
	plugins := func() int {
		found := n.found.Load().networks
		if len(found) == 0 {
			return 0 // a file is half written, and its network not to be had
		}
		return len(found[0].list.Plugins)
	}
	d.conf("a/10-extra.conf", `{"type": "extra"}`)
	eventually(t, "there are two plugins", func() bool { return plugins() == 2 })
	d.conf("a/20-extra.conf", `{"type": "extra"}`)
	eventually(t, "there are three plugins", func() bool { return plugins() == 3 })
}

// A file in the folder that is read half written takes the network away, until
// the rest of it is there.
func TestFolderOfABrokenNetworkIsWatched(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake", "extra")
	d.conf("10-a.conflist", list("a", "fake"))
	n := d.new()
	run(t, n)
	d.place("a/10-extra.conf", `{"type": `)
	eventually(t, "the network is broken", func() bool { return current(n) == "" })
	time.Sleep(3 * settle) // all that the change has led to is over
	d.conf("a/10-extra.conf", `{"type": "extra"}`)
	eventually(t, "it is mended", func() bool { return current(n) == "a" })
}

// What the configuration directory's parent is full of is none of our business.
func TestOnlyWhatMattersIsRead(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", list("a", "fake"))
	n := d.new()
	run(t, n)
	eventually(t, "it is watched", func() bool { // by a change that is seen
		d.conf("10-a.conflist", list("seen", "fake"))
		return current(n) == "seen"
	})
	before := n.found.Load()
	for quiet := 0; quiet < 3; quiet++ { // until what was changed above is over
		time.Sleep(3 * settle)
		if now := n.found.Load(); now != before {
			before, quiet = now, 0
		}
	}
	for range 10 {
		if err := os.WriteFile(filepath.Join(d.dir, "noise"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(3 * settle)
	if n.found.Load() != before {
		t.Error("a file beside the directory had it read again")
	}
}
