package logs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine/enginetest"
	"berth/core/logs"
	"berth/core/logs/dockerlog"
	"berth/core/state"
	"berth/core/testmain"
)

// Most tests wait for time to pass, or for something to be noticed.
func TestMain(m *testing.M) { testmain.M{M: m}.Run() }

// A node is a directory with the files of Docker and the kubelet for one container, and a
// Service that can be stopped and started again.
type node struct {
	t         *testing.T
	dir       string
	driver    string // log driver of Docker
	source    string // Docker's log file
	path      string // the CRI log file
	mode      logs.Mode
	logs      *logs.Service
	logOutput *bytes.Buffer // the messages of the Service, complete once it has stopped
	stop      func()
	lines     int // printed so far
	starts    int // how often the container was started
}

func newNode(t *testing.T, mode logs.Mode) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, dir: dir, mode: mode, starts: 1, driver: dockerlog.JSONFile, source: filepath.Join(dir, "c1-json.log"), path: filepath.Join(dir, "pods", "web", "0.log")}
	n.start()
	t.Cleanup(func() { n.stop() })
	return n
}

// forEachDriver runs test with a node of each log driver of which berth reads the files.
func forEachDriver(t *testing.T, test func(t *testing.T, n *node)) {
	t.Helper()
	for _, driver := range []string{dockerlog.JSONFile, dockerlog.Local} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, logs.ModeCRI)
			n.driver = driver
			test(t, n)
		})
	}
}

// file is Docker's log file as the cache has it.
func (n *node) file() dockerlog.File { return dockerlog.File{Driver: n.driver, Path: n.source} }

// start starts the Service.
func (n *node) start() {
	n.t.Helper()
	store, err := state.Open(filepath.Join(n.dir, "state"))
	if err != nil {
		n.t.Fatal(err)
	}
	bucket, err := logs.OpenCheckpoints(store)
	if err != nil {
		n.t.Fatal(err)
	}
	n.logOutput = &bytes.Buffer{}
	n.logs = logs.New(n.mode, logs.BufferJSONFile, nil, bucket, slog.New(slog.NewTextHandler(n.logOutput, nil)))
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan error, 1)
	go func() { done <- n.logs.Run(ctx) }()
	n.stop = func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
		n.stop = func() {}
	}
}

