package hostprobe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SameMountNS reports whether the process pid is in the mount namespace of this one and has the same root directory.
func SameMountNS(pid int) (bool, error) {
	for _, name := range []string{"ns/mnt", "root"} {
		own, err := os.Stat(filepath.Join("/proc/self", name))
		if err != nil {
			return false, err
		}
		other, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid), name))
		if err != nil {
			return false, err
		}
		if !os.SameFile(own, other) {
			return false, nil
		}
	}
	return true, nil
}

// OpenAs opens the absolute path as the process pid sees it: in its mount namespace and below its root directory, also where a
// symbolic link on the way is absolute. The last element must not be a link.
func OpenAs(pid int, path string, flags int) (*os.File, error) {
	root, err := unix.Open(filepath.Join("/proc", strconv.Itoa(pid), "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("root directory of process %d: %w", pid, err)
	}
	defer unix.Close(root)
	how := &unix.OpenHow{Flags: uint64(flags) | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 10 {
		var fd int
		if fd, err = unix.Openat2(root, path, how); err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: err}
}

// Environ returns a variable in the environment that the process pid was started with.
func Environ(pid int, name string) (string, bool) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return "", false
	}
	for entry := range strings.SplitSeq(string(text), "\x00") {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value, true
		}
	}
	return "", false
}
