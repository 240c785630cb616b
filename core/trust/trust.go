// Package trust checks that only root can change what is at a path, for files that make berthd do something as root.
package trust

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the symbolic links in a path, as Linux does (path_resolution(7)).
const maxLinks = 40

// Check returns an error if someone besides root can replace or change what is at path. It
// follows symbolic links one by one, because each of them is in a directory of its own. The error is fs.ErrNotExist if
// nothing is at path and what exists of it is safe.
func Check(path string) error {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	at, links := "/", 0
	rest := strings.Split(absolute, "/")
	for len(rest) > 0 {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		var st unix.Stat_t
		if err := unix.Lstat(next, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: next, Err: err}
		}
		if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFLNK {
			// In a directory with the sticky bit, such as /tmp, others cannot replace the files of root.
			if sticky := kind == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0 && len(rest) > 0; sticky {
				st.Mode &^= unix.S_IWGRP | unix.S_IWOTH
			}
			if err := File(next, &st); err != nil {
				return err
			}
			at = next
			continue
		}
		if err := checkOwner(next, &st); err != nil {
			return err
		}
		if links++; links > maxLinks {
			return &os.PathError{Op: "open", Path: path, Err: unix.ELOOP}
		}
		target, err := os.Readlink(next)
		if err != nil {
			return err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = slices.Concat(strings.Split(target, "/"), rest)
	}
	return nil
}

// File returns an error if someone besides root, or the user that berthd runs as, can change the file or directory at path, which
// st describes. It does not look at the directories above: see Check.
func File(path string, st *unix.Stat_t) error {
	if err := checkOwner(path, st); err != nil {
		return err
	}
	if st.Mode&(unix.S_IWGRP|unix.S_IWOTH) != 0 {
		return fmt.Errorf("%s can be changed by others than root (mode %04o): run chmod go-w %s", path, st.Mode&0o7777, path)
	}
	return nil
}

func checkOwner(path string, st *unix.Stat_t) error {
	if owner := int(st.Uid); owner != 0 && owner != os.Geteuid() {
		return fmt.Errorf("%s belongs to the user %d: it must belong to root", path, owner)
	}
	return nil
}
