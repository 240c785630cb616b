package logs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/fsnotify/fsnotify"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine/enginetest"
	"berth/core/logs"
	"berth/core/state"
	"berth/core/testmain"
)

// Most tests wait for time to pass, or for something to be noticed.
func TestMain(m *testing.M) { testmain.M{M: m}.Run() }

// A node is a directory with what an Engine and a kubelet have on disk, and a
// Service that can be ended and begun again.
type node struct {
	t      *testing.T
	dir    string
	source string // the Engine's file
	path   string // the kubelet's
	mode   logs.Mode
	logs   *logs.Service
	said   *bytes.Buffer // the log of the Service, complete once it has ended
	end    func()
	lines  int // printed so far
	runs   int // how often the container was started
}

func newNode(t *testing.T, mode logs.Mode) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, dir: dir, mode: mode, runs: 1, source: filepath.Join(dir, "c1-json.log"), path: filepath.Join(dir, "pods", "web", "0.log")}
	n.begin()
	t.Cleanup(func() { n.end() })
	return n
}

// begin starts a daemon.
func (n *node) begin() {
	n.t.Helper()
	notes, err := state.Open(filepath.Join(n.dir, "journal"))
	if err != nil {
		n.t.Fatal(err)
	}
	shelf, err := logs.OpenPositions(notes)
	if err != nil {
		n.t.Fatal(err)
	}
	n.said = &bytes.Buffer{}
	n.logs = logs.New(n.mode, nil, shelf, slog.New(slog.NewTextHandler(n.said, nil)))
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan error, 1)
	go func() { done <- n.logs.Run(ctx) }()
	n.end = func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
		n.end = func() {}
	}
}

