package hostprobe

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// LayerQuota reports whether an Engine with this storage driver and data directory can limit
// the size of a writable layer. overlay2 and vfs do it with project quotas of xfs, which need
// the mount option pquota (quota/projectquota.go in daemon/graphdriver of moby); btrfs and zfs
// have quotas of their own.
func LayerQuota(driver, rootDir string) bool {
	switch driver {
	case "btrfs", "zfs":
		return true
	case "overlay2", "vfs":
		mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(filepath.Join(rootDir, driver)))
		return err == nil && hasProjectQuota(mounts)
	default:
		return false
	}
}

// hasProjectQuota reports whether the innermost of these mounts, each of which is below or
// above all others, is one of xfs with project quotas.
func hasProjectQuota(mounts []*mountinfo.Info) bool {
	var innermost *mountinfo.Info
	for _, m := range mounts {
		// The later one of two mounts at the same place hides the other.
		if innermost == nil || len(m.Mountpoint) >= len(innermost.Mountpoint) {
			innermost = m
		}
	}
	// The kernel shows pquota as prjquota (xfs_fs_show_options in fs/xfs/xfs_super.c).
	return innermost != nil && innermost.FSType == "xfs" && slices.Contains(strings.Split(innermost.VFSOptions, ","), "prjquota")
}
