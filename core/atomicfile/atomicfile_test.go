package atomicfile_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"berth/core/atomicfile"
)

func TestWriteReplacesFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, text := range []string{"a long first text", "short"} {
		if err := atomicfile.Write(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("got %q, %v, want %q", got, err, text)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode = %v, %v, want 0600", st.Mode(), err)
	}
	if names := list(t, filepath.Dir(path)); len(names) != 1 {
		t.Errorf("files = %q, want one", names)
	}
}

// Writers of one file do not disturb each other: each write succeeds, and a reader
// sees the whole text of one of them.
func TestConcurrentWritesNeverTearFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	texts := [][]byte{bytes.Repeat([]byte("a"), 9000), bytes.Repeat([]byte("b"), 100), bytes.Repeat([]byte("c"), 30000)}
	var wg sync.WaitGroup
	for _, text := range texts {
		wg.Go(func() {
			for range 300 {
				if err := atomicfile.Write(path, text); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 1000 {
			got, err := os.ReadFile(path)
			if err == nil && !slices.ContainsFunc(texts, func(text []byte) bool { return bytes.Equal(text, got) }) {
				t.Errorf("read %d bytes that no writer wrote", len(got))
			}
		}
	})
	wg.Wait()
}

func TestFailedWriteLeavesNoTempFileAndRepeatsItsText(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.MkdirAll(filepath.Join(path, "a directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	first, second := atomicfile.Write(path, nil), atomicfile.Write(path, nil)
	if first == nil || second == nil || first.Error() != second.Error() || !strings.Contains(first.Error(), path) {
		t.Errorf("errors = %v, %v; want the same text twice, with the path", first, second)
	}
	if names := list(t, dir); len(names) != 1 {
		t.Errorf("files = %q, want only the directory", names)
	}
}

func TestTempPatternMatchesInterruptedWrites(t *testing.T) {
	temp, err := os.CreateTemp(t.TempDir(), atomicfile.TempPattern("file"))
	if err != nil {
		t.Fatal(err)
	}
	temp.Close()
	if ok, err := filepath.Match(atomicfile.TempPattern("file"), filepath.Base(temp.Name())); !ok || err != nil {
		t.Errorf("%s does not match: %v", temp.Name(), err)
	}
}

func TestRemoveIgnoresMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := atomicfile.Write(path, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := atomicfile.Remove(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("Lstat after Remove: %v", err)
	}
}

func TestRemoveOnReadOnlyFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("atomicfile", dir, "tmpfs", 0, ""); err != nil {
		t.Skip("mount needs privileges:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	there := filepath.Join(dir, "there")
	if err := atomicfile.Write(there, nil); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("atomicfile", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Remove(filepath.Join(dir, "missing")); err != nil {
		t.Errorf("missing file: %v", err)
	}
	if err := atomicfile.Remove(there); err == nil {
		t.Error("no error for a file that stays")
	}
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := fs.ReadDir(os.DirFS(dir), ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
