package logs_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"berth/core/logs"
)

// printText makes the container print text, with the time of the i-th line.
func (n *node) printText(stream string, i int, text string) {
	n.t.Helper()
	f, err := os.OpenFile(n.source, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := f.Write(n.entry(i, stream, text)); err != nil {
		n.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		n.t.Fatal(err)
	}
}

// observeStart creates the json-file, as Docker does before it reports the start of a
// container, and observes the start.
func (n *node) observeStart() {
	n.t.Helper()
	f, err := os.OpenFile(n.source, os.O_CREATE, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.logs.Observe(n.t.Context(), n.inspected(true))
}

// piece is a full piece of a line.
var piece = strings.Repeat("x", pieceSize)

func recordOf(i int, stream, tag, text string) string {
	return timeOf(i) + " " + stream + " " + tag + " " + text + "\n"
}

// After a container has exited its log has no open line in either stream, however the
// container and berthd have ended.
func TestLastLineIsEndedOnce(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		print func(n *node)
		want  string
	}{
		"short": {func(n *node) { n.printText("stdout", 2, "two") }, recordOf(2, "stdout", "F", "two")},
		"both streams": {func(n *node) { n.printText("stdout", 2, "a"); n.printText("stderr", 3, "b") },
			recordOf(2, "stdout", "F", "a") + recordOf(3, "stderr", "F", "b")},
		"long":        {func(n *node) { n.printText("stdout", 2, piece); n.printText("stdout", 2, "end") }, recordOf(2, "stdout", "P", piece) + recordOf(2, "stdout", "F", "end")},
		"whole piece": {func(n *node) { n.printText("stdout", 2, piece) }, recordOf(2, "stdout", "P", piece) + recordOf(2, "stdout", "F", "")},
		"whole pieces of both": {func(n *node) { n.printText("stderr", 2, piece); n.printText("stdout", 3, piece) },
			recordOf(2, "stderr", "P", piece) + recordOf(3, "stdout", "P", piece) + recordOf(3, "stdout", "F", "") + recordOf(2, "stderr", "F", "")},
	} {
		ends := map[string]func(n *node){
			"berthd runs": func(n *node) {
				n.observeStart()
				tt.print(n)
				n.logs.Observe(n.t.Context(), n.inspected(false))
			},
			"berthd was stopped": func(n *node) {
				n.observeStart()
				n.stop()
				tt.print(n)
				n.start()
				n.logs.Observe(n.t.Context(), n.inspected(false))
			},
			"berthd was stopped at exit": func(n *node) {
				n.observeStart()
				tt.print(n)
				n.waitForContent(n.path, strings.Split(tt.want, emptyEndRecord(tt.want))[0])
				n.stop()
				n.start()
				n.logs.Observe(n.t.Context(), n.inspected(false))
			},
			"berthd was killed": func(n *node) {
				n.printLines(1)
				n.observeStart()
				n.waitForContent(n.path, wantRecords(1, 1))
				restore := n.snapshotCheckpoint()
				tt.print(n)
				n.logs.Observe(n.t.Context(), n.inspected(false))
				n.waitForContent(n.path, wantRecords(1, 1)+tt.want)
				n.stop()
				restore()
				n.start()
				n.logs.Observe(n.t.Context(), n.inspected(false))
			},
			"it is removed": func(n *node) {
				n.observeStart()
				tt.print(n)
				n.waitForContent(n.path, strings.Split(tt.want, emptyEndRecord(tt.want))[0])
				if err := n.logs.Remove(n.t.Context(), "c1", n.source, n.logDir(), n.path); err != nil {
					n.t.Error(err)
				}
			},
		}
		for how, end := range ends {
			t.Run(name+", "+how, func(t *testing.T) {
				n := newNode(t, logs.ModeCRI)
				n.create()
				end(n)
				whole := tt.want
				if how == "berthd was killed" {
					whole = wantRecords(1, 1) + whole
				}
				n.waitForContent(n.path, whole)
				if how == "it is removed" {
					return
				}
				for range 2 { // the end is not added again
					n.stop()
					n.start()
					n.logs.Observe(t.Context(), n.inspected(false))
				}
				n.waitForContent(n.path, whole)
			})
		}
	}
}

// emptyEndRecord returns the first record in text that only ends a line, or a text that it
// does not contain.
func emptyEndRecord(text string) string {
	for line := range strings.Lines(text) {
		if strings.HasSuffix(line, " F \n") {
			return line
		}
	}
	return "\x00"
}

// Log collectors read each file separately.
func TestReopenWaitsForEndOfLine(t *testing.T) {
	t.Parallel()
	forEachDriver(t, func(t *testing.T, n *node) {
		n.create()
		n.observeStart()
		n.printText("stdout", 2, piece)
		n.printText("stderr", 3, piece)
		n.waitForContent(n.path, recordOf(2, "stdout", "P", piece)+recordOf(3, "stderr", "P", piece))
		older := n.path + ".1"
		if err := os.Rename(n.path, older); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- n.logs.Reopen(t.Context(), "c1") }()
		time.Sleep(100 * time.Millisecond) // Reopen has to be called before the lines continue
		n.printText("stdout", 2, piece)
		n.printText("stdout", 2, "end\n")
		n.printText("stdout", 5, "next\n") // the other stream has an open line
		n.printText("stderr", 3, "end\n")
		n.printText("stdout", 6, "in the new file\n")
		if err := <-done; err != nil {
			t.Error(err)
		}
		n.waitForContent(older, recordOf(2, "stdout", "P", piece)+recordOf(3, "stderr", "P", piece)+recordOf(2, "stdout", "P", piece)+recordOf(2, "stdout", "F", "end")+
			recordOf(5, "stdout", "F", "next")+recordOf(3, "stderr", "F", "end"))
		n.waitForContent(n.path, recordOf(6, "stdout", "F", "in the new file"))
	})
}

