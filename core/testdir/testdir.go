// Package testdir makes directories for tests that t.TempDir does not suit: their paths are short enough for sockets, and
// file systems may be mounted below them.
package testdir

import (
	"os"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// New returns a new directory, whose name begins with berth. When the test has ended it is removed, after what is mounted
// below it was unmounted: a daemon that runs as root leaves mounts to its pods. Whatever cannot be removed fails the test.
func New(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// remove removes dir and the mounts below it, those made last first.
func remove(dir string) error {
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(i.Mountpoint, dir+"/"), false
	})
	if err != nil {
		return err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		if err := unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return &os.PathError{Op: "unmount", Path: mounts[i].Mountpoint, Err: err}
		}
	}
	return os.RemoveAll(dir)
}
