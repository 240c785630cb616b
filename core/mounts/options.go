package mounts

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// changes are the options of mount(8) that one mount can have of its own, and
// what each does. With an r before its name an option reaches the mounts below
// as well, as in an OCI runtime's config.
var changes = map[string]struct{ set, clear uint64 }{
	"ro":          {set: unix.MOUNT_ATTR_RDONLY},
	"rw":          {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":      {set: unix.MOUNT_ATTR_NOSUID},
	"suid":        {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":       {set: unix.MOUNT_ATTR_NODEV},
	"dev":         {clear: unix.MOUNT_ATTR_NODEV},
	"noexec":      {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":        {clear: unix.MOUNT_ATTR_NOEXEC},
	"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":   {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"nodiratime":  {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":    {clear: unix.MOUNT_ATTR_NODIRATIME},
	"relatime":    {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"noatime":     {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime": {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
}

// Check reports an option that cannot be given to a mount; of kind
// InvalidArgument.
func Check(options []string) error {
	_, _, err := attributes(options)
	return err
}

// attributes returns what options change of the topmost mount of a tree, and
// of all mounts of it.
func attributes(options []string) (top, all unix.MountAttr, err error) {
	for _, o := range options {
		attr := &top
		change, ok := changes[o]
		if !ok {
			attr = &all
			change, ok = changes[strings.TrimPrefix(o, "r")]
		}
		if !ok {
			return top, all, fmt.Errorf("%q is no option of a mount: there are (no)exec, (no)suid, (no)dev, ro, rw, (no)symfollow, noatime, relatime, strictatime and (no)diratime, each with an r before it for the mounts below as well: %w", o, errdefs.ErrInvalidArgument)
		}
		// A later option wins.
		attr.Attr_set = attr.Attr_set&^change.clear | change.set
		attr.Attr_clr = attr.Attr_clr&^change.set | change.clear
	}
	return top, all, nil
}