// newNodeInOpenLine returns a node with a container that has printed a piece of a line, and
// the name to which the kubelet has renamed its log.
func newNodeInOpenLine(t *testing.T) (n *node, older string) {
	t.Helper()
	n = newNode(t, logs.ModeCRI)
	n.create()
	n.observeStart()
	n.printText("stdout", 2, piece)
	n.waitForContent(n.path, recordOf(2, "stdout", "P", piece))
	older = n.path + ".1"
	if err := os.Rename(n.path, older); err != nil {
		t.Fatal(err)
	}
	return n, older
}

// The kubelet puts the file back whose rotation has failed: nothing may be written elsewhere.
func TestReopenWhoseCallerHasGoneIsNotDone(t *testing.T) {
	n, older := newNodeInOpenLine(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := n.logs.Reopen(ctx, "c1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that the deadline is exceeded", err)
	}
	n.printText("stdout", 2, "end\n")
	n.waitForContent(older, recordOf(2, "stdout", "P", piece)+recordOf(2, "stdout", "F", "end"))
	for range 20 {
		if _, err := os.Stat(n.path); err == nil {
			t.Fatal("the log is reopened after the caller has gone")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := os.Rename(older, n.path); err != nil {
		t.Fatal(err)
	}
	n.printText("stdout", 3, "more\n")
	n.logs.Observe(t.Context(), n.inspected(false))
	n.waitForContent(n.path, recordOf(2, "stdout", "P", piece)+recordOf(2, "stdout", "F", "end")+recordOf(3, "stdout", "F", "more"))
}

func TestReopenDoesNotWaitLongForEndOfLine(t *testing.T) {
	n, older := newNodeInOpenLine(t)
	began := time.Now()
	if err := n.logs.Reopen(t.Context(), "c1"); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Reopen takes %v", took)
	}
	n.printText("stdout", 2, piece)
	n.logs.Observe(t.Context(), n.inspected(false))
	n.waitForContent(older, recordOf(2, "stdout", "P", piece))
	n.waitForContent(n.path, recordOf(2, "stdout", "P", piece)+recordOf(2, "stdout", "F", ""))
}

func TestReopenAtExitEndsLineInOldFile(t *testing.T) {
	n, older := newNodeInOpenLine(t)
	done := make(chan error, 1)
	go func() { done <- n.logs.Reopen(t.Context(), "c1") }()
	// Reopen has to be called before the exit.
	for range 100 {
		select {
		case err := <-done:
			t.Fatalf("Reopen has not waited for the end of the line: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	n.logs.Observe(t.Context(), n.inspected(false))
	if err := <-done; err != nil {
		t.Error(err)
	}
	n.waitForContent(older, recordOf(2, "stdout", "P", piece)+recordOf(2, "stdout", "F", ""))
	n.waitForContent(n.path, "")
}