// snapshotCheckpoint returns a function that restores the checkpoint as a daemon that is
// killed now would leave it.
func (n *node) snapshotCheckpoint() (restore func()) {
	n.t.Helper()
	name := filepath.Join(n.dir, "state", "v1", "logs", "c1")
	checkpoint, err := os.ReadFile(name)
	if err != nil {
		n.t.Fatal(err)
	}
	return func() {
		if err := os.WriteFile(name, checkpoint, 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
}

// waitForCheckpoint waits until the checkpoint covers all output.
func (n *node) waitForCheckpoint() {
	n.t.Helper()
	size, err := os.Stat(n.source)
	if err != nil {
		n.t.Fatal(err)
	}
	enginetest.Until(n.t, "the checkpoint does not reach the last line", func() bool {
		text, _ := os.ReadFile(filepath.Join(n.dir, "state", "v1", "logs", "c1"))
		return strings.Contains(string(text), fmt.Sprintf(`"offset":%d`, size.Size()))
	})
}

// printLines makes the container print count lines.
func (n *node) printLines(count int) {
	n.t.Helper()
	for range count {
		n.lines++
		line := printedLine(n.lines)
		n.write(n.entry(n.lines, map[string]string{"o": "stdout", "e": "stderr"}[line[:1]], line[2:]))
	}
}

// write appends to Docker's file.
func (n *node) write(b []byte) {
	n.t.Helper()
	f, err := os.OpenFile(n.source, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.Write(b)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// entry returns what Docker writes to its file for an output with the time of the i-th line.
func (n *node) entry(i int, stream, text string) []byte {
	n.t.Helper()
	if n.driver == dockerlog.JSONFile {
		entry, err := json.Marshal(map[string]string{"log": text, "stream": stream, "time": timeOf(i)})
		if err != nil {
			n.t.Fatal(err)
		}
		return append(entry, '\n')
	}
	line, ended := strings.CutSuffix(text, "\n")
	at, err := time.Parse(time.RFC3339Nano, timeOf(i))
	if err != nil {
		n.t.Fatal(err)
	}
	var m []byte
	m = protowire.AppendString(protowire.AppendTag(m, 1, protowire.BytesType), stream)
	m = protowire.AppendVarint(protowire.AppendTag(m, 2, protowire.VarintType), uint64(at.UnixNano()))
	m = protowire.AppendString(protowire.AppendTag(m, 3, protowire.BytesType), line)
	if !ended {
		m = protowire.AppendVarint(protowire.AppendTag(m, 4, protowire.VarintType), 1)
	}
	length := binary.BigEndian.AppendUint32(nil, uint32(len(m)))
	return slices.Concat(length, m, length)
}

// timeOf returns the time of the i-th line; all pieces of a line have the same.
func timeOf(i int) string {
	if i%3 == 1 && i > 1 {
		i -= 2
	}
	return time.Unix(1700000000, int64(i)).UTC().Format(time.RFC3339Nano)
}

// pieceSize is the length at which Docker splits a line.
const pieceSize = 16 << 10

// printedLine returns the i-th output of the container, after o for stdout or e for stderr: a
// line, or the first piece of a long one, the rest of which is printed next but one.
func printedLine(i int) string {
	switch i % 3 {
	case 0:
		return fmt.Sprintf("e line %d \"to stderr\"\n", i)
	case 1:
		return fmt.Sprintf("o line %d\n", i)
	default:
		return fmt.Sprintf("o %0*d", pieceSize, i)
	}
}

// wantRecords returns the CRI records of the lines from to to, inclusive.
func wantRecords(from, to int) string {
	var b strings.Builder
	for i := from; i <= to; i++ {
		line := printedLine(i)
		tag := "P"
		if strings.HasSuffix(line, "\n") {
			tag = "F"
		}
		fmt.Fprintf(&b, "%s %s %s %s\n", timeOf(i), map[string]string{"o": "stdout", "e": "stderr"}[line[:1]], tag, strings.TrimSuffix(line[2:], "\n"))
	}
	return b.String()
}

// endRecord returns the record that ends the i-th line, which was a piece.
func endRecord(i int) string { return timeOf(i) + " stdout F \n" }

// waitForContent waits until the file at path contains exactly text.
func (n *node) waitForContent(path, text string) {
	n.t.Helper()
	var got []byte
	for limit := time.Now().Add(enginetest.WaitTimeout); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		got, _ = os.ReadFile(path)
		if string(got) == text {
			return
		}
	}
	n.t.Errorf("%s is %d bytes, want %d\ngot  %.300q\nwant %.300q", filepath.Base(path), len(got), len(text), got, text)
}

// inspected returns the container as the cache has it after an inspect.
func (n *node) inspected(running bool) *cache.Container {
	return &cache.Container{
		Row:     &runtimeapi.Container{Id: "c1"},
		Status:  &runtimeapi.ContainerStatus{Id: "c1", LogPath: n.path, StartedAt: int64(n.starts)},
		Running: running, LogFile: n.file(), CreatedByBerth: true, LogDirectory: n.logDir(),
	}
}

// logDir is the log directory of the pod.
func (n *node) logDir() string { return filepath.Join(n.dir, "pods") }

// rotate renames the files as Docker does.
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

// create creates the log as core/container does.
func (n *node) create() {
	n.t.Helper()
	if err := n.logs.Create("c1", n.file(), n.logDir(), n.path); err != nil {
		n.t.Fatal(err)
	}
}

func TestOutputIsCopiedUntilExit(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.printLines(10)
		n.logs.Observe(t.Context(), n.inspected(true))
		n.waitForContent(n.path, wantRecords(1, 10))
		n.printLines(5) // found through the watch
		n.waitForContent(n.path, wantRecords(1, 15))
		n.printLines(1000)
		n.logs.Observe(t.Context(), n.inspected(false))
		if got, err := os.ReadFile(n.path); err != nil || string(got) != wantRecords(1, 1015) {
			t.Errorf("Observe returns before the last line is written: %d of %d bytes, %v", len(got), len(wantRecords(1, 1015)), err)
		}
	})
}

// A copy from the beginning would write every line twice.
func TestLogWhoseCheckpointCannotBeReadIsContinuedLater(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.printLines(10)
		n.logs.Observe(t.Context(), n.inspected(true))
		n.waitForContent(n.path, wantRecords(1, 10))
		n.waitForCheckpoint()
		n.stop()
		name := filepath.Join(n.dir, "state", "v1", "logs", "c1")
		if err := errors.Join(os.Rename(name, n.dir+"/away"), os.Mkdir(name, 0o700)); err != nil {
			t.Fatal(err)
		}
		n.start()
		n.printLines(6)
		n.logs.Observe(t.Context(), n.inspected(true))
		n.waitForContent(n.path, wantRecords(1, 10))
		if err := errors.Join(os.Remove(name), os.Rename(n.dir+"/away", name)); err != nil {
			t.Fatal(err)
		}
		n.logs.Observe(t.Context(), n.inspected(false))
		n.waitForContent(n.path, wantRecords(1, 16))
	})
}

