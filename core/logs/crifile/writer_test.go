package crifile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/core/logs/dockerlog"
)

// newLog returns the path of a log in a new directory.
func newLog(t *testing.T) Path {
	t.Helper()
	dir := t.TempDir()
	path, err := NewPath(dir, filepath.Join(dir, "web", "0.log"))
	if err == nil {
		err = path.Create()
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, w *Writer, records ...string) {
	t.Helper()
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := w.Write([]byte(r)); err != nil {
			t.Fatal(err)
		}
	}
}

func checkpoint(t *testing.T, w *Writer) Position {
	t.Helper()
	if !w.CanCheckpoint() {
		t.Fatal("no checkpoint is possible after everything was written")
	}
	pos, err := w.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

func checkContent(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s contains %q, %v, want %q", filepath.Base(path), got, err, want)
	}
}

// A writer repeats nothing that its predecessor has written after its last checkpoint, in
// however large parts.
func TestWriterSkipsUnackedTail(t *testing.T) {
	for name, parts := range map[string][]string{
		"same parts":    {"b\n", "c\n", "d\n"},
		"one part":      {"b\nc\nd\n"},
		"across end":    {"b\n", "c\nd\n"},
		"smaller parts": {"b", "\nc", "\nd", "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			path := newLog(t)
			w := NewWriter(path, Position{})
			write(t, w, "a\n")
			pos := checkpoint(t, w)
			write(t, w, "b\n", "c\n") // and is killed
			next := NewWriter(path, pos)
			write(t, next, parts[0])
			if parts[0] == "b\n" && next.CanCheckpoint() {
				t.Error("a checkpoint is possible within the unacknowledged tail")
			}
			write(t, next, parts[1:]...)
			checkContent(t, path.String(), "a\nb\nc\nd\n")
			if got := checkpoint(t, next).Offset; got != 8 {
				t.Errorf("checkpoint at %d, want 8", got)
			}
		})
	}
}

func TestWriterSkipsUnackedTailInRenamedFile(t *testing.T) {
	path := newLog(t)
	w := NewWriter(path, Position{})
	write(t, w, "a\n")
	pos := checkpoint(t, w)
	write(t, w, "b\n")
	renamed := path.String() + ".20261126-074512"
	if err := os.Rename(path.String(), renamed); err != nil {
		t.Fatal(err)
	}
	write(t, NewWriter(path, pos), "b\n", "c\n")
	checkContent(t, renamed, "a\nb\n")
	checkContent(t, path.String(), "c\n")
}

func TestWriterKeepsRecordsThatDifferFromTail(t *testing.T) {
	path := newLog(t)
	w := NewWriter(path, Position{})
	write(t, w, "a\n")
	pos := checkpoint(t, w)
	write(t, w, "x\n")
	write(t, NewWriter(path, pos), "b\n", "c\n")
	checkContent(t, path.String(), "a\nx\nb\nc\n")
}

// What a full disk refuses is written when there is space again, in order and once.
func TestWriterFlushesPendingRecords(t *testing.T) {
	path := newLog(t)
	w := NewWriter(path, Position{})
	write(t, w, "a\n")
	file := w.file
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	w.file = full
	for _, r := range []string{"b\n", "c\n"} {
		if err := w.Write([]byte(r)); err == nil {
			t.Error("a write to a full disk succeeds")
		}
	}
	if w.CanCheckpoint() {
		t.Error("a checkpoint is possible while records are pending")
	}
	if err := w.Reopen(); err == nil {
		t.Error("a new file begins before the old one is complete")
	}
	_ = full.Close()
	w.file = file
	if err := w.Flush(); err != nil {
		t.Error(err)
	}
	checkContent(t, path.String(), "a\nb\nc\n")
	checkpoint(t, w)
}

