package premount

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// CheckPropagation fails if what is mounted below path on the node would not be seen
// in a mount of it, as Slave asks for, or not in both directions, as Shared does; of
// kind FailedPrecondition. Kernels before 5.8 do not tell.
func CheckPropagation(path string, p Propagation) error {
	if p == Private {
		return nil
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil {
		return &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return nil
	}
	list, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(list)) {
		// number, parent, device, root, mount point, options, shared:N and the like, -
		fields := strings.Fields(line)
		if len(fields) < 7 || fields[0] != strconv.FormatUint(st.Mnt_id, 10) {
			continue
		}
		has := func(word string) bool {
			tags, _, _ := strings.Cut(strings.Join(fields[6:], " "), "-")
			return slices.ContainsFunc(strings.Fields(tags), func(tag string) bool { return strings.HasPrefix(tag, word) })
		}
		if has("shared:") || p == Slave && has("master:") {
			return nil
		}
		return fmt.Errorf("%s is on the mount %s, which is not shared (mount --make-rshared): %w", path, fields[4], errdefs.ErrFailedPrecondition)
	}
	return nil // gone meanwhile, or hidden
}
