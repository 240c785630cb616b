package logs_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine/enginetest"
	"berth/core/logs"
	"berth/core/logs/dockerlog"
	"berth/core/state"
)

// A streamNode is a container with a log that is copied from the log stream of an Engine.
type streamNode struct {
	t      *testing.T
	engine *enginetest.Engine
	logs   *logs.Service
	id     string
	path   string
	tty    bool
	stop   func() // of the Service
	start  func()
}

// newStreamNode starts a container that runs program and has the log driver driver.
func newStreamNode(t *testing.T, tty bool, driver string, program enginetest.Program) *streamNode {
	t.Helper()
	f := &streamNode{t: t, engine: enginetest.New(t), path: filepath.Join(t.TempDir(), "pods", "0.log"), tty: tty}
	f.engine.AddImage(enginetest.Image{}, "server")
	f.engine.Program("program", program)
	docker, c := f.engine.Connect(t), f.engine.Client(t)
	made, err := c.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"program"}, Tty: tty},
		&container.HostConfig{LogConfig: container.LogConfig{Type: driver}}, nil, nil, "c1")
	if err == nil {
		err = c.ContainerStart(t.Context(), made.ID, container.StartOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	f.id = made.ID
	bucket := newBucket(t)
	f.start = func() {
		f.logs = logs.New(logs.ModeFollow, "", docker, bucket, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.logs.Run(ctx) }()
		f.stop = func() {
			f.stop = func() {}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	f.start()
	t.Cleanup(func() { f.stop() })
	if err := f.logs.Create(made.ID, dockerlog.File{}, filepath.Dir(f.path), f.path); err != nil {
		t.Fatal(err)
	}
	f.observe(true)
	return f
}

// newBucket returns an empty bucket.
func newBucket(t *testing.T) *logs.Checkpoints {
	t.Helper()
	store, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := logs.OpenCheckpoints(store)
	if err != nil {
		t.Fatal(err)
	}
	return bucket
}

// observe passes the state of the container to the Service, as the cache does.
func (f *streamNode) observe(running bool) {
	f.logs.Observe(f.t.Context(), &cache.Container{
		Row:    &runtimeapi.Container{Id: f.id},
		Status: &runtimeapi.ContainerStatus{Id: f.id, LogPath: f.path, StartedAt: 1}, Running: running, TTY: f.tty, CreatedByBerth: true,
		LogDirectory: filepath.Dir(f.path),
	})
}

// A record is a record of a CRI log, without its time.
type record struct{ stream, tag, text string }

// readRecords reads the log at path.
func readRecords(t *testing.T, path string) (list []record) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), " ", 4)
		if len(fields) != 4 {
			t.Fatalf("not a record: %.200q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, fields[0]); err != nil {
			t.Fatal(err)
		}
		list = append(list, record{fields[1], fields[2], fields[3]})
	}
	return list
}

// joinPieces returns the lines of a log. A line without an end is an error.
func joinPieces(t *testing.T, list []record) (lines []record) {
	t.Helper()
	open := map[string]string{}
	for _, r := range list {
		open[r.stream] += r.text
		if r.tag == "F" {
			lines = append(lines, record{r.stream, "F", open[r.stream]})
			delete(open, r.stream)
		}
	}
	if len(open) > 0 {
		t.Errorf("lines without an end: %.200q", open)
	}
	return lines
}

// checkLinesAtExit waits until the container has exited, and checks the lines of its log.
func (f *streamNode) checkLinesAtExit(want ...record) {
	f.t.Helper()
	enginetest.Until(f.t, "the container does not exit", func() bool {
		c, err := f.engine.Client(f.t).ContainerInspect(f.t.Context(), f.id)
		return err == nil && !c.State.Running
	})
	f.observe(false)
	got := joinPieces(f.t, readRecords(f.t, f.path))
	if len(got) != len(want) {
		f.t.Fatalf("%d lines, want %d: %.300q", len(got), len(want), got)
	}
	for i := range want {
		if got[i].stream != want[i].stream || got[i].text != want[i].text {
			f.t.Errorf("line %d is %d bytes of %s, %.40q, want %d of %s, %.40q", i, len(got[i].text), got[i].stream, got[i].text, len(want[i].text), want[i].stream, want[i].text)
		}
	}
}