// The kubelet puts a rotated file back if its call of ReopenContainerLog fails, also if the log was reopened nevertheless.
func TestLogThatTheKubeletPutsBackHasAllRecords(t *testing.T) {
	for name, next := range map[string]func(t *testing.T, w *Writer, path string) (all []string){
		"more is written": func(t *testing.T, w *Writer, path string) []string {
			write(t, w, "4\n")
			return []string{path, "1\n2\n3\n4\n"}
		},
		"it is closed": func(t *testing.T, w *Writer, path string) []string {
			if err := w.Close(); err != nil {
				t.Error(err)
			}
			return []string{path, "1\n2\n3\n"}
		},
		"it is rotated again": func(t *testing.T, w *Writer, path string) []string {
			if err := errors.Join(os.Rename(path, path+".2"), w.Reopen()); err != nil {
				t.Error(err)
			}
			write(t, w, "4\n")
			return []string{path + ".2", "1\n2\n3\n", path, "4\n"}
		},
		"it is put back twice": func(t *testing.T, w *Writer, path string) []string {
			if err := errors.Join(os.Rename(path, path+".2"), w.Reopen(), os.Rename(path+".2", path)); err != nil {
				t.Error(err)
			}
			write(t, w, "4\n")
			return []string{path, "1\n2\n3\n4\n"}
		},
		"it is removed": func(t *testing.T, w *Writer, path string) []string {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
			write(t, w, "4\n")
			if err := w.Reopen(); err != nil {
				t.Error(err)
			}
			write(t, w, "5\n")
			return []string{path, "5\n"}
		},
		"its directory is removed": func(t *testing.T, w *Writer, path string) []string {
			if err := os.RemoveAll(filepath.Dir(path)); err != nil {
				t.Error(err)
			}
			write(t, w, "4\n")
			return nil
		},
		"it has a second name": func(t *testing.T, w *Writer, path string) []string {
			if err := os.Link(path, path+"-link"); err != nil {
				t.Error(err)
			}
			write(t, w, "4\n")
			return []string{path, "1\n2\n"}
		},
		"another file has its name": func(t *testing.T, w *Writer, path string) []string {
			if err := errors.Join(os.WriteFile(path+".x", []byte("foreign\n"), 0o600), os.Rename(path+".x", path)); err != nil {
				t.Error(err)
			}
			write(t, w, "4\n")
			return []string{path, "foreign\n"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := newLog(t)
			w := NewWriter(path, Position{})
			t.Cleanup(func() { w.Close() })
			write(t, w, "1\n", "2\n")
			if err := errors.Join(os.Rename(path.String(), path.String()+".1"), w.Reopen()); err != nil {
				t.Fatal(err)
			}
			write(t, w, "3\n")
			if err := os.Rename(path.String()+".1", path.String()); err != nil {
				t.Fatal(err)
			}
			want := next(t, w, path.String())
			for i := 0; i < len(want); i += 2 {
				checkContent(t, want[i], want[i+1])
			}
			if w.IsOpen() && len(want) > 0 && strings.Contains(want[len(want)-1], "4") {
				info, err := os.Stat(want[len(want)-2])
				if pos := checkpoint(t, w); err != nil || pos.Inode != inodeOf(info) || pos.Offset != info.Size() {
					t.Errorf("checkpoint %+v, %v, want that of %s", pos, err, want[len(want)-2])
				}
			}
		})
	}
}

func TestOpenLinesAppendEntry(t *testing.T) {
	piece := strings.Repeat("x", dockerlog.PieceSize)
	for name, tt := range map[string]struct{ texts, want []string }{
		"a line":                {[]string{"a\n"}, []string{"F a"}},
		"no line break":         {[]string{"a"}, []string{"F a"}},
		"an empty line":         {[]string{"\n"}, []string{"F "}},
		"line breaks":           {[]string{"a\nb\nc"}, []string{"F a", "F b", "F c"}},
		"pieces":                {[]string{piece, piece, "b\n"}, []string{"P x", "P x", "F b"}},
		"a full last piece":     {[]string{piece, ""}, []string{"P x", "F "}},
		"no text":               {[]string{""}, nil},
		"a piece and its break": {[]string{piece + "\n"}, []string{"F x"}},
	} {
		t.Run(name, func(t *testing.T) {
			var open OpenLines
			var got []string
			for _, text := range tt.texts {
				records := open.AppendEntry(nil, dockerlog.Entry{Time: []byte("T"), Stream: dockerlog.Stderr, Text: []byte(text)})
				for r := range strings.Lines(string(records)) {
					got = append(got, strings.ReplaceAll(strings.TrimSuffix(r, "\n"), piece, "x"))
				}
			}
			var want []string
			for _, r := range tt.want {
				want = append(want, "T stderr "+r)
			}
			if strings.Join(got, "|") != strings.Join(want, "|") {
				t.Errorf("got %q, want %q", got, want)
			}
			if open.Any() {
				t.Errorf("lines are open after their end: %+v", open)
			}
		})
	}
}
