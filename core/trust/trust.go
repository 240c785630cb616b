// Package trust checks that only root can change what is at a path, for files that make berthd do something as root.
package trust

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// maxLinks bounds the symbolic links in a path, as Linux does (path_resolution(7)).
const maxLinks = 40

// Check returns an error if someone besides root can replace or change what is at path, which
// is absolute. It follows symbolic links one by one, because each of them is in a directory of its own.
func Check(path string) error {
	at, links := "/", 0
	rest := strings.Split(filepath.Clean(path), "/")
	for len(rest) > 0 {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		info, err := os.Lstat(next)
		if err != nil {
			return err
		}
		if err := checkOwner(next, info); err != nil {
			return err
		}
		if info.Mode()&os.ModeSymlink == 0 {
			// In a directory with the sticky bit, such as /tmp, others cannot replace the files of root.
			sticky := info.IsDir() && info.Mode()&os.ModeSticky != 0 && len(rest) > 0
			if info.Mode().Perm()&0o022 != 0 && !sticky {
				return fmt.Errorf("%s (mode %#o) is writable by others than its owner: run chmod go-w", next, info.Mode().Perm())
			}
			at = next
			continue
		}
		if links++; links > maxLinks {
			return &os.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
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

// checkOwner returns an error unless a file belongs to root, or to the user that berthd runs as.
func checkOwner(path string, info os.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.ErrUnsupported
	}
	if owner := int(stat.Uid); owner != 0 && owner != os.Geteuid() {
		return fmt.Errorf("%s belongs to the user %d: it must belong to root", path, owner)
	}
	return nil
}
