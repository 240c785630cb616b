package premount

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// WritableSysfs makes the file system at /sys of the process pid writable. The flags of the mount itself stay: where it is
// read-only, it remains so, but privileged containers of the pod can mount the file system writable. Before Linux 5.2, which
// has fspick(2), the error is of kind errors.ErrUnsupported.
func WritableSysfs(pid int) error {
	path := "/proc/" + strconv.Itoa(pid) + "/root/sys"
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if st.Type != unix.SYSFS_MAGIC {
		return fmt.Errorf("%s is not a sysfs", path)
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
