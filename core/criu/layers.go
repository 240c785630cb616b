package criu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
)

// layers returns the directory of the container's writable layer and those of its image, the topmost first. Only sources that the
// container cannot change are used.
func (j *job) layers() (upper string, lowers []string, err error) {
	if j.target.Upper != "" {
		if !j.isBelowRoots(j.target.Upper) {
			return "", nil, fmt.Errorf("the writable layer is not where Docker keeps its data: %w", errdefs.ErrFailedPrecondition)
		}
		return j.target.Upper, j.target.Lowers, nil
	}
	// With the containerd image store Docker does not report them, but mounts the root file system at
	// <data root>/rootfs/<snapshotter>/<ID> while the container runs (moby, daemon/snapshotter/mount.go).
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(j.runtime.Shim), "mountinfo"))
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	list, err := mountinfo.GetMountsFromReader(f, func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "overlay" || filepath.Base(m.Mountpoint) != j.target.ID || !j.isBelowRoots(m.Mountpoint), false
	})
	if err != nil {
		return "", nil, err
	}
	if len(list) == 0 {
		return "", nil, fmt.Errorf("the writable layer is not an overlay, as with the storage driver overlay2 or the snapshotter overlayfs: %w", errdefs.ErrFailedPrecondition)
	}
	for option := range strings.SplitSeq(list[len(list)-1].VFSOptions, ",") {
		switch key, value, _ := strings.Cut(option, "="); key {
		case "upperdir":
			upper = value
		case "lowerdir":
			lowers = strings.Split(value, ":")
		case "lowerdir+":
			lowers = append(lowers, value)
		}
	}
	if !j.isBelowRoots(upper) {
		return "", nil, errors.New("the mount of the root file system has no upperdir below the directories of Docker and containerd")
	}
	for _, lower := range lowers {
		if !j.isBelowRoots(lower) { // relative paths, and those of mounts that exist no more
			return upper, nil, nil
		}
	}
	return upper, lowers, nil
}

// isBelowRoots reports whether path is clean and below one of the directories of Docker and containerd.
func (j *job) isBelowRoots(path string) bool {
	for _, root := range j.target.Roots {
		if filepath.IsAbs(root) && filepath.Clean(path) == path && strings.HasPrefix(path, strings.TrimSuffix(root, "/")+"/") {
			return true
		}
	}
	return false
}