// positions copies what a daemon that is killed now would leave.
func (n *node) positions() (restore func()) {
	n.t.Helper()
	name := filepath.Join(n.dir, "journal", "v1", "logs", "c1")
	kept, err := os.ReadFile(name)
	if err != nil {
		n.t.Fatal(err)
	}
	return func() {
		if err := os.WriteFile(name, kept, 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
}

// noted waits until the journal says that all which was printed is written.
func (n *node) noted() {
	n.t.Helper()
	size, err := os.Stat(n.source)
	if err != nil {
		n.t.Fatal(err)
	}
	enginetest.Until(n.t, "the last line is not noted", func() bool {
		text, _ := os.ReadFile(filepath.Join(n.dir, "journal", "v1", "logs", "c1"))
		return strings.Contains(string(text), fmt.Sprintf(`"offset":%d`, size.Size()))
	})
}

// print has the container print lines.
func (n *node) print(count int) {
	n.t.Helper()
	f, err := os.OpenFile(n.source, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	for range count {
		n.lines++
		line := printed(n.lines)
		text, err := json.Marshal(map[string]string{"log": line[2:], "stream": map[string]string{"o": "stdout", "e": "stderr"}[line[:1]], "time": stamp(n.lines)})
		if err != nil {
			n.t.Fatal(err)
		}
		if _, err := f.Write(append(text, '\n')); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		n.t.Fatal(err)
	}
}

// stamp is the time of the i-th line: all pieces of one have the same.
func stamp(i int) string {
	if i%3 == 1 && i > 1 {
		i -= 2
	}
	return time.Unix(1700000000, int64(i)).UTC().Format("2006-01-02T15:04:05.000000000Z07:00")
}

// piece is where an Engine cuts a line.
const piece = 16 << 10

// printed is the i-th thing that the container prints, with o or e in front: a line,
// or the first part of a long one, the rest of which is printed next but one.
func printed(i int) string {
	switch i % 3 {
	case 0:
		return fmt.Sprintf("e line %d \"to stderr\"\n", i)
	case 1:
		return fmt.Sprintf("o line %d\n", i)
	default:
		return fmt.Sprintf("o %0*d", piece, i)
	}
}

// want is the text of the log of lines from to to.
func want(from, to int) string {
	var b strings.Builder
	for i := from; i <= to; i++ {
		line := printed(i)
		tag := "P"
		if strings.HasSuffix(line, "\n") {
			tag = "F"
		}
		fmt.Fprintf(&b, "%s %s %s %s\n", stamp(i), map[string]string{"o": "stdout", "e": "stderr"}[line[:1]], tag, strings.TrimSuffix(line[2:], "\n"))
	}
	return b.String()
}

// end is what ends the i-th line, which was only a part of one.
func end(i int) string { return stamp(i) + " stdout F \n" }

// has waits until the file at path has text.
func (n *node) has(path, text string) {
	n.t.Helper()
	var got []byte
	for limit := time.Now().Add(enginetest.Patience); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		got, _ = os.ReadFile(path)
		if string(got) == text {
			return
		}
	}
	n.t.Errorf("%s is %d bytes, want %d\ngot  %.300q\nwant %.300q", filepath.Base(path), len(got), len(text), got, text)
}

// seen is what the view would tell of the container.
func (n *node) seen(running bool) *cache.Container {
	return &cache.Container{
		Row:     &runtimeapi.Container{Id: "c1"},
		Status:  &runtimeapi.ContainerStatus{Id: "c1", LogPath: n.path, StartedAt: int64(n.runs)},
		Running: running, JSONPath: n.source, Ours: true, LogDirectory: n.logDir(),
	}
}

// logDir is the log directory of the pod.
func (n *node) logDir() string { return filepath.Join(n.dir, "pods") }

func (n *node) rotate() {
	n.t.Helper()
	for i := 2; i > 0; i-- {
		older, newer := fmt.Sprintf("%s.%d", n.source, i), fmt.Sprintf("%s.%d", n.source, i-1)
		if i == 1 {
			newer = n.source
		}
		if err := os.Rename(newer, older); err != nil && !os.IsNotExist(err) {
			n.t.Fatal(err)
		}
	}
}

func (n *node) open() {
	n.t.Helper()
	if err := n.logs.Open("c1", n.source, n.logDir(), n.path); err != nil {
		n.t.Fatal(err)
	}
}

func TestLinesAreCopied(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.print(10)
	n.logs.Keep(t.Context(), n.seen(true))
	n.has(n.path, want(1, 10))
	n.print(5) // found by the watch
	n.has(n.path, want(1, 15))
	n.print(1000)
	n.logs.Keep(t.Context(), n.seen(false))
	if got, err := os.ReadFile(n.path); err != nil || string(got) != want(1, 1015) {
		t.Errorf("the end is told before the last line is written: %d of %d bytes, %v", len(got), len(want(1, 1015)), err)
	}
}

func TestTheKubeletRotates(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.print(10)
	n.logs.Keep(t.Context(), n.seen(true))
	n.has(n.path, want(1, 10))
	if err := os.Rename(n.path, n.path+".20261123-142630"); err != nil {
		t.Fatal(err)
	}
	n.print(3)
	n.has(n.path+".20261123-142630", want(1, 13))
	if err := n.logs.Reopen(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(n.path); err != nil {
		t.Error("there is no new file once Reopen has returned")
	}
	n.print(3)
	n.has(n.path, want(14, 16))
}

func TestTheEngineRotates(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.logs.Keep(t.Context(), n.seen(true))
	for range 5 {
		n.print(100)
		n.rotate()
	}
	n.print(1)
	// What is not there any more when we first look cannot be told.
	n.logs.Keep(t.Context(), n.seen(false))
	got, err := os.ReadFile(n.path)
	if err != nil || !strings.HasSuffix(string(got), want(401, 501)+end(500)) {
		t.Errorf("the log does not end in the last lines: %d bytes, %v", len(got), err)
	}
}

func TestTheEngineRotatesSlowly(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.logs.Keep(t.Context(), n.seen(true))
	for i := range 6 {
		n.print(100)
		if i%2 == 0 {
			n.rotate()
			n.print(10)
		} else {
			n.print(10)
			n.rotate()
		}
		n.logs.Keep(t.Context(), n.seen(true))
		n.has(n.path, want(1, n.lines))
	}
}

// A daemon that dies loses no line and repeats none, whenever it dies.
func TestKilled(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		meanwhile func(n *node)
		first     int // line in the file at path
	}{
		"nothing happens": {func(*node) {}, 1},
		"more is printed": {func(n *node) { n.print(50) }, 1},
		"the Engine rotates": {func(n *node) {
			n.print(50)
			n.rotate()
			n.print(50)
			n.rotate()
			n.print(50)
		}, 1},
		"the kubelet rotates": {func(n *node) {
			n.print(50)
			if err := os.Rename(n.path, n.path+".1"); err != nil {
				n.t.Fatal(err)
			}
		}, 61},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, logs.CRI)
			n.open()
			n.print(10)
			n.logs.Keep(t.Context(), n.seen(true))
			n.has(n.path, want(1, 10))
			restore := n.positions() // noted before the next lines are
			n.print(50)
			n.has(n.path, want(1, 60))
			n.end()
			restore()
			tt.meanwhile(n)
			n.begin()
			n.print(5)
			n.logs.Keep(t.Context(), n.seen(true))
			n.has(n.path, want(tt.first, n.lines))
			if strings.Contains(n.said.String(), "gap") {
				t.Errorf("a gap is told of:\n%s", n.said)
			}
		})
	}
}

