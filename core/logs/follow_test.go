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
	"berth/core/state"
)

// A followed is a container whose log is read from the log stream of an Engine.
type followed struct {
	t      *testing.T
	engine *enginetest.Engine
	logs   *logs.Service
	id     string
	path   string
	tty    bool
	end    func() // of the daemon
	begin  func()
}

// follow starts a container of program that writes its log with driver.
func follow(t *testing.T, tty bool, driver string, program enginetest.Program) *followed {
	t.Helper()
	f := &followed{t: t, engine: enginetest.New(t), path: filepath.Join(t.TempDir(), "pods", "0.log"), tty: tty}
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
	shelf := newShelf(t)
	f.begin = func() {
		f.logs = logs.New(logs.Follow, docker, shelf, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.logs.Run(ctx) }()
		f.end = func() {
			f.end = func() {}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	f.begin()
	t.Cleanup(func() { f.end() })
	if err := f.logs.Open(made.ID, "", filepath.Dir(f.path), f.path); err != nil {
		t.Fatal(err)
	}
	f.keep(true)
	return f
}

// newShelf returns where positions are kept.
func newShelf(t *testing.T) *logs.Positions {
	t.Helper()
	notes, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	shelf, err := logs.OpenPositions(notes)
	if err != nil {
		t.Fatal(err)
	}
	return shelf
}

// keep tells what the view would of the container.
func (f *followed) keep(running bool) {
	f.logs.Keep(f.t.Context(), &cache.Container{
		Row:    &runtimeapi.Container{Id: f.id},
		Status: &runtimeapi.ContainerStatus{Id: f.id, LogPath: f.path, StartedAt: 1}, Running: running, TTY: f.tty, Ours: true,
		LogDirectory: filepath.Dir(f.path),
	})
}

// A rec is a record of a log.
type rec struct{ stream, tag, text string }

// records reads the log at path.
func records(t *testing.T, path string) (list []rec) {
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
		list = append(list, rec{fields[1], fields[2], fields[3]})
	}
	return list
}

// joined puts the pieces of lines together, and tells of lines that have no end.
func joined(t *testing.T, list []rec) (lines []rec) {
	t.Helper()
	open := map[string]string{}
	for _, r := range list {
		open[r.stream] += r.text
		if r.tag == "F" {
			lines = append(lines, rec{r.stream, "F", open[r.stream]})
			delete(open, r.stream)
		}
	}
	if len(open) > 0 {
		t.Errorf("lines without an end: %.200q", open)
	}
	return lines
}

// whole waits until the container has ended, and checks what the log says then.
func (f *followed) whole(want ...rec) {
	f.t.Helper()
	enginetest.Until(f.t, "it does not end", func() bool {
		c, err := f.engine.Client(f.t).ContainerInspect(f.t.Context(), f.id)
		return err == nil && !c.State.Running
	})
	f.keep(false)
	got := joined(f.t, records(f.t, f.path))
	if len(got) != len(want) {
		f.t.Fatalf("%d lines, want %d: %.300q", len(got), len(want), got)
	}
	for i := range want {
		if got[i].stream != want[i].stream || got[i].text != want[i].text {
			f.t.Errorf("line %d is %d bytes of %s, %.40q, want %d of %s, %.40q", i, len(got[i].text), got[i].stream, got[i].text, len(want[i].text), want[i].stream, want[i].text)
		}
	}
}

// damaged is what a json-file makes of a line: it is cut at each 16 KiB, and what is no
// character in a piece is U+FFFD for each byte.
func damaged(line string) string {
	var out strings.Builder
	for len(line) > piece {
		for _, r := range line[:piece] {
			out.WriteRune(r)
		}
		line = line[piece:]
	}
	for _, r := range line {
		out.WriteRune(r)
	}
	return out.String()
}

// Whatever a container writes, with a terminal or without one, its log goes on,
// and has the bytes as the log driver keeps them.
func TestFollowAnyBytes(t *testing.T) {
	t.Parallel()
	for name, line := range map[string]string{
		"plain":            strings.Repeat("x", 100_000),
		"whole pieces":     strings.Repeat("x", 3*piece),
		"two bytes":        "a" + strings.Repeat("é", 20_000),
		"three bytes":      "a" + strings.Repeat("€", 20_000),
		"four bytes":       "ab" + strings.Repeat("😀", 20_000),
		"no UTF-8":         strings.Repeat("\xff", 40_000),
		"no UTF-8, short":  strings.Repeat("\xff", 300),
		"spaces":           strings.Repeat(" ", 40_000),
		"a time":           strings.Repeat("2026-11-23T14:26:30.123456789Z ", 2000),
		"a time at a mark": strings.Repeat("x", 2*piece-1) + " 2026-11-23T14:26:30.12Z y",
	} {
		for _, driver := range []string{"json-file", "local"} {
			for _, tty := range []bool{true, false} {
				t.Run(name+", "+driver+map[bool]string{true: ", terminal"}[tty], func(t *testing.T) {
					f := follow(t, tty, driver, enginetest.Prints("before\n"+line+"\nafter\n\nlast", "", 0, 0))
					kept, end := line, ""
					if tty {
						end = "\r"
					}
					if kept += end; driver == "json-file" {
						kept = damaged(kept)
					}
					f.whole(rec{"stdout", "F", "before" + end}, rec{"stdout", "F", kept}, rec{"stdout", "F", "after" + end}, rec{"stdout", "F", end}, rec{"stdout", "F", "last"})
				})
			}
		}
	}
}

// The last line of each stream is over once the container has ended.
func TestFollowEndsTheLastLine(t *testing.T) {
	t.Parallel()
	part := strings.Repeat("x", piece)
	for name, tt := range map[string]struct {
		out, err string
		want     []rec
	}{
		"short":        {"one\ntwo", "", []rec{{"stdout", "F", "one"}, {"stdout", "F", "two"}}},
		"both streams": {"a", "b", []rec{{"stdout", "F", "a"}, {"stderr", "F", "b"}}},
		"whole piece":  {part, "", []rec{{"stdout", "P", part}, {"stdout", "F", ""}}},
		"long":         {part + "end", "", []rec{{"stdout", "P", part}, {"stdout", "F", "end"}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := follow(t, false, "json-file", enginetest.Prints(tt.out, tt.err, 0, 0))
			enginetest.Until(t, "it does not end", func() bool {
				c, err := f.engine.Client(t).ContainerInspect(t.Context(), f.id)
				return err == nil && !c.State.Running
			})
			f.end() // berthd is away at the end
			f.begin()
			f.keep(false)
			got := records(t, f.path)
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

// A new file is begun between lines.
func TestFollowReopensBetweenLines(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	part := strings.Repeat("x", piece)
	f := follow(t, false, "json-file", func(p *enginetest.Process) int {
		_, _ = p.Stdout.Write([]byte(part))
		<-goOn
		_, _ = p.Stdout.Write([]byte("end\nnext\n"))
		return 0
	})
	enginetest.Until(t, "nothing is written", func() bool { return len(records(t, f.path)) == 1 })
	older := f.path + ".1"
	if err := os.Rename(f.path, older); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.logs.Reopen(t.Context(), f.id) }()
	select {
	case err := <-done:
		t.Fatalf("it has not waited for the end of the line: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
	f.whole(rec{"stdout", "F", "next"})
	if got := joined(t, records(t, older)); len(got) != 1 || got[0].text != part+"end" {
		t.Errorf("the older file: %.200q", got)
	}
}

// A file is begun anew also if that was asked for before there is a stream.
func TestFollowReopens(t *testing.T) {
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
	shelf := newShelf(t)
	s := logs.New(logs.Follow, docker, shelf, slog.New(slog.DiscardHandler))
	path := filepath.Join(t.TempDir(), "pods", "0.log")
	if err := s.Open(made.ID, "", filepath.Dir(path), path); err != nil {
		t.Fatal(err)
	}
	s.Keep(t.Context(), &cache.Container{
		Row:    &runtimeapi.Container{Id: made.ID},
		Status: &runtimeapi.ContainerStatus{Id: made.ID, LogPath: path, StartedAt: 1}, Running: true, Ours: true, LogDirectory: filepath.Dir(path),
	})
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Patience)
	defer cancel()
	first := make(chan error, 1)
	go func() { first <- s.Reopen(ctx, made.ID) }()
	time.Sleep(50 * time.Millisecond) // it is asked for before Run begins
	enginetest.Background(t, s.Run)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := s.Reopen(ctx, made.ID); err != nil {
		t.Error(err)
	}
}

// A line in pieces has the time of its first piece, while the other stream goes on: wherever
// berthd is begun anew, each message is written once.
func TestFollowGoesOnInBothStreams(t *testing.T) {
	t.Parallel()
	part, other := strings.Repeat("x", piece), strings.Repeat("y", piece)
	step := make(chan struct{})
	f := follow(t, false, "json-file", func(p *enginetest.Process) int {
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
			return err == nil && len(records(t, f.path)) > i
		})
		f.end()
		f.begin()
		f.keep(true)
	}
	f.whole(rec{"stdout", "F", "first"}, rec{"stderr", "F", "FIRST"}, rec{"stderr", "F", other + other + "END"},
		rec{"stderr", "F", "next"}, rec{"stdout", "F", part + part + part + "end"}, rec{"stderr", "F", "last"})
}
