package diskusage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const mib = 1 << 20

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// complete runs a walk to its end, in slices so short that each step is interrupted.
func complete(t *testing.T, w *walk) (bytes, inodes uint64) {
	t.Helper()
	for range 100_000 {
		if w.run(time.Now().Add(20 * time.Microsecond)) {
			if len(w.baseFDs) != 0 || len(w.levels) != 0 || w.pending != 0 {
				t.Errorf("%d descriptors, %d levels and %d bytes of names are not released", len(w.baseFDs), len(w.levels), w.pending)
			}
			return w.total()
		}
	}
	t.Fatal("the walk does not end")
	return 0, 0
}

func TestWalkCountsHardLinksOnce(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "sub", "big")
	must(t, os.Mkdir(filepath.Dir(big), 0o755), os.WriteFile(big, make([]byte, mib), 0o600),
		os.Link(big, filepath.Join(dir, "again")), os.Link(big, filepath.Join(dir, "third")), os.Symlink("/", filepath.Join(dir, "link")))
	for name, run := range map[string]func(*walk) (uint64, uint64){
		"in slices": func(w *walk) (uint64, uint64) { return complete(t, w) },
		"in one run": func(w *walk) (uint64, uint64) {
			if !w.run(time.Now().Add(time.Minute)) {
				t.Error("not complete")
			}
			return w.total()
		},
	} {
		w := newWalk(dir)
		bytes, inodes := run(w)
		// Two directories, a symbolic link, and a file of a megabyte with three links.
		if inodes != 4 || bytes < mib || bytes > mib+64<<10 || w.firstErr != nil {
			t.Errorf("%s: %d bytes, %d inodes, first error %v", name, bytes, inodes, w.firstErr)
		}
	}
}

func TestWalkCountsEachFileOnceWhenInterrupted(t *testing.T) {
	dir := t.TempDir()
	want := uint64(1)
	for i := range 40 {
		sub := filepath.Join(dir, fmt.Sprintf("%02d-%s", i, strings.Repeat("x", 200)))
		must(t, os.MkdirAll(filepath.Join(sub, "a", "b"), 0o700))
		want += 3
		for j := range 60 {
			must(t, os.WriteFile(filepath.Join(sub, fmt.Sprint("file", j)), nil, 0o600), os.Mkdir(filepath.Join(sub, "a", fmt.Sprint("d", j)), 0o700))
			want += 2
		}
	}
	if _, inodes := complete(t, newWalk(dir)); inodes != want {
		t.Errorf("%d inodes, want %d", inodes, want)
	}
}

func TestWalkBoundsPendingNames(t *testing.T) {
	dir := t.TempDir()
	// More than may be kept, spread over the levels of a path.
	at, want := dir, uint64(1)
	for range 30 {
		for i := range 100 {
			must(t, os.Mkdir(filepath.Join(at, fmt.Sprintf("%03d%s", i, strings.Repeat("n", 120))), 0o700))
			want++
		}
		at = filepath.Join(at, "050"+strings.Repeat("n", 120))
		if len(at) > 3800 {
			break
		}
	}
	w := newWalk(dir)
	peak := 0
	for !w.run(time.Now().Add(50 * time.Microsecond)) {
		peak = max(peak, w.pending)
	}
	if _, inodes := w.total(); inodes != want {
		t.Errorf("%d inodes, want %d", inodes, want)
	}
	if peak > maxPendingBytes {
		t.Errorf("%d bytes of names were pending", peak)
	}
}

func TestWalkMemoryDoesNotGrowWithLinks(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "one"), make([]byte, mib), 0o600))
	const links = 30_000
	for i := range links {
		if err := os.Link(filepath.Join(dir, "one"), filepath.Join(dir, fmt.Sprint(i))); err != nil {
			t.Skip(err)
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w := newWalk(dir)
	for !w.run(time.Now().Add(time.Millisecond)) {
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > mib {
		t.Errorf("heap has grown by %d bytes", grown)
	}
	if bytes, inodes := w.total(); inodes != 2 || bytes < mib || bytes > 3*mib {
		t.Errorf("%d bytes, %d inodes", bytes, inodes)
	}
}

func TestWalkCountsFilesBeyondPathMax(t *testing.T) {
	dir := t.TempDir()
	name := strings.Repeat("d", 200)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	const levels = 60
	for range levels {
		below := -1
		if err = unix.Mkdirat(fd, name, 0o700); err == nil {
			below, err = unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		}
		unix.Close(fd)
		must(t, err)
		fd = below
	}
	deep, err := unix.Openat(fd, "deep", unix.O_CREAT|unix.O_WRONLY, 0o600)
	unix.Close(fd)
	must(t, err)
	_, err = unix.Write(deep, make([]byte, mib))
	unix.Close(deep)
	must(t, err)
	w := newWalk(dir)
	bytes, inodes := complete(t, w)
	if inodes != levels+2 || bytes < mib || w.firstErr != nil {
		t.Errorf("%d bytes, %d inodes, want a megabyte and %d; first error %v", bytes, inodes, levels+2, w.firstErr)
	}

	w = newWalk(filepath.Join(dir, "none"), dir)
	if _, inodes := complete(t, w); !errors.Is(w.rootErr, fs.ErrNotExist) || inodes != levels+2 {
		t.Errorf("missing root: %v; %d inodes", w.rootErr, inodes)
	}
}

// A container could replace a directory by a symbolic link while the walk is interrupted.
func TestWalkDoesNotFollowLinkThatReplacesDirectory(t *testing.T) {
	outside := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(outside, "inner", "more"), 0o700), os.WriteFile(filepath.Join(outside, "inner", "big"), make([]byte, mib), 0o600))
	for name, replace := range map[string]func(dir string) error{
		"current directory": func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "a", "inner"), filepath.Join(dir, "b")), os.Symlink(filepath.Join(outside, "inner"), filepath.Join(dir, "a", "inner")))
		},
		"parent directory": func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")), os.Symlink(outside, filepath.Join(dir, "a")))
		},
	} {
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, "a", "inner", "more"), 0o700))
		for i := range 3 {
			must(t, os.WriteFile(filepath.Join(dir, "a", "inner", fmt.Sprint(i)), nil, 0o600))
		}
		w := newWalk(dir)
		for len(w.levels) < 3 { // it is in a/inner
			if w.run(time.Now()) {
				t.Fatal("the walk was complete before it was in a/inner")
			}
		}
		must(t, replace(dir))
		if bytes, _ := complete(t, w); bytes >= mib {
			t.Errorf("%s: %d bytes, want none of the files outside", name, bytes)
		}
	}
}

func TestWalkStaysOnItsMount(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "mounted")
	must(t, os.Mkdir(at, 0o700))
	if err := unix.Mount("none", at, "tmpfs", 0, ""); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(at, 0)) })
	must(t, os.WriteFile(filepath.Join(at, "big"), make([]byte, mib), 0o600))
	w := newWalk(dir)
	if bytes, _ := complete(t, w); bytes >= mib || w.firstErr != nil {
		t.Errorf("%d bytes, first error %v", bytes, w.firstErr)
	}
}
