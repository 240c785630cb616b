package oom

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"berth/core/cgroup"
	"berth/core/state"
)

type node struct {
	*testing.T
	*Watcher
	shelf *Verdicts
	dir   string // where cgroups of version 2 are
}

func newNode(t *testing.T) *node {
	t.Helper()
	notes, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	shelf, err := OpenVerdicts(notes)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{T: t, Watcher: New(shelf, slog.New(slog.DiscardHandler)), shelf: shelf, dir: t.TempDir()}
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

// counts has the kernel have killed so many in the cgroup of id.
func (n *node) counts(id string, kills int) {
	n.Helper()
	dir := filepath.Join(n.dir, id)
	text := fmt.Sprintf("low 0\nhigh 0\nmax 9\noom 1\noom_kill %d\n", kills)
	if _, err := os.Stat(dir); err != nil {
		// The kernel makes a cgroup with all its files.
		whole := filepath.Join(n.TempDir(), id)
		if err := os.Mkdir(whole, 0o755); err != nil {
			n.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(whole, eventsV2), []byte(text), 0o600); err != nil {
			n.Fatal(err)
		}
		if err := os.Rename(whole, dir); err != nil {
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

// begins is a start of the container id, in the order of berth and Docker.
func (n *node) begins(id string) {
	n.Helper()
	done := n.Expect(id, cgroup.Group{V2: n.dir})
	defer done()
	n.counts(id, 0)
	n.until("not watched", func() bool { r := n.runs[id]; return r != nil && r.dir != "" })
	n.Started(id)
	n.Running(id, os.Getpid())
}

func (n *node) until(what string, ok func() bool) {
	n.Helper()
	for range 1000 {
		n.mu.Lock()
		good := ok()
		n.mu.Unlock()
		if good {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	n.Fatal(what)
}

// ends is an end, after which there is no cgroup.
func (n *node) ends(id string) {
	n.Helper()
	if err := os.RemoveAll(filepath.Join(n.dir, id)); err != nil {
		n.Fatal(err)
	}
	n.Died(id)
}

// seen is that the kernel's kills of id have been noticed.
func (n *node) seen(id string, kills uint64) {
	n.Helper()
	n.until("the kill is not noticed", func() bool { return n.runs[id].count == kills })
}

func TestWhyAContainerHasEnded(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(n *node)
		flag    bool
		code    int
		after   time.Duration // between the last kill and the end
		want    bool
	}{
		"killed by the kernel":                    {func(n *node) { n.counts("c", 1); n.seen("c", 1); n.ends("c") }, true, 137, 0, true},
		"and Docker has not noticed":              {func(n *node) { n.counts("c", 1); n.seen("c", 1); n.ends("c") }, false, 137, 0, true},
		"a child was, and the shell passes it on": {func(n *node) { n.counts("c", 1); n.seen("c", 1); n.ends("c") }, true, 137, time.Second, true},
		"a child was, and all is well":            {func(n *node) { n.counts("c", 1); n.seen("c", 1); n.ends("c") }, true, 0, 0, false},
		"a child was, and then it got SIGTERM":    {func(n *node) { n.counts("c", 1); n.seen("c", 1); n.ends("c") }, true, 143, 0, false},
		"a child was, and then Docker killed it":  {func(n *node) { n.counts("c", 1); n.seen("c", 1); n.Slain("c"); n.ends("c") }, true, 137, 0, false},
		"a child was, long before":                {func(n *node) { n.counts("c", 1); n.seen("c", 1); n.ends("c") }, true, 137, time.Hour, false},
		"killed by Docker":                        {func(n *node) { n.Slain("c"); n.ends("c") }, false, 137, 0, false},
		"killed by somebody":                      {func(n *node) { n.ends("c") }, false, 137, 0, false},
		"too quick for us":                        {func(n *node) { n.ends("c") }, true, 137, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.begins("c")
			c.happens(n)
			finished := time.Now().Add(c.after)
			if got := n.Killed(t.Context(), "c", c.flag, c.code, finished); got != c.want {
				t.Errorf("got %v", got)
			}
			// It stays so, also for a later daemon that only has Docker's word.
			later := New(n.shelf, slog.New(slog.DiscardHandler))
			if got := later.Killed(t.Context(), "c", c.flag, c.code, finished); got != c.want {
				t.Errorf("later: %v", got)
			}
			n.Drop("c")
			if got := later.Killed(t.Context(), "c", c.flag, c.code, finished); got != (c.flag && c.code == 137) {
				t.Errorf("what was dropped is still known: %v", got)
			}
		})
	}
}

// What was counted before we were there is not what the container ends of.
func TestEarlierKillsDoNotCount(t *testing.T) {
	n := newNode(t)
	n.counts("c", 3)
	n.mu.Lock()
	n.watchLocked("c", &run{pid: 7, dir: filepath.Join(n.dir, "c"), count: 3})
	n.mu.Unlock()
	n.counts("c", 3)
	n.ends("c")
	if n.Killed(t.Context(), "c", false, 137, time.Now()) {
		t.Error("OOMKilled")
	}
}

// Docker tells of a SIGKILL before it tells of the end, and anyone who asks in between gets
// the answer that all get.
func TestAnswerWaitsForTheEvents(t *testing.T) {
	n := newNode(t)
	n.begins("c")
	n.counts("c", 1)
	n.seen("c", 1)
	answer := make(chan bool, 1)
	finished := time.Now()
	go func() { answer <- n.Killed(t.Context(), "c", true, 137, finished) }()
	n.Slain("c")
	n.ends("c")
	if <-answer {
		t.Error("OOMKilled, though Docker has killed it")
	}
}

// Another start is another life.
func TestAnotherRunBeginsAnew(t *testing.T) {
	n := newNode(t)
	n.begins("c")
	n.counts("c", 1)
	n.seen("c", 1)
	n.ends("c")
	first := time.Now()
	if !n.Killed(t.Context(), "c", true, 137, first) {
		t.Error("the first run was killed")
	}
	n.Started("c")
	n.Died("c")
	if n.Killed(t.Context(), "c", false, 137, first.Add(time.Second)) {
		t.Error("the second run was not")
	}
}

func TestForgetKeepsWhatIsThere(t *testing.T) {
	n := newNode(t)
	now := time.Now()
	for _, id := range []string{"a", "b"} {
		n.begins(id)
		n.ends(id)
		n.Killed(t.Context(), id, true, 137, now)
	}
	n.Forget(func(id string) bool { return id == "b" })
	names, err := n.shelf.Names()
	if err != nil || len(names) != 1 || names[0] != "b" || len(n.runs) != 1 {
		t.Errorf("%v, %v, %d runs", names, err, len(n.runs))
	}
}

// TestKernelKills has this machine's kernel kill many at a time.
func TestKernelKills(t *testing.T) {
	if os.Getenv("BERTH_TEST_HOG") != "" {
		hog()
	}
	id := "berth-test-" + strconv.Itoa(os.Getpid())
	parent, err := cgroup.Make(id, []string{"memory"})
	if err != nil {
		t.Skip("no cgroup can be made: ", err)
	}
	dir, ok := parent.Dir("memory")
	if !ok {
		t.Skip("no cgroup counts memory")
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
		done := n.Expect(id, parent)
		if err := os.Mkdir(filepath.Join(dir, id), 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(filepath.Join(dir, id))
		n.until("not watched", func() bool { r := n.runs[id]; return r != nil && r.dir != "" })
		done()
		for file, text := range map[string]string{"memory.limit_in_bytes": "16777216", "memory.max": "16777216", "memory.memsw.limit_in_bytes": "16777216", "memory.swap.max": "0"} {
			if path := filepath.Join(dir, id, file); os.WriteFile(path, []byte(text), 0) != nil {
				continue // of the other version, or swap is not counted
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
			t.Skip("no process can be moved: ", err)
		}
		defer release.Close()
		if i < many-1 { // the last one is not killed by the kernel
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
		// As a low-level runtime does, as soon as it can.
		for os.Remove(filepath.Join(dir, id)) != nil {
			if time.Since(finished) > 10*time.Second {
				t.Fatal("the cgroup cannot be removed")
			}
			time.Sleep(time.Millisecond)
		}
		n.Died(id)
		if got, want := n.Killed(t.Context(), id, false, 137, finished), i < many-1; got != want {
			t.Errorf("%s: %v, want %v", id, got, want)
		}
	}
}

// hog takes memory once it is told to.
func hog() {
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		os.Exit(0)
	}
	var all [][]byte
	for {
		piece := make([]byte, 1<<20)
		for i := range piece {
			piece[i] = 1
		}
		all = append(all, piece)
		if len(all) > 1000 {
			os.Exit(1)
		}
	}
}
