package premount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Tmpfs mounts small file systems in memory, for files of a pod that its containers may write to: what they write cannot fill
// the file system of the directory below. The mounts outlive the daemon.
type Tmpfs struct{}

// tmpfsInodes is how many files and directories a tmpfs may have.
const tmpfsInodes = 16

// Mount mounts an empty file system of size bytes on dir. label is the SELinux label of all its files, "" for none. The mount
// is noexec, nosuid and nodev.
func (Tmpfs) Mount(dir string, size int64, label string) error {
	options := fmt.Sprintf("size=%d,nr_inodes=%d,mode=755", size, tmpfsInodes)
	if label != "" {
		options += fmt.Sprintf(",context=%q", label) // in quotes, because labels contain commas
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount tmpfs (%s) on %s: %w", options, dir, err)
	}
	return nil
}

// Remove unmounts what Mount has mounted on dir, and removes dir with all files. A directory that does not exist, or that
// nothing is mounted on, is no error. Mounts that containers have made of its files stay.
func (Tmpfs) Remove(dir string) error {
	for {
		mounted, err := isMountedDevice(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !mounted {
			return os.RemoveAll(dir)
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}

// isMountedDevice reports whether dir is on another device than its parent, as each tmpfs is. Unlike isMount it works on
// kernels before 5.8, which do not report STATX_ATTR_MOUNT_ROOT.
func isMountedDevice(dir string) (bool, error) {
	var own, parent unix.Stat_t
	if err := unix.Lstat(dir, &own); err != nil {
		return false, &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if err := unix.Lstat(filepath.Dir(dir), &parent); err != nil {
		return false, &fs.PathError{Op: "lstat", Path: filepath.Dir(dir), Err: err}
	}
	return own.Dev != parent.Dev, nil
}