func TestReopenBeginsNewFile(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.printLines(10)
		n.logs.Observe(t.Context(), n.inspected(true))
		n.waitForContent(n.path, wantRecords(1, 10))
		if err := os.Rename(n.path, n.path+".20261123-142630"); err != nil {
			t.Fatal(err)
		}
		n.printLines(3)
		n.waitForContent(n.path+".20261123-142630", wantRecords(1, 13))
		if err := n.logs.Reopen(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(n.path); err != nil {
			t.Error("there is no new file after Reopen has returned")
		}
		n.printLines(3)
		n.waitForContent(n.path, wantRecords(14, 16))
	})
}

func TestLastLinesAreCopiedAfterFastDockerRotations(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.logs.Observe(t.Context(), n.inspected(true))
		for range 5 {
			n.printLines(100)
			n.rotate()
		}
		n.printLines(1)
		// Files that Docker removes before the first read are lost.
		n.logs.Observe(t.Context(), n.inspected(false))
		got, err := os.ReadFile(n.path)
		if err != nil || !strings.HasSuffix(string(got), wantRecords(401, 501)+endRecord(500)) {
			t.Errorf("the log does not end with the last lines: %d bytes, %v", len(got), err)
		}
	})
}

func TestEveryLineIsCopiedAcrossDockerRotations(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.logs.Observe(t.Context(), n.inspected(true))
		for i := range 6 {
			n.printLines(100)
			if i%2 == 0 {
				n.rotate()
				n.printLines(10)
			} else {
				n.printLines(10)
				n.rotate()
			}
			n.logs.Observe(t.Context(), n.inspected(true))
			n.waitForContent(n.path, wantRecords(1, n.lines))
		}
	})
}

func TestKilledDaemonNeitherLosesNorRepeatsLines(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		meanwhile func(n *node)
		first     int // line in the file at path
	}{
		"nothing":     {func(*node) {}, 1},
		"more output": {func(n *node) { n.printLines(50) }, 1},
		"Docker rotates": {func(n *node) {
			n.printLines(50)
			n.rotate()
			n.printLines(50)
			n.rotate()
			n.printLines(50)
		}, 1},
		"the kubelet rotates": {func(n *node) {
			n.printLines(50)
			if err := os.Rename(n.path, n.path+".1"); err != nil {
				n.t.Fatal(err)
			}
		}, 61},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, logs.ModeCRI)
			n.create()
			n.printLines(10)
			n.logs.Observe(t.Context(), n.inspected(true))
			n.waitForContent(n.path, wantRecords(1, 10))
			restore := n.snapshotCheckpoint() // the checkpoint before the next lines
			n.printLines(50)
			n.waitForContent(n.path, wantRecords(1, 60))
			n.stop()
			restore()
			tt.meanwhile(n)
			n.start()
			n.printLines(5)
			n.logs.Observe(t.Context(), n.inspected(true))
			n.waitForContent(n.path, wantRecords(tt.first, n.lines))
			if strings.Contains(n.logOutput.String(), "gap") {
				t.Errorf("a gap is logged:\n%s", n.logOutput)
			}
		})
	}
}

func TestGapIsLogged(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.printLines(10)
		n.logs.Observe(t.Context(), n.inspected(true))
		n.waitForContent(n.path, wantRecords(1, 10))
		n.stop()
		for range 4 {
			n.printLines(10)
			n.rotate()
		}
		n.printLines(1)
		n.start()
		n.logs.Observe(t.Context(), n.inspected(true))
		n.waitForContent(n.path, wantRecords(1, 10)+wantRecords(31, 51))
		n.stop()
		if !strings.Contains(n.logOutput.String(), "gap") {
			t.Errorf("the gap is not logged:\n%s", n.logOutput)
		}
	})
}

// Operators truncate Docker's json-file to free disk space.
func TestCopyContinuesAfterTruncation(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.printLines(10)
		n.logs.Observe(t.Context(), n.inspected(true))
		n.waitForContent(n.path, wantRecords(1, 10))
		if err := os.Truncate(n.source, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		n.printLines(3)
		n.waitForContent(n.path, wantRecords(1, 13))
	})
}

