package premount

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// InOtherMountNS reports whether the process pid has mounts of its own, and so does not see
// the mounts that berth makes. It is true as well if that cannot be read: a process in
// another mount namespace would be given the empty directory below a staged mount, and
// not a restricted one.
func InOtherMountNS(pid int) bool {
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return true
	}
	theirs, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	return err != nil || theirs != ours
}

// ParentPID returns the parent of the process pid, 0 if it cannot be told.
func ParentPID(pid int) int {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything.
	_, rest, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	fields := bytes.Fields(rest) // state, parent, ...
	if len(fields) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0
	}
	return parent
}

// WritableSysfs makes the file system at /sys of the process pid writable. The mount itself stays
// as it is: a process with a read-only one goes on with that, others can mount it writable.
// Before Linux 5.2 it is an error of kind errors.ErrUnsupported.
func WritableSysfs(pid int) error {
	path := "/proc/" + strconv.Itoa(pid) + "/root/sys"
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if st.Type != unix.SYSFS_MAGIC {
		return fmt.Errorf("%s is no sysfs", path)
	}
	fd, err := unix.Fspick(unix.AT_FDCWD, path, unix.FSPICK_CLOEXEC|unix.FSPICK_NO_AUTOMOUNT)
	if err != nil {
		return &os.PathError{Op: "fspick", Path: path, Err: err}
	}
	defer unix.Close(fd)
	err = unix.FsconfigSetFlag(fd, "rw")
	if err == nil {
		err = unix.FsconfigReconfigure(fd)
	}
	if err != nil {
		return &os.PathError{Op: "remount rw", Path: path, Err: err}
	}
	return nil
}