func TestAGapIsTold(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.print(10)
	n.logs.Keep(t.Context(), n.seen(true))
	n.has(n.path, want(1, 10))
	n.end()
	for range 4 {
		n.print(10)
		n.rotate()
	}
	n.print(1)
	n.begin()
	n.logs.Keep(t.Context(), n.seen(true))
	n.has(n.path, want(1, 10)+want(31, 51))
	n.end()
	if !strings.Contains(n.said.String(), "gap") {
		t.Errorf("nothing is told of the gap:\n%s", n.said)
	}
}

// The Engine's file is emptied by operators who need the space.
func TestTruncated(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.print(10)
	n.logs.Keep(t.Context(), n.seen(true))
	n.has(n.path, want(1, 10))
	if err := os.Truncate(n.source, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	n.print(3)
	n.has(n.path, want(1, 13))
}

func TestWhatHasPrintedNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.logs.Keep(t.Context(), n.seen(true))
	if err := n.logs.Reopen(t.Context(), "c1"); err != nil {
		t.Error(err)
	}
	n.logs.Keep(t.Context(), n.seen(false))
	n.has(n.path, "")
}

func TestNeverStarted(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	for range 2 {
		if err := n.logs.Close(t.Context(), "c1", n.source, n.logDir(), n.path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(n.path); !os.IsNotExist(err) {
		t.Errorf("an empty file stays: %v", err)
	}
}

// removed is a node whose container has ended, and its log been removed.
func removed(t *testing.T) *node {
	t.Helper()
	n := newNode(t, logs.CRI)
	n.open()
	n.print(3)
	n.logs.Keep(t.Context(), n.seen(true))
	n.logs.Keep(t.Context(), n.seen(false))
	n.has(n.path, want(1, 3)+end(2))
	if err := os.Remove(n.path); err != nil {
		t.Fatal(err)
	}
	return n
}

// The kubelet removes the log before it removes the container.
func TestARemovedLogStaysRemoved(t *testing.T) {
	n := removed(t)
	n.logs.Keep(t.Context(), n.seen(false))
	if err := n.logs.Close(t.Context(), "c1", n.source, n.logDir(), n.path); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(n.path); !os.IsNotExist(err) {
		t.Errorf("the log has come back: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(n.dir, "journal", "v1", "logs")); len(left) > 0 {
		t.Errorf("left in the journal: %v", left)
	}
}

// Looks may come in another order than that in which they were taken.
func TestALateLookDoesNotStartALogAgain(t *testing.T) {
	t.Parallel()
	n := removed(t)
	n.logs.Keep(t.Context(), n.seen(true))
	time.Sleep(200 * time.Millisecond)
	if _, err := os.Lstat(n.path); !os.IsNotExist(err) {
		t.Errorf("the log has come back: %v", err)
	}
}

// The journal is written twice a second by a container that prints now and then,
// and not at all by one that does not.
func TestHowOftenTheJournalIsWritten(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	kept := filepath.Join(n.dir, "journal", "v1", "logs", "c1")
	if err := watcher.Add(filepath.Dir(kept)); err != nil {
		t.Fatal(err)
	}
	written := func() (times int) {
		for {
			select {
			case e := <-watcher.Events:
				if e.Name == kept && e.Has(fsnotify.Create) {
					times++
				}
			case <-time.After(100 * time.Millisecond):
				return times
			}
		}
	}
	n.print(1)
	n.logs.Keep(t.Context(), n.seen(true))
	began := time.Now()
	for range 39 {
		time.Sleep(50 * time.Millisecond)
		n.print(1)
	}
	n.has(n.path, want(1, 40))
	if got, most := written(), 3+int(time.Since(began)/(500*time.Millisecond)); got > most || got < 2 {
		t.Errorf("40 lines in %v make %d writes, want up to %d", time.Since(began), got, most)
	}
	n.noted()
	if err := os.Remove(n.source); err != nil { // and with it the watch
		t.Fatal(err)
	}
	n.logs.Keep(t.Context(), n.seen(true))
	written()
	time.Sleep(1100 * time.Millisecond)
	if got := written(); got > 0 {
		t.Errorf("an idle container makes %d writes", got)
	}
}

// What is wrong with the journal is said once.
func TestTheJournalCannotBeWritten(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.print(1)
	n.logs.Keep(t.Context(), n.seen(true))
	n.has(n.path, want(1, 1))
	if err := os.RemoveAll(filepath.Join(n.dir, "journal", "v1", "logs")); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		n.print(1)
		time.Sleep(50 * time.Millisecond)
	}
	n.has(n.path, want(1, 31))
	n.end()
	if got := strings.Count(n.said.String(), "cannot be saved"); got != 1 {
		t.Errorf("said %d times:\n%s", got, n.said)
	}
}

func TestStartedAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.print(3)
	n.logs.Keep(t.Context(), n.seen(true))
	n.logs.Keep(t.Context(), n.seen(false))
	n.runs++
	n.print(3) // by docker start, without our knowledge
	n.logs.Keep(t.Context(), n.seen(true))
	n.print(3)
	n.has(n.path, want(1, 3)+end(2)+want(4, 9))
}

func TestALinkComesAndGoes(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.Link)
	for range 2 { // after a restart everything is opened again
		n.open()
	}
	n.print(3)
	n.logs.Keep(t.Context(), n.seen(true))
	text, err := os.ReadFile(n.path)
	if original, _ := os.ReadFile(n.source); err != nil || !bytes.Equal(text, original) {
		t.Errorf("read %q, %v through the link", text, err)
	}
	if err := n.logs.Reopen(t.Context(), "c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reopen: %v, want a failed precondition", err)
	}
	for range 2 {
		if err := n.logs.Close(t.Context(), "c1", n.source, n.logDir(), n.path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(n.path); !os.IsNotExist(err) {
		t.Errorf("the link is still there: %v", err)
	}
}

// Containers keep the form of log that they were created with.
func TestModesDoNotChangeWhatIsThere(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.Link)
	n.open()
	n.print(3)
	n.logs.Keep(t.Context(), n.seen(true))
	n.end()
	n.mode = logs.CRI
	n.begin()
	n.logs.Keep(t.Context(), n.seen(true))
	if target, err := os.Readlink(n.path); err != nil || target != n.source {
		t.Errorf("a link is no link any more: %q, %v", target, err)
	}
}

