package state_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"berth/core/state"
)

func shelf(t *testing.T) (*state.Bucket, string) {
	t.Helper()
	dir := t.TempDir()
	j, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := j.Bucket("pods")
	if err != nil {
		t.Fatal(err)
	}
	return s, filepath.Join(dir, "v1", "pods")
}

func TestRoundTrip(t *testing.T) {
	type note struct{ Name string }
	s, _ := shelf(t)
	keys := []string{"short", strings.Repeat("long", 100), "a/b", ".hidden", ""}
	for _, key := range keys {
		if err := s.Put(key, note{key}); err != nil {
			t.Fatal(err)
		}
	}
	names, err := s.Names()
	if err != nil || len(names) != len(keys) {
		t.Errorf("Names() = %q, %v; want %d", names, err, len(keys))
	}
	var seen []string
	for _, name := range names {
		var got note
		if !s.Get(name, &got) {
			t.Errorf("nothing under %q", name)
		}
		seen = append(seen, got.Name)
	}
	for _, key := range keys {
		var got note
		if !s.Get(key, &got) || got.Name != key || !slices.Contains(seen, key) {
			t.Errorf("got %+v for %q", got, key)
		}
		if err := s.Delete(key); err != nil {
			t.Error(err)
		}
		if s.Get(key, &got) {
			t.Errorf("%q is still there", key)
		}
		if err := s.Delete(key); err != nil {
			t.Errorf("deleting twice: %v", err)
		}
	}
}

func TestATornFileCountsAsAbsent(t *testing.T) {
	s, dir := shelf(t)
	for name, text := range map[string]string{"empty": "", "torn": `{"Name":"we`, ".torn": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"empty", "torn"} {
		var v struct{ Name string }
		if s.Get(name, &v) {
			t.Errorf("%s was read as %+v", name, v)
		}
	}
	if names, _ := s.Names(); len(names) != 2 {
		t.Errorf("Names() = %q, want the two whole names", names)
	}
}

// What was being saved when a daemon died does not stay for ever, nor what could
// not be saved.
func TestNothingHalfSavedStays(t *testing.T) {
	s, dir := shelf(t)
	if err := os.MkdirAll(filepath.Join(dir, "taken", "by a directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Put("taken", 1); err == nil {
		t.Error("no error")
	}
	hidden := func() []string {
		names, err := filepath.Glob(filepath.Join(dir, ".*"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	if left := hidden(); len(left) > 0 {
		t.Errorf("after a failure there is %q", left)
	}
	if err := os.WriteFile(filepath.Join(dir, ".torn"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := state.Open(filepath.Dir(filepath.Dir(dir)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Bucket("pods"); err != nil {
		t.Fatal(err)
	}
	if left := hidden(); len(left) > 0 {
		t.Errorf("after the next start there is %q", left)
	}
}

// Writers of one key do not disturb each other: each save succeeds, and a reader
// sees one of them whole.
func TestWritersOfOneKeyDoNotTearIt(t *testing.T) {
	s, _ := shelf(t)
	texts := [][]byte{bytes.Repeat([]byte("a"), 9000), bytes.Repeat([]byte("b"), 100), bytes.Repeat([]byte("c"), 30000)}
	var writers sync.WaitGroup
	for _, text := range texts {
		writers.Go(func() {
			for range 300 {
				if err := s.Save("key", text); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Go(func() {
		for range 1000 {
			if got, ok := s.Load("key"); ok && !slices.ContainsFunc(texts, func(text []byte) bool { return bytes.Equal(text, got) }) {
				t.Errorf("read %d bytes that nobody has saved so", len(got))
			}
		}
	})
	writers.Wait()
}

func TestDeleteSucceedsOnAReadOnlyDiskWithoutTheKey(t *testing.T) {
	s, dir := shelf(t)
	if err := unix.Mount("journal", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Skip("needs a root that may mount:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := s.Delete("key"); err != nil {
		t.Errorf("Delete of what is not there: %v", err)
	}
}