func TestLogOfSilentContainerIsEmpty(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.logs.Observe(t.Context(), n.inspected(true))
		if err := n.logs.Reopen(t.Context(), "c1"); err != nil {
			t.Error(err)
		}
		n.logs.Observe(t.Context(), n.inspected(false))
		n.waitForContent(n.path, "")
	})
}

func TestRemoveDeletesUnusedLog(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		for range 2 {
			if err := n.logs.Remove(t.Context(), "c1", n.source, n.logDir(), n.path); err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Lstat(n.path); !os.IsNotExist(err) {
			t.Errorf("an empty file remains: %v", err)
		}
	})
}

// newNodeWithRemovedLog returns a node with a container that has exited and of which the log
// was removed.
func newNodeWithRemovedLog(t *testing.T) *node {
	t.Helper()
	n := newNode(t, logs.ModeCRI)
	n.create()
	n.printLines(3)
	n.logs.Observe(t.Context(), n.inspected(true))
	n.logs.Observe(t.Context(), n.inspected(false))
	n.waitForContent(n.path, wantRecords(1, 3)+endRecord(2))
	if err := os.Remove(n.path); err != nil {
		t.Fatal(err)
	}
	return n
}

// The kubelet removes the log before it removes the container.
func TestDeletedLogIsNotRecreated(t *testing.T) {
	n := newNodeWithRemovedLog(t)
	n.logs.Observe(t.Context(), n.inspected(false))
	if err := n.logs.Remove(t.Context(), "c1", n.source, n.logDir(), n.path); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(n.path); !os.IsNotExist(err) {
		t.Errorf("the log was created again: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(n.dir, "state", "v1", "logs")); len(left) > 0 {
		t.Errorf("checkpoints remain: %v", left)
	}
}

// Inspect results may be observed in another order than that of the inspect calls.
func TestOlderInspectResultDoesNotRestartLog(t *testing.T) {
	t.Parallel()
	n := newNodeWithRemovedLog(t)
	n.logs.Observe(t.Context(), n.inspected(true))
	time.Sleep(200 * time.Millisecond)
	if _, err := os.Lstat(n.path); !os.IsNotExist(err) {
		t.Errorf("the log was created again: %v", err)
	}
}

// Docker has the container and its json-file until the removal, which follows, has succeeded. Meanwhile an
// event can have it inspected.
func TestRemovedLogIsNotCopiedAgain(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.printLines(1)
		n.logs.Observe(t.Context(), n.inspected(true))
		n.logs.Observe(t.Context(), n.inspected(false))
		if err := n.logs.Remove(t.Context(), "c1", n.source, n.logDir(), n.path); err != nil {
			t.Fatal(err)
		}
		for _, when := range []string{"before the removal", "after a restart of the daemon"} {
			n.logs.Observe(t.Context(), n.inspected(false)) // returns when a log is complete
			text, err := os.ReadFile(n.path)
			if err != nil || string(text) != wantRecords(1, 1) {
				t.Errorf("inspected %s: the log is %q, %v", when, text, err)
			}
			n.stop()
			n.start()
		}
	})
}

// A container that prints now and then causes two writes per second, and an idle one none.
func TestCheckpointIsWrittenAtMostTwicePerSecond(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		watcher, err := fsnotify.NewWatcher()
		if err != nil {
			t.Fatal(err)
		}
		defer watcher.Close()
		checkpoint := filepath.Join(n.dir, "state", "v1", "logs", "c1")
		if err := watcher.Add(filepath.Dir(checkpoint)); err != nil {
			t.Fatal(err)
		}
		// written returns how often the checkpoint was written since the last call.
		written := func() (times int) {
			for {
				select {
				case e := <-watcher.Events:
					if e.Name == checkpoint && e.Has(fsnotify.Create) {
						times++
					}
				case <-time.After(time.Second): // events may be late on a busy machine
					return times
				}
			}
		}
		n.printLines(1)
		n.logs.Observe(t.Context(), n.inspected(true))
		began := time.Now()
		for range 39 {
			time.Sleep(50 * time.Millisecond)
			n.printLines(1)
		}
		n.waitForContent(n.path, wantRecords(1, 40))
		took := time.Since(began)
		if got, most := written(), 3+int(took/(500*time.Millisecond)); got > most || got < 2 {
			t.Errorf("40 lines in %v cause %d writes, want 2 to %d", took, got, most)
		}
		n.waitForCheckpoint()
		if err := os.Remove(n.source); err != nil { // which ends the watch
			t.Fatal(err)
		}
		n.logs.Observe(t.Context(), n.inspected(true))
		written()
		time.Sleep(1100 * time.Millisecond)
		if got := written(); got > 0 {
			t.Errorf("an idle container causes %d writes", got)
		}
	})
}

