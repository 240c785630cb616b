package oom

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/core/cgroup"
	"berth/core/state"
)

// A node is a Watcher that runs, with fake cgroups.
type node struct {
	*testing.T
	*Watcher
	bucket *ExitReasons
	dir    string // parent of fake v2 cgroups
}

func newNode(t *testing.T) *node {
	t.Helper()
	files, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := OpenExitReasons(files)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{T: t, Watcher: New(bucket, slog.New(slog.DiscardHandler)), bucket: bucket, dir: t.TempDir()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.Watcher.Run(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { <-done })
	return n
}

// setKills creates or updates the cgroup of id with a count of kills.
func (n *node) setKills(id string, kills int) {
	n.Helper()
	dir := filepath.Join(n.dir, id)
	text := fmt.Sprintf("low 0\nhigh 0\nmax 9\noom 1\noom_kill %d\n", kills)
	if _, err := os.Stat(dir); err != nil {
		// The kernel creates a cgroup with all its files.
		complete := filepath.Join(n.TempDir(), id)
		if err := os.Mkdir(complete, 0o755); err != nil {
			n.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(complete, eventsV2), []byte(text), 0o600); err != nil {
			n.Fatal(err)
		}
		if err := os.Rename(complete, dir); err != nil {
			n.Fatal(err)
		}
		return
	}
	f, err := os.OpenFile(filepath.Join(dir, eventsV2), os.O_WRONLY, 0o600)
	if err != nil {
		n.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		n.Fatal(err)
	}
}

// start starts the container id, with the calls in the order in which berth makes them.
func (n *node) start(id string) {
	n.Helper()
	done := n.ExpectCgroup(id, cgroup.Group{V2: n.dir})
	defer done()
	n.setKills(id, 0)
	n.until("not watched", func() bool { r := n.runs[id]; return r != nil && r.dir != "" })
	n.Started(id)
	n.Running(id, os.Getpid())
}

func (n *node) until(failure string, ok func() bool) {
	n.Helper()
	for range 1000 {
		n.mu.Lock()
		done := ok()
		n.mu.Unlock()
		if done {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	n.Fatal(failure)
}

// exit removes the cgroup of id and reports its exit.
func (n *node) exit(id string) {
	n.Helper()
	if err := os.RemoveAll(filepath.Join(n.dir, id)); err != nil {
		n.Fatal(err)
	}
	n.Exited(id)
}

// waitKills waits until the Watcher has read that count of kills.
func (n *node) waitKills(id string, kills uint64) {
	n.Helper()
	n.until("the Watcher has not read the count", func() bool { return n.runs[id].count == kills })
}

func TestOOMKilledDependsOnKillsAndEvents(t *testing.T) {
	for name, c := range map[string]struct {
		events func(n *node)
		flag   bool
		code   int
		after  time.Duration // from the last kill to the exit
		want   bool
	}{
		"first process killed by the OOM killer":    {func(n *node) { n.setKills("c", 1); n.waitKills("c", 1); n.exit("c") }, true, 137, 0, true},
		"Docker has missed the kill":                {func(n *node) { n.setKills("c", 1); n.waitKills("c", 1); n.exit("c") }, false, 137, 0, true},
		"child killed, shell exits with its status": {func(n *node) { n.setKills("c", 1); n.waitKills("c", 1); n.exit("c") }, true, 137, time.Second, true},
		"child killed, exit code 0":                 {func(n *node) { n.setKills("c", 1); n.waitKills("c", 1); n.exit("c") }, true, 0, 0, false},
		"child killed, then SIGTERM":                {func(n *node) { n.setKills("c", 1); n.waitKills("c", 1); n.exit("c") }, true, 143, 0, false},
		"child killed, then SIGKILL by Docker":      {func(n *node) { n.setKills("c", 1); n.waitKills("c", 1); n.KillSent("c"); n.exit("c") }, true, 137, 0, false},
		"child killed long before":                  {func(n *node) { n.setKills("c", 1); n.waitKills("c", 1); n.exit("c") }, true, 137, time.Hour, false},
		"SIGKILL by Docker":                         {func(n *node) { n.KillSent("c"); n.exit("c") }, false, 137, 0, false},
		"SIGKILL by another process":                {func(n *node) { n.exit("c") }, false, 137, 0, false},
		"cgroup removed before its count was read":  {func(n *node) { n.exit("c") }, true, 137, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.start("c")
			c.events(n)
			finished := time.Now().Add(c.after)
			if got := n.OOMKilled(t.Context(), "c", c.flag, c.code, finished); got != c.want {
				t.Errorf("got %v", got)
			}
			// The result is stored, also for a restarted berthd that has only Docker's flag.
			restarted := New(n.bucket, slog.New(slog.DiscardHandler))
			if got := restarted.OOMKilled(t.Context(), "c", c.flag, c.code, finished); got != c.want {
				t.Errorf("after a restart: %v", got)
			}
			n.Remove("c")
			if got := restarted.OOMKilled(t.Context(), "c", c.flag, c.code, finished); got != (c.flag && c.code == 137) {
				t.Errorf("still stored after removal: %v", got)
			}
		})
	}
}

func TestKillsBeforeTheWatchDoNotCount(t *testing.T) {
	n := newNode(t)
	n.setKills("c", 3)
	n.mu.Lock()
	n.watchLocked("c", &run{pid: 7, dir: filepath.Join(n.dir, "c"), count: 3})
	n.mu.Unlock()
	n.setKills("c", 3)
	n.exit("c")
	if n.OOMKilled(t.Context(), "c", false, 137, time.Now()) {
		t.Error("OOMKilled")
	}
}

// Docker reports its SIGKILL before the exit. A call before these events must have the same
// result as later ones.
func TestKilledWaitsForDockersEvents(t *testing.T) {
	n := newNode(t)
	n.start("c")
	n.setKills("c", 1)
	n.waitKills("c", 1)
	result := make(chan bool, 1)
	finished := time.Now()
	go func() { result <- n.OOMKilled(t.Context(), "c", true, 137, finished) }()
	n.KillSent("c")
	n.exit("c")
	if <-result {
		t.Error("OOMKilled, though Docker has sent SIGKILL")
	}
}

func TestRestartForgetsEarlierKills(t *testing.T) {
	n := newNode(t)
	n.start("c")
	n.setKills("c", 1)
	n.waitKills("c", 1)
	n.exit("c")
	first := time.Now()
	if !n.OOMKilled(t.Context(), "c", true, 137, first) {
		t.Error("the first run was killed")
	}
	n.Started("c")
	n.Exited("c")
	if n.OOMKilled(t.Context(), "c", false, 137, first.Add(time.Second)) {
		t.Error("the second run was not")
	}
}

func TestPruneKeepsExistingContainers(t *testing.T) {
	n := newNode(t)
	now := time.Now()
	for _, id := range []string{"a", "b"} {
		n.start(id)
		n.exit(id)
		n.OOMKilled(t.Context(), id, true, 137, now)
	}
	n.Prune(func(id string) bool { return id == "b" })
	names, err := n.bucket.Keys()
	if err != nil || len(names) != 1 || names[0] != "b" || len(n.runs) != 1 {
		t.Errorf("%v, %v, %d runs", names, err, len(n.runs))
	}
}

// A call that waits for the events of a container while it is removed leaves no record.
func TestRemovedDuringOOMKilledIsForgotten(t *testing.T) {
	n := newNode(t)
	for range 50 {
		n.start("c")
		done := make(chan struct{})
		go func() { defer close(done); n.OOMKilled(t.Context(), "c", true, 137, time.Now()) }()
		n.exit("c")
		n.Remove("c")
		<-done
		if names, err := n.bucket.Keys(); err != nil || len(names) > 0 {
			t.Fatalf("%v, %v", names, err)
		}
	}
}

// panicOnce makes the next read of a count of kills panic.
func (n *node) panicOnce() (panicked func() bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var done atomic.Bool
	n.readCount = func(dir string) (uint64, error) {
		if !done.Swap(true) {
			panic("broken")
		}
		return readKillCount(dir)
	}
	return done.Load
}

// A panic while a file event of one container is handled must not end Run.
func TestPanicForOneContainerDoesNotEndRun(t *testing.T) {
	n := newNode(t)
	n.start("broken")
	n.start("healthy")
	panicked := n.panicOnce()
	n.setKills("broken", 1)
	n.until("no panic", panicked)
	n.setKills("healthy", 1)
	n.waitKills("healthy", 1)
	n.exit("healthy")
	if !n.OOMKilled(t.Context(), "healthy", false, 137, time.Now()) {
		t.Error("the kill of another container was lost")
	}
}

// A panic while a signal of an eventfd is handled (cgroup v1) must not end the wait for the
// next one.
func TestPanicInFollowerDoesNotEndIt(t *testing.T) {
	n := newNode(t)
	n.setKills("c", 0)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	eventfd := os.NewFile(uintptr(fd), "eventfd")
	r := &run{dir: filepath.Join(n.dir, "c"), eventsDone: make(chan struct{}), followed: make(chan struct{})}
	n.mu.Lock()
	n.runs["c"] = r
	n.mu.Unlock()
	done := make(chan struct{})
	go func() { defer close(done); n.follow(r, eventfd) }()
	signal := func() {
		t.Helper()
		if _, err := eventfd.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil { // a count of 1, little-endian
			t.Fatal(err)
		}
	}
	panicked := n.panicOnce()
	signal()
	n.until("no panic", panicked)
	n.setKills("c", 1)
	signal()
	n.waitKills("c", 1)
	if err := eventfd.Close(); err != nil {
		t.Fatal(err)
	}
	<-done
}

// The cgroup of a container that was killed can be gone before its count is read. On cgroup
// v1 the kernel's signals tell a kill from a removal.
func TestKillWhoseCountWasNotRead(t *testing.T) {
	type step string
	const signal, remove, follow, read step = "signal", "remove", "follow", "read"
	for name, tt := range map[string]struct {
		steps []step
		want  bool
	}{
		"removed":                     {[]step{remove, signal, follow}, false},
		"removed, the signal is late": {[]step{remove, follow}, false},
		"killed, read too late":       {[]step{signal, remove, follow, read, signal}, true},
		"killed, both signals late":   {[]step{signal, remove, signal, follow}, true},
		"removed during the wait":     {[]step{signal, follow, read, remove, signal}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.setKills("c", 0)
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
			if err != nil {
				t.Fatal(err)
			}
			eventfd := os.NewFile(uintptr(fd), "eventfd")
			r := &run{dir: filepath.Join(n.dir, "c"), eventfd: eventfd, eventsDone: make(chan struct{}), followed: make(chan struct{})}
			var reads atomic.Int32
			n.mu.Lock()
			n.readCount = func(dir string) (uint64, error) { defer reads.Add(1); return readKillCount(dir) }
			n.runs["c"] = r
			n.mu.Unlock()
			for _, s := range tt.steps {
				switch s {
				case signal:
					if _, err := eventfd.Write(binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
						t.Fatal(err)
					}
				case follow:
					go n.follow(r, eventfd)
				case read:
					n.until("not read", func() bool { return reads.Load() > 0 })
				case remove:
					if err := os.RemoveAll(r.dir); err != nil {
						t.Fatal(err)
					}
				}
			}
			n.Exited("c")
			if got := n.OOMKilled(t.Context(), "c", false, 137, time.Now()); got != tt.want {
				t.Errorf("OOMKilled: %v, want %v", got, tt.want)
			}
		})
	}
}

// TestKernelKills makes the kernel of this machine kill many processes at a time.
func TestKernelKills(t *testing.T) {
	if os.Getenv("BERTH_TEST_HOG") != "" {
		hog()
	}
	id := "berth-test-" + strconv.Itoa(os.Getpid())
	parent, err := cgroup.Create(id, []string{"memory"})
	if err != nil {
		t.Skip("cgroups cannot be created: ", err)
	}
	dir, ok := parent.Dir("memory")
	if !ok {
		t.Skip("memory is not counted")
	}
	t.Cleanup(func() {
		if err := parent.Remove(); err != nil {
			t.Error(err)
		}
	})
	n := newNode(t)
	const many = 8
	var all []*exec.Cmd
	for i := range many {
		id := fmt.Sprint("c", i)
		done := n.ExpectCgroup(id, parent)
		if err := os.Mkdir(filepath.Join(dir, id), 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(filepath.Join(dir, id))
		n.until("not watched", func() bool { r := n.runs[id]; return r != nil && r.dir != "" })
		done()
		for file, text := range map[string]string{"memory.limit_in_bytes": "16777216", "memory.max": "16777216", "memory.memsw.limit_in_bytes": "16777216", "memory.swap.max": "0"} {
			if path := filepath.Join(dir, id, file); os.WriteFile(path, []byte(text), 0) != nil {
				continue // a file of the other version, or swap is not counted
			}
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestKernelKills$")
		cmd.Env = append(os.Environ(), "BERTH_TEST_HOG=1", "GOMAXPROCS=1")
		release, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		ready, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Process.Kill()
		if _, err := bufio.NewReader(ready).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, id, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Skip("processes cannot be moved: ", err)
		}
		defer release.Close()
		if i < many-1 { // the last one is not killed by the OOM killer
			if _, err := release.Write([]byte("\n")); err != nil {
				t.Fatal(err)
			}
		} else if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		all = append(all, cmd)
	}
	for i, cmd := range all {
		id := fmt.Sprint("c", i)
		_ = cmd.Wait()
		finished := time.Now()
		// As runc does, as soon as possible.
		for os.Remove(filepath.Join(dir, id)) != nil {
			if time.Since(finished) > 10*time.Second {
				t.Fatal("the cgroup cannot be removed")
			}
			time.Sleep(time.Millisecond)
		}
		n.Exited(id)
		if got, want := n.OOMKilled(t.Context(), id, false, 137, finished), i < many-1; got != want {
			t.Errorf("%s: %v, want %v", id, got, want)
		}
	}
}

// hog allocates memory once it has read a line.
func hog() {
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		os.Exit(0)
	}
	var all [][]byte
	for {
		page := make([]byte, 1<<20)
		for i := range page {
			page[i] = 1
		}
		all = append(all, page)
		if len(all) > 1000 {
			os.Exit(1)
		}
	}
}
