package logs_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"berth/core/logs"
)

// write has the container print text without a line break at once, as of the
// i-th line.
func (n *node) write(stream string, i int, text string) {
	n.t.Helper()
	f, err := os.OpenFile(n.source, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := json.NewEncoder(f).Encode(map[string]string{"log": text, "stream": stream, "time": stamp(i)}); err != nil {
		n.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		n.t.Fatal(err)
	}
}

// started makes the Engine's file, as an Engine does before it tells of a start, and tells.
func (n *node) started() {
	n.t.Helper()
	f, err := os.OpenFile(n.source, os.O_CREATE, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.logs.Keep(n.t.Context(), n.seen(true))
}

// part is a part of a line, as long as the Engine makes them.
var part = strings.Repeat("x", piece)

func record(i int, stream, tag, text string) string {
	return stamp(i) + " " + stream + " " + tag + " " + text + "\n"
}

// Once a container has ended its log has no line that is not over: on neither
// stream, and however it and berthd have ended.
func TestTheLastLineIsAFullOne(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		print func(n *node)
		want  string
	}{
		"short": {func(n *node) { n.write("stdout", 2, "two") }, record(2, "stdout", "F", "two")},
		"both streams": {func(n *node) { n.write("stdout", 2, "a"); n.write("stderr", 3, "b") },
			record(2, "stdout", "F", "a") + record(3, "stderr", "F", "b")},
		"long":        {func(n *node) { n.write("stdout", 2, part); n.write("stdout", 2, "end") }, record(2, "stdout", "P", part) + record(2, "stdout", "F", "end")},
		"whole piece": {func(n *node) { n.write("stdout", 2, part) }, record(2, "stdout", "P", part) + record(2, "stdout", "F", "")},
		"whole pieces of both": {func(n *node) { n.write("stderr", 2, part); n.write("stdout", 3, part) },
			record(2, "stderr", "P", part) + record(3, "stdout", "P", part) + record(3, "stdout", "F", "") + record(2, "stderr", "F", "")},
	} {
		ends := map[string]func(n *node){
			"berthd is there": func(n *node) {
				n.started()
				tt.print(n)
				n.logs.Keep(n.t.Context(), n.seen(false))
			},
			"berthd was away": func(n *node) {
				n.started()
				n.end()
				tt.print(n)
				n.begin()
				n.logs.Keep(n.t.Context(), n.seen(false))
			},
			"berthd was away at the end": func(n *node) {
				n.started()
				tt.print(n)
				n.has(n.path, strings.Split(tt.want, stampEnd(tt.want))[0])
				n.end()
				n.begin()
				n.logs.Keep(n.t.Context(), n.seen(false))
			},
			"berthd was killed": func(n *node) {
				n.print(1)
				n.started()
				n.has(n.path, want(1, 1))
				restore := n.positions()
				tt.print(n)
				n.logs.Keep(n.t.Context(), n.seen(false))
				n.has(n.path, want(1, 1)+tt.want)
				n.end()
				restore()
				n.begin()
				n.logs.Keep(n.t.Context(), n.seen(false))
			},
			"it is removed": func(n *node) {
				n.started()
				tt.print(n)
				n.has(n.path, strings.Split(tt.want, stampEnd(tt.want))[0])
				if err := n.logs.Close(n.t.Context(), "c1", n.source, n.logDir(), n.path); err != nil {
					n.t.Error(err)
				}
			},
		}
		for how, end := range ends {
			t.Run(name+", "+how, func(t *testing.T) {
				n := newNode(t, logs.CRI)
				n.open()
				end(n)
				whole := tt.want
				if how == "berthd was killed" {
					whole = want(1, 1) + whole
				}
				n.has(n.path, whole)
				if how == "it is removed" {
					return
				}
				for range 2 { // and once more is not added
					n.end()
					n.begin()
					n.logs.Keep(t.Context(), n.seen(false))
				}
				n.has(n.path, whole)
			})
		}
	}
}

// stampEnd returns the first of the records in text that only end a line, or what
// is not in it.
func stampEnd(text string) string {
	for line := range strings.Lines(text) {
		if strings.HasSuffix(line, " F \n") {
			return line
		}
	}
	return "\x00"
}

// The kubelet rotates between lines: what collects logs reads each file by itself.
func TestReopenWaitsForTheEndOfALine(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.CRI)
	n.open()
	n.started()
	n.write("stdout", 2, part)
	n.write("stderr", 3, part)
	n.has(n.path, record(2, "stdout", "P", part)+record(3, "stderr", "P", part))
	older := n.path + ".1"
	if err := os.Rename(n.path, older); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- n.logs.Reopen(t.Context(), "c1") }()
	time.Sleep(100 * time.Millisecond) // it is asked for before the lines go on
	n.write("stdout", 2, part)
	n.write("stdout", 2, "end\n")
	n.write("stdout", 5, "next\n") // the other stream is in the middle of one
	n.write("stderr", 3, "end\n")
	n.write("stdout", 6, "in the new file\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
	n.has(older, record(2, "stdout", "P", part)+record(3, "stderr", "P", part)+record(2, "stdout", "P", part)+record(2, "stdout", "F", "end")+
		record(5, "stdout", "F", "next")+record(3, "stderr", "F", "end"))
	n.has(n.path, record(6, "stdout", "F", "in the new file"))
}

// inALine returns a node whose container has printed a part of a line, and what the
// kubelet has just renamed its log to.
func inALine(t *testing.T) (n *node, older string) {
	t.Helper()
	n = newNode(t, logs.CRI)
	n.open()
	n.started()
	n.write("stdout", 2, part)
	n.has(n.path, record(2, "stdout", "P", part))
	older = n.path + ".1"
	if err := os.Rename(n.path, older); err != nil {
		t.Fatal(err)
	}
	return n, older
}

// A line that does not end keeps no rotation back for long.
func TestReopenInALineThatGoesOn(t *testing.T) {
	n, older := inALine(t)
	began := time.Now()
	if err := n.logs.Reopen(t.Context(), "c1"); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it takes %v", took)
	}
	n.write("stdout", 2, part)
	n.logs.Keep(t.Context(), n.seen(false))
	n.has(older, record(2, "stdout", "P", part))
	n.has(n.path, record(2, "stdout", "P", part)+record(2, "stdout", "F", ""))
}

// A container that ends in the middle of a line ends it in the file that has its
// beginning, if a new one is asked for then.
func TestReopenAtTheEnd(t *testing.T) {
	n, older := inALine(t)
	done := make(chan error, 1)
	go func() { done <- n.logs.Reopen(t.Context(), "c1") }()
	// Only once it has been asked for.
	for range 100 {
		select {
		case err := <-done:
			t.Fatalf("it has not waited for the end: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	n.logs.Keep(t.Context(), n.seen(false))
	if err := <-done; err != nil {
		t.Error(err)
	}
	n.has(older, record(2, "stdout", "P", part)+record(2, "stdout", "F", ""))
	n.has(n.path, "")
}
