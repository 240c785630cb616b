package premount

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTmpfsBoundsWhatIsWritten(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		const size = 256 << 10
		dir := filepath.Join(t.TempDir(), "pod")
		write(t, filepath.Join(dir, "below"), "hidden")
		if err := (Tmpfs{}).Mount(dir, size, ""); err != nil {
			t.Fatal(err)
		}
		defer Tmpfs{}.Remove(dir)
		name := filepath.Join(dir, "hostname")
		err := os.WriteFile(name, make([]byte, 2*size), 0o644)
		info, statErr := os.Stat(name)
		if !errors.Is(err, unix.ENOSPC) || statErr != nil || info.Size() > size {
			t.Errorf("write of %d bytes: %v, and there are %v (%v); want ENOSPC", 2*size, err, info, statErr)
		}
		for i := range 2 * tmpfsInodes {
			if err = os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o644); err != nil {
				break
			}
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%d files: %v, want ENOSPC", 2*tmpfsInodes, err)
		}
		const want = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
		if got := flags(t, dir) & want; got != want {
			t.Errorf("flags %#x, want %#x", got, want)
		}
	})
}

func TestTmpfsLeavesNoMount(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "pod")
		requireGone := func(after string) {
			t.Helper()
			if left := mounted(t, parent); len(left) > 0 {
				t.Errorf("after %s: mounted %q", after, left)
			}
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after %s: %s: %v", after, dir, err)
			}
		}
		mountTimes := func(times int) {
			t.Helper()
			write(t, filepath.Join(dir, "hosts"), "below")
			for range times {
				if err := (Tmpfs{}).Mount(dir, 1<<20, ""); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(dir, "hosts"), "on top")
			}
		}
		remove := func() {
			t.Helper()
			if err := (Tmpfs{}).Remove(dir); err != nil {
				t.Error(err)
			}
		}
		remove()
		requireGone("nothing")
		mountTimes(0)
		remove()
		requireGone("a directory without a mount, as earlier releases had it")
		for range 50 {
			mountTimes(1)
			remove()
		}
		requireGone("fifty pods")
		mountTimes(3)
		remove()
		requireGone("several mounts one over the other")

		// A mount of one file, as a container has it until it exits.
		mountTimes(1)
		container := filepath.Join(t.TempDir(), "hosts")
		write(t, container, "")
		if err := unix.Mount(filepath.Join(dir, "hosts"), container, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		remove()
		requireGone("a pod whose container is running")
		if text, err := os.ReadFile(container); err != nil || !bytes.Equal(text, []byte("on top")) {
			t.Errorf("the container reads %q, %v", text, err)
		}
		if err := unix.Unmount(container, 0); err != nil {
			t.Error(err)
		}
	})
}