func TestCheckpointErrorIsLoggedOnce(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.printLines(1)
		n.logs.Observe(t.Context(), n.inspected(true))
		n.waitForContent(n.path, wantRecords(1, 1))
		if err := os.RemoveAll(filepath.Join(n.dir, "state", "v1", "logs")); err != nil {
			t.Fatal(err)
		}
		for range 30 {
			n.printLines(1)
			time.Sleep(50 * time.Millisecond)
		}
		n.waitForContent(n.path, wantRecords(1, 31))
		n.stop()
		if got := strings.Count(n.logOutput.String(), "cannot be saved"); got != 1 {
			t.Errorf("logged %d times, want once:\n%s", got, n.logOutput)
		}
	})
}

func TestRestartedContainerContinuesItsLog(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.printLines(3)
		n.logs.Observe(t.Context(), n.inspected(true))
		n.logs.Observe(t.Context(), n.inspected(false))
		n.starts++
		n.printLines(3) // after docker start, which berthd has not started
		n.logs.Observe(t.Context(), n.inspected(true))
		n.printLines(3)
		n.waitForContent(n.path, wantRecords(1, 3)+endRecord(2)+wantRecords(4, 9))
	})
}

func TestSymlinkIsCreatedAndRemoved(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.ModeSymlink)
	for range 2 { // after a restart of berthd the log is created again
		n.create()
	}
	n.printLines(3)
	n.logs.Observe(t.Context(), n.inspected(true))
	text, err := os.ReadFile(n.path)
	if original, _ := os.ReadFile(n.source); err != nil || !bytes.Equal(text, original) {
		t.Errorf("read %q, %v through the link", text, err)
	}
	if err := n.logs.Reopen(t.Context(), "c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reopen: %v, want a failed precondition", err)
	}
	for range 2 {
		if err := n.logs.Remove(t.Context(), "c1", n.source, n.logDir(), n.path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(n.path); !os.IsNotExist(err) {
		t.Errorf("the link remains: %v", err)
	}
}

// Containers keep the kind of log that they were created with.
func TestModeChangeKeepsExistingSymlink(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.ModeSymlink)
	n.create()
	n.printLines(3)
	n.logs.Observe(t.Context(), n.inspected(true))
	n.stop()
	n.mode = logs.ModeCRI
	n.start()
	n.logs.Observe(t.Context(), n.inspected(true))
	if target, err := os.Readlink(n.path); err != nil || target != n.source {
		t.Errorf("the log is not a link to Docker's file: %q, %v", target, err)
	}
}

// The log of a container of cri-dockerd is a link, which is created again if it was removed.
func TestSymlinkOfCriDockerdIsRestored(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.ModeCRI)
	n.printLines(3)
	c := n.inspected(true)
	c.CreatedByBerth = false
	n.logs.Observe(t.Context(), c)
	if target, err := os.Readlink(n.path); err != nil || target != n.source {
		t.Errorf("link to %q, %v", target, err)
	}
	if err := n.logs.Reopen(t.Context(), "c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reopen: %v, want a failed precondition", err)
	}
}

// cri-dockerd creates no link to a file of the driver local, which the kubelet could not read.
func TestLocalLogOfCriDockerdIsCopied(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.ModeCRI)
	n.driver = dockerlog.Local
	if err := os.MkdirAll(filepath.Dir(n.path), 0o700); err != nil {
		t.Fatal(err)
	}
	n.printLines(3)
	c := n.inspected(true)
	c.CreatedByBerth = false
	n.logs.Observe(t.Context(), c)
	n.waitForContent(n.path, wantRecords(1, 3))
}

// A log goes on behind what a crash has left of an entry, and behind zero bytes. Before more is written, nothing
// is read again and again.
func TestLogContinuesAfterTornEntry(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.printLines(3)
		n.logs.Observe(t.Context(), n.inspected(true))
		n.waitForContent(n.path, wantRecords(1, 3))
		torn := n.entry(4, "stderr", strings.Repeat("torn", 1000)+"\n")
		n.write(torn[:len(torn)/2])
		n.write(make([]byte, 100))
		if n.driver == dockerlog.JSONFile {
			n.write([]byte{'\n'}) // what Docker appends to a line belongs to the line
		}
		n.printLines(3)
		n.waitForContent(n.path, wantRecords(1, 6))
		n.write(torn[:len(torn)-1]) // the last bytes of the log
		n.logs.Observe(t.Context(), n.inspected(false))
		n.waitForContent(n.path, wantRecords(1, 6)+endRecord(5))
		n.stop()
		if got := strings.Count(n.logOutput.String(), "cannot be read, left out"); got != 1 {
			t.Errorf("logged %d times, want once:\n%s", got, n.logOutput)
		}
	})
}