// asJSONFile returns line as the log driver json-file stores it: it splits the line every
// 16 KiB, and replaces each byte of invalid UTF-8 in a piece with U+FFFD.
func asJSONFile(line string) string {
	var out strings.Builder
	for len(line) > pieceSize {
		for _, r := range line[:pieceSize] {
			out.WriteRune(r)
		}
		line = line[pieceSize:]
	}
	for _, r := range line {
		out.WriteRune(r)
	}
	return out.String()
}

// With a terminal and without one, the log has the bytes as the log driver stores them.
func TestFollowCopiesAnyBytes(t *testing.T) {
	t.Parallel()
	for name, line := range map[string]string{
		"plain":            strings.Repeat("x", 100_000),
		"whole pieces":     strings.Repeat("x", 3*pieceSize),
		"two bytes":        "a" + strings.Repeat("é", 20_000),
		"three bytes":      "a" + strings.Repeat("€", 20_000),
		"four bytes":       "ab" + strings.Repeat("😀", 20_000),
		"no UTF-8":         strings.Repeat("\xff", 40_000),
		"no UTF-8, short":  strings.Repeat("\xff", 300),
		"spaces":           strings.Repeat(" ", 40_000),
		"a time":           strings.Repeat("2026-11-23T14:26:30.123456789Z ", 2000),
		"a time at a mark": strings.Repeat("x", 2*pieceSize-1) + " 2026-11-23T14:26:30.12Z y",
	} {
		for _, driver := range []string{"json-file", "local"} {
			for _, tty := range []bool{true, false} {
				t.Run(name+", "+driver+map[bool]string{true: ", terminal"}[tty], func(t *testing.T) {
					f := newStreamNode(t, tty, driver, enginetest.Prints("before\n"+line+"\nafter\n\nlast", "", 0, 0))
					want, end := line, ""
					if tty {
						end = "\r"
					}
					if want += end; driver == "json-file" {
						want = asJSONFile(want)
					}
					f.checkLinesAtExit(record{"stdout", "F", "before" + end}, record{"stdout", "F", want}, record{"stdout", "F", "after" + end}, record{"stdout", "F", end}, record{"stdout", "F", "last"})
				})
			}
		}
	}
}

func TestFollowEndsLastLine(t *testing.T) {
	t.Parallel()
	part := strings.Repeat("x", pieceSize)
	for name, tt := range map[string]struct {
		out, err string
		want     []record
	}{
		"short":           {"one\ntwo", "", []record{{"stdout", "F", "one"}, {"stdout", "F", "two"}}},
		"both streams":    {"a", "b", []record{{"stdout", "F", "a"}, {"stderr", "F", "b"}}},
		"whole pieceSize": {part, "", []record{{"stdout", "P", part}, {"stdout", "F", ""}}},
		"long":            {part + "end", "", []record{{"stdout", "P", part}, {"stdout", "F", "end"}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newStreamNode(t, false, "json-file", enginetest.Prints(tt.out, tt.err, 0, 0))
			enginetest.Until(t, "the container does not exit", func() bool {
				c, err := f.engine.Client(t).ContainerInspect(t.Context(), f.id)
				return err == nil && !c.State.Running
			})
			f.stop() // at exit berthd is stopped
			f.start()
			f.observe(false)
			got := readRecords(t, f.path)
			if len(got) != len(tt.want) {
				t.Fatalf("%.200q, want %.200q", got, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Errorf("record %d: %.100q, want %.100q", i, got[i], tt.want[i])
				}
			}
		})
	}
}

// Observe is called before the log stream has ended.
func TestFollowEndsLastLineBeforeExitIsReported(t *testing.T) {
	t.Parallel()
	exit := make(chan struct{})
	full := strings.Repeat("x", pieceSize)
	f := newStreamNode(t, false, "json-file", func(p *enginetest.Process) int {
		_, _ = p.Stdout.Write([]byte(full))
		<-exit
		return 0
	})
	enginetest.Until(t, "nothing is written", func() bool { return len(readRecords(t, f.path)) == 1 })
	time.AfterFunc(100*time.Millisecond, func() { close(exit) })
	f.observe(false)
	if got := readRecords(t, f.path); len(got) != 2 || got[1] != (record{"stdout", "F", ""}) {
		t.Errorf("%d records, the last one %.40q; want the piece and the end of its line", len(got), got[len(got)-1])
	}
}

