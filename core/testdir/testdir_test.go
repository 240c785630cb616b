package testdir_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"berth/core/testdir"
)

func TestDirectoryIsRemovedWithItsMounts(t *testing.T) {
	var dir string
	t.Run("a test", func(t *testing.T) {
		dir = testdir.New(t)
		outer := filepath.Join(dir, "a b", "outer")
		if err := os.MkdirAll(outer, 0o700); err != nil {
			t.Fatal(err)
		}
		if os.Getuid() != 0 {
			return
		}
		for _, at := range []string{outer, outer, filepath.Join(outer, "inner")} {
			if err := os.MkdirAll(at, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
				t.Skipf("mount: %v", err) // root of a user namespace
			}
		}
	})
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v, want it removed", dir, err)
	}
}