// cri-dockerd's containers have a link, which a removed one gets again.
func TestTakenOver(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.print(3)
	c := n.seen(true)
	c.Ours = false
	n.logs.Keep(t.Context(), c)
	if target, err := os.Readlink(n.path); err != nil || target != n.source {
		t.Errorf("link to %q, %v", target, err)
	}
	if err := n.logs.Reopen(t.Context(), "c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reopen: %v, want a failed precondition", err)
	}
}

func TestAStaleLinkIsReplaced(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	if err := os.MkdirAll(filepath.Dir(n.path), 0o755); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(n.dir, "other")
	if err := os.Symlink(other, n.path); err != nil {
		t.Fatal(err)
	}
	n.open()
	n.print(1)
	n.logs.Keep(t.Context(), n.seen(true))
	n.has(n.path, want(1, 1))
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Error("written through a stale link")
	}
}

// Where the Engine does not say where its file is, nothing is begun that would
// have to be corrected once it does.
func TestWithoutASource(t *testing.T) {
	t.Parallel()
	blind := func(c *cache.Container) *cache.Container {
		c.JSONPath = ""
		return c
	}
	t.Run("copied", func(t *testing.T) {
		n := newNode(t, logs.CRI)
		n.open()
		n.print(3)
		n.logs.Keep(t.Context(), n.seen(true))
		n.has(n.path, want(1, 3))
		n.end()
		n.begin()
		n.logs.Keep(t.Context(), blind(n.seen(true)))
		n.logs.Keep(t.Context(), n.seen(true))
		n.print(3)
		n.has(n.path, want(1, 6))
	})
	t.Run("linked", func(t *testing.T) {
		n := newNode(t, logs.Link)
		n.open()
		n.print(3)
		n.logs.Keep(t.Context(), blind(n.seen(true)))
		n.logs.Keep(t.Context(), n.seen(false)) // waits for a pump, had one been made
		if left, _ := os.ReadDir(filepath.Join(n.dir, "journal", "v1", "logs")); len(left) > 0 {
			t.Errorf("the log of a link is said to be written by us: %v", left)
		}
	})
}
