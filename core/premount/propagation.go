package premount

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// CheckPropagation fails if mounts below path on the node would not propagate into a mount of it, as Slave asks for, or
// not in both directions, as Shared does. The error is of kind FailedPrecondition. Kernels before 5.8 do not report the ID
// of a mount (STATX_MNT_ID): then it returns nil.
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
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		match := uint64(m.ID) == st.Mnt_id //nolint:gosec // the kernel counts them from 1
		return !match, match
	})
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return nil // unmounted meanwhile, or outside of our root
	}
	// Optional is "shared:N master:M" for a mount that is both.
	has := func(tag string) bool {
		return slices.ContainsFunc(strings.Fields(found[0].Optional), func(field string) bool { return strings.HasPrefix(field, tag) })
	}
	if has("shared:") || p == Slave && has("master:") {
		return nil
	}
	return fmt.Errorf("%s is on the mount %s, which is not shared (mount --make-rshared): %w", path, found[0].Mountpoint, errdefs.ErrFailedPrecondition)
}
