package premount

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// restrictions are the mount options (mount(8)) that restrict a mount. Options that would lift a restriction (rw, exec,
// suid, dev, symfollow) are not among them, because the node's own mount may be restricted on purpose; nor are those about
// access times, because the CRI names noexec, nodev and nosuid (Mount.mount_options in api.proto). With the prefix r, an
// option covers the mounts below as well, as in the OCI runtime specification (config.md, Mounts).
var restrictions = map[string]uint64{
	"ro":          unix.MOUNT_ATTR_RDONLY,
	"nosuid":      unix.MOUNT_ATTR_NOSUID,
	"nodev":       unix.MOUNT_ATTR_NODEV,
	"noexec":      unix.MOUNT_ATTR_NOEXEC,
	"nosymfollow": unix.MOUNT_ATTR_NOSYMFOLLOW,
}

// CheckOptions returns an error of kind InvalidArgument for an option that does not restrict a mount.
func CheckOptions(options []string) error {
	_, _, err := attributes(options)
	return err
}

// attributes returns the attributes that options set on the topmost mount of a tree, and on all its mounts.
func attributes(options []string) (top, all unix.MountAttr, err error) {
	for _, o := range options {
		attr := &top
		set, ok := restrictions[o]
		if !ok {
			attr = &all
			set, ok = restrictions[strings.TrimPrefix(o, "r")]
		}
		if !ok {
			return top, all, fmt.Errorf("option %q: allowed are noexec, nosuid, nodev, nosymfollow and ro, each with the prefix r for the mounts below as well: %w", o, errdefs.ErrInvalidArgument)
		}
		attr.Attr_set |= set
	}
	return top, all, nil
}
