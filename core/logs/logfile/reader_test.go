package logfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A log is a directory with the files that Docker would write.
type log struct {
	t    *testing.T
	path string
}

func newLog(t *testing.T) *log {
	t.Helper()
	return &log{t, filepath.Join(t.TempDir(), "c1-json.log")}
}

func (l *log) print(text string) {
	l.t.Helper()
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// rotate renames the files as Docker does with max-file=3.
func (l *log) rotate() {
	l.t.Helper()
	for n := 2; n > 0; n-- {
		if err := os.Rename(fileName(l.path, n-1), fileName(l.path, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.t.Fatal(err)
		}
	}
}

func hasLine(b []byte) bool { return bytes.IndexByte(b, '\n') >= 0 }

// readAll returns everything that r can read, and whether there was a gap.
func readAll(t *testing.T, r *Reader) (text string, gap bool) {
	t.Helper()
	if err := r.Open(); errors.Is(err, ErrGap) {
		gap = true
	} else if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 3) // smaller than a line
	for {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		text += string(buf[:n])
		r.Advance(n)
		if n > 0 {
			continue
		}
		next, err := r.Continue()
		if errors.Is(err, ErrGap) {
			gap = true
		} else if err != nil {
			t.Fatal(err)
		}
		if next == NothingYet {
			return text, gap
		}
	}
}

func TestReaderContinuesAfterRotations(t *testing.T) {
	for name, tt := range map[string]struct {
		meanwhile func(l *log)
		want      string
		gap       bool
	}{
		"nothing":       {func(*log) {}, "", false},
		"more":          {func(l *log) { l.print("line 2\n") }, "line 2\n", false},
		"one rotation":  {func(l *log) { l.print("line 2\n"); l.rotate(); l.print("line 3\n") }, "line 2\nline 3\n", false},
		"two rotations": {func(l *log) { l.rotate(); l.print("line 2\n"); l.rotate(); l.print("line 3\n") }, "line 2\nline 3\n", false},
		"being rotated": {func(l *log) { l.print("line 2\n"); l.rotate() }, "line 2\n", false},
		"removed":       {func(l *log) { _ = os.Remove(l.path); l.print("line 2\n") }, "line 2\n", true},
		"all rotated files removed": {func(l *log) {
			for range 3 {
				l.rotate()
				l.print("line 2\n")
			}
		}, "line 2\nline 2\nline 2\n", true},
		"truncated":      {func(l *log) { _ = os.Truncate(l.path, 0); l.print("2\n") }, "2\n", false},
		"truncated only": {func(l *log) { _ = os.Truncate(l.path, 0) }, "", false},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(name+map[bool]string{true: ", by another reader"}[restarted], func(t *testing.T) {
				l := newLog(t)
				r := NewReader(l.path, Position{}, hasLine)
				if err := r.Open(); !errors.Is(err, fs.ErrNotExist) || r.IsOpen() {
					t.Fatalf("open: %v, want that the file does not exist", err)
				}
				l.print("line 1\n")
				if text, gap := readAll(t, r); text != "line 1\n" || gap {
					t.Fatalf("read %q, gap %v", text, gap)
				}
				tt.meanwhile(l)
				gap := tt.gap
				if restarted {
					pos, err := r.Position()
					if err != nil {
						t.Fatal(err)
					}
					r = NewReader(l.path, pos, hasLine)
					if name == "truncated" || name == "truncated only" {
						gap = true // a new reader cannot distinguish it from a new file
					}
				}
				if text, got := readAll(t, r); text != tt.want || got != gap {
					t.Errorf("read %q, gap %v; want %q, gap %v", text, got, tt.want, gap)
				}
				if err := r.Close(); err != nil || r.IsOpen() {
					t.Errorf("close: %v", err)
				}
			})
		}
	}
}

// A file with the inode of a removed one is not taken for it.
func TestReaderRecognisesFilesByContent(t *testing.T) {
	l := newLog(t)
	l.print("line 1\n")
	r := NewReader(l.path, Position{}, hasLine)
	readAll(t, r)
	pos, err := r.Position()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.path, []byte("another line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, gap := readAll(t, NewReader(l.path, pos, hasLine)); text != "another line\n" || !gap {
		t.Errorf("read %q, gap %v; want all of the file after a gap", text, gap)
	}
}

// The rest of an incomplete line is waited for: no change must be reported until it has come.
func TestReaderReportsChangesAfterIncompleteLine(t *testing.T) {
	l := newLog(t)
	l.print("line 1\nline")
	r := NewReader(l.path, Position{}, hasLine)
	changed := func() bool {
		t.Helper()
		changed, err := r.Changed()
		if err != nil {
			t.Fatal(err)
		}
		return changed
	}
	read := func(want string) {
		t.Helper()
		buf := make([]byte, 100)
		n, err := r.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("read %q, %v; want %q", buf[:n], err, want)
		}
	}
	if err := r.Open(); err != nil {
		t.Fatal(err)
	}
	read("line 1\nline")
	r.Advance(len("line 1\n"))
	read("line")
	if next, err := r.Continue(); next != NothingYet || err != nil || changed() {
		t.Errorf("after an incomplete line: continuation %v, %v, changed %v", next, err, changed())
	}
	l.print(" 2\n")
	if !changed() {
		t.Error("the rest of the line is no change")
	}
	read("line 2\n")
	r.Advance(len("line 2\n"))
	if changed() {
		t.Error("a change is reported after everything was read")
	}
	l.rotate()
	l.print("line 3\n")
	if !changed() {
		t.Error("a rotation is no change")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