func TestFollowReopenWaitsForEndOfLine(t *testing.T) {
	t.Parallel()
	continueLine := make(chan struct{})
	part := strings.Repeat("x", pieceSize)
	f := newStreamNode(t, false, "json-file", func(p *enginetest.Process) int {
		_, _ = p.Stdout.Write([]byte(part))
		<-continueLine
		_, _ = p.Stdout.Write([]byte("end\nnext\n"))
		return 0
	})
	enginetest.Until(t, "nothing is written", func() bool { return len(readRecords(t, f.path)) == 1 })
	older := f.path + ".1"
	if err := os.Rename(f.path, older); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.logs.Reopen(t.Context(), f.id) }()
	select {
	case err := <-done:
		t.Fatalf("Reopen has not waited for the end of the line: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(continueLine)
	if err := <-done; err != nil {
		t.Error(err)
	}
	f.checkLinesAtExit(record{"stdout", "F", "next"})
	if got := joinPieces(t, readRecords(t, older)); len(got) != 1 || got[0].text != part+"end" {
		t.Errorf("lines in the old file: %.200q", got)
	}
}

func TestFollowReopenBeforeStreamIsOpen(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	e.AddImage(enginetest.Image{}, "server")
	docker, c := e.Connect(t), e.Client(t)
	made, err := c.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"sleep", "1000"}}, nil, nil, nil, "c1")
	if err == nil {
		err = c.ContainerStart(t.Context(), made.ID, container.StartOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	bucket := newBucket(t)
	s := logs.New(logs.ModeFollow, "", docker, bucket, slog.New(slog.DiscardHandler))
	path := filepath.Join(t.TempDir(), "pods", "0.log")
	if err := s.Create(made.ID, dockerlog.File{}, filepath.Dir(path), path); err != nil {
		t.Fatal(err)
	}
	s.Observe(t.Context(), &cache.Container{
		Row:    &runtimeapi.Container{Id: made.ID},
		Status: &runtimeapi.ContainerStatus{Id: made.ID, LogPath: path, StartedAt: 1}, Running: true, CreatedByBerth: true, LogDirectory: filepath.Dir(path),
	})
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.WaitTimeout)
	defer cancel()
	first := make(chan error, 1)
	go func() { first <- s.Reopen(ctx, made.ID) }()
	time.Sleep(50 * time.Millisecond) // Reopen has to be called before Run
	enginetest.Background(t, s.Run)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := s.Reopen(ctx, made.ID); err != nil {
		t.Error(err)
	}
}

// All pieces of a line have the time of the first one, while the other stream continues:
// wherever berthd is restarted, each message is written once.
func TestFollowContinuesBothStreamsAfterRestart(t *testing.T) {
	t.Parallel()
	part, other := strings.Repeat("x", pieceSize), strings.Repeat("y", pieceSize)
	step := make(chan struct{})
	f := newStreamNode(t, false, "json-file", func(p *enginetest.Process) int {
		for _, w := range []struct {
			to   io.Writer
			text string
		}{
			{p.Stdout, "first\n"}, {p.Stderr, "FIRST\n"}, {p.Stdout, part}, {p.Stderr, other}, {p.Stdout, part}, {p.Stderr, other + "END\n"},
			{p.Stdout, part}, {p.Stderr, "next\n"}, {p.Stdout, "end\n"}, {p.Stderr, "last\n"},
		} {
			<-step
			_, _ = w.to.Write([]byte(w.text))
		}
		return 0
	})
	for i := range 10 {
		step <- struct{}{}
		enginetest.Until(t, "nothing is written", func() bool {
			_, err := os.Stat(f.path)
			return err == nil && len(readRecords(t, f.path)) > i
		})
		f.stop()
		f.start()
		f.observe(true)
	}
	f.checkLinesAtExit(record{"stdout", "F", "first"}, record{"stderr", "F", "FIRST"}, record{"stderr", "F", other + other + "END"},
		record{"stderr", "F", "next"}, record{"stdout", "F", part + part + part + "end"}, record{"stderr", "F", "last"})
}