// A new file of Docker's is read although the last one ends with a part of an entry.
func TestTornEntryAtTheEndOfAFileIsLeftOut(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.printLines(3)
		torn := n.entry(4, "stderr", strings.Repeat("torn", 1000)+"\n")
		n.write(torn[:len(torn)-1])
		n.logs.Observe(t.Context(), n.inspected(true))
		n.waitForContent(n.path, wantRecords(1, 3))
		n.rotate()
		n.printLines(3)
		n.waitForContent(n.path, wantRecords(1, 6))
	})
}

// The driver local keeps each byte; berth changes none.
func TestLocalLogKeepsAllBytes(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.ModeCRI)
	n.driver = dockerlog.Local
	n.create()
	var text []byte
	for i := range 256 {
		if i != '\n' {
			text = append(text, byte(i))
		}
	}
	n.write(n.entry(1, "stdout", string(text)+"\n"))
	n.logs.Observe(t.Context(), n.inspected(true))
	n.waitForContent(n.path, timeOf(1)+" stdout F "+string(text)+"\n")
}

func TestLogConfig(t *testing.T) {
	options := map[string]string{"max-size": "32m", "max-file": "3", "compress": "false", "mode": "blocking"}
	for name, tt := range map[string]struct {
		mode   logs.Mode
		buffer logs.Buffer
		want   container.LogConfig
	}{
		"default":   {logs.ModeCRI, "", container.LogConfig{Type: "json-file", Config: options}},
		"json-file": {logs.ModeCRI, logs.BufferJSONFile, container.LogConfig{Type: "json-file", Config: options}},
		"local":     {logs.ModeCRI, logs.BufferLocal, container.LogConfig{Type: "local", Config: options}},
		"symlink":   {logs.ModeSymlink, "", container.LogConfig{Type: "json-file"}},
		"follow":    {logs.ModeFollow, "", container.LogConfig{}},
	} {
		if diff := cmp.Diff(tt.want, logs.New(tt.mode, tt.buffer, nil, nil, nil).LogConfig()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestStaleSymlinkIsReplaced(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		if err := os.MkdirAll(filepath.Dir(n.path), 0o755); err != nil {
			t.Fatal(err)
		}
		other := filepath.Join(n.dir, "other")
		if err := os.Symlink(other, n.path); err != nil {
			t.Fatal(err)
		}
		n.create()
		n.printLines(1)
		n.logs.Observe(t.Context(), n.inspected(true))
		n.waitForContent(n.path, wantRecords(1, 1))
		if _, err := os.Stat(other); !os.IsNotExist(err) {
			t.Error("written through a stale link")
		}
	})
}

// While Docker does not report the path of its file, nothing is started that would have to
// be corrected later.
func TestUnknownSourcePathChangesNoLog(t *testing.T) {
	t.Parallel()
	withoutSource := func(c *cache.Container) *cache.Container {
		c.LogFile = dockerlog.File{}
		return c
	}
	t.Run("copied", func(t *testing.T) {
		n := newNode(t, logs.ModeCRI)
		n.create()
		n.printLines(3)
		n.logs.Observe(t.Context(), n.inspected(true))
		n.waitForContent(n.path, wantRecords(1, 3))
		n.stop()
		n.start()
		n.logs.Observe(t.Context(), withoutSource(n.inspected(true)))
		n.logs.Observe(t.Context(), n.inspected(true))
		n.printLines(3)
		n.waitForContent(n.path, wantRecords(1, 6))
	})
	t.Run("linked", func(t *testing.T) {
		n := newNode(t, logs.ModeSymlink)
		n.create()
		n.printLines(3)
		n.logs.Observe(t.Context(), withoutSource(n.inspected(true)))
		n.logs.Observe(t.Context(), n.inspected(false)) // would wait for a pump if there were one
		if left, _ := os.ReadDir(filepath.Join(n.dir, "state", "v1", "logs")); len(left) > 0 {
			t.Errorf("a checkpoint exists for a link: %v", left)
		}
	})
}
