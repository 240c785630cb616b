package premount

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// restrictions are the options of mount(8) that take something away from one mount.
// Options that would give something (rw, exec, suid, dev, symfollow) are not among them: the
// node's own mount may be without it on purpose. Those about access times are not either: the CRI
// has noexec, nodev and nosuid (Mount.mount_options). With an r before its name an option reaches
// the mounts below as well, as in an OCI runtime's config.
var restrictions = map[string]uint64{
	"ro":          unix.MOUNT_ATTR_RDONLY,
	"nosuid":      unix.MOUNT_ATTR_NOSUID,
	"nodev":       unix.MOUNT_ATTR_NODEV,
	"noexec":      unix.MOUNT_ATTR_NOEXEC,
	"nosymfollow": unix.MOUNT_ATTR_NOSYMFOLLOW,
}

// Check returns an error of kind InvalidArgument for an option that does not restrict a
// mount.
func Check(options []string) error {
	_, _, err := attributes(options)
	return err
}

// attributes returns what options set on the topmost mount of a tree, and on all
// mounts of it.
func attributes(options []string) (top, all unix.MountAttr, err error) {
	for _, o := range options {
		attr := &top
		set, ok := restrictions[o]
		if !ok {
			attr = &all
			set, ok = restrictions[strings.TrimPrefix(o, "r")]
		}
		if !ok {
			return top, all, fmt.Errorf("option %q: allowed are noexec, nosuid, nodev, nosymfollow and ro, each with an r before it for the mounts below as well: %w", o, errdefs.ErrInvalidArgument)
		}
		attr.Attr_set |= set
	}
	return top, all, nil
}
