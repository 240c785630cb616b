package userns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth/core/ociedit"
)

// source is the source of the overlays that this package mounts. An Engine that restarts a container keeps the mount.
const source = "berth"

// mountRoot mounts the root file system at rootDir and at path, where the Engine has mounted it, with the owners of u.
func (x *session) mountRoot(path string, u *ociedit.UserNamespace) error {
	mount, err := mountAt(path)
	if err != nil {
		return err
	}
	if mount == nil {
		return fmt.Errorf("nothing is mounted at %s: only overlay can have a user namespace", path)
	}
	if mount.FSType != "overlay" {
		return fmt.Errorf("%s is %s: only overlay can have a user namespace", path, mount.FSType)
	}
	o, err := parseOverlay(mount.VFSOptions, filepath.Dir(filepath.Dir(path)))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	n, err := readNote(o.upper)
	if err != nil {
		return err
	}
	if n != nil && (!sameMappings(n.UIDMappings, u.UIDMappings) || !sameMappings(n.GIDMappings, u.GIDMappings)) {
		return fmt.Errorf("%s belongs to another user namespace: the container must be created anew", o.upper)
	}
	if mount.Source == source {
		if n == nil || !n.Done {
			return fmt.Errorf("%s is a mount of berth-oci without its note", path)
		}
		return clone(path, func(fd int) error { return moveMount(fd, rootDir) })
	}
	if err := x.mountLowers(o.lowers, u); err != nil {
		return err
	}
	reached("lowers mounted")
	if err := x.onHost(func() error { return unmount(path) }); err != nil {
		return err
	}
	// This namespace has a copy, unless the unmount has arrived here.
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount the copy of %s: %w", path, err)
	}
	reached("unmounted")
	if err := shift(o.upper, n, u); err != nil {
		return err
	}
	return x.mountOverlay(path, o, mount.Options)
}

// mountOverlay mounts o at rootDir and at path.
func (x *session) mountOverlay(path string, o *overlay, options string) error {
	// Relative names, because all options together may have one page at most.
	if err := os.Chdir(lowerDir); err != nil {
		return err
	}
	if err := unix.Mount(source, rootDir, "overlay", mountFlags(options), o.data()); err != nil {
		return fmt.Errorf("mount overlay with %d id-mapped layers: %w", len(o.lowers), err)
	}
	reached("overlay mounted")
	err := clone(rootDir, func(fd int) error {
		return x.onHost(func() error { return moveMount(fd, path) })
	})
	if err != nil {
		return err
	}
	return unix.Unmount(lowerDir, unix.MNT_DETACH) // the overlay has clones of its own
}

// clone calls f with a detached clone of the mount at path.
func clone(path string, f func(fd int) error) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone %s: %w", path, err)
	}
	defer unix.Close(fd)
	return f(fd)
}

// mountLowers mounts id-mapped clones of the layers at lowerDir/0, lowerDir/1 and so on, for which it mounts another tmpfs.
func (x *session) mountLowers(lowers []string, u *ociedit.UserNamespace) error {
	userns, err := x.user(u.UIDMappings, u.GIDMappings)
	if err != nil {
		return err
	}
	if err := unix.Mount("berth-oci", lowerDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", lowerDir, err)
	}
	for n, lower := range lowers {
		err := clone(lower, func(fd int) error {
			if err := idmap(fd, userns, 0); err != nil {
				return culprit(lower, false, userns, err)
			}
			return attach(fd, filepath.Join(lowerDir, strconv.Itoa(n)))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// unmount unmounts what the Engine has mounted at path. Nothing may be below it.
func unmount(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	mount, err := mountAt(path)
	if err == nil && mount != nil {
		err = fmt.Errorf("%s at %s was covered by another mount", mount.FSType, path)
	}
	return err
}

// mountAt returns the topmost mount at path in the namespace of this thread, or nil.
func mountAt(path string) (*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.Mountpoint != path, false })
	if err != nil || len(mounts) == 0 {
		return nil, err
	}
	return mounts[len(mounts)-1], nil
}

// mountFlags returns the flags of mount(2) for the options of a mount in mountinfo.
func mountFlags(options string) (flags uintptr) {
	known := map[string]uintptr{
		"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
	}
	for o := range strings.SplitSeq(options, ",") {
		flags |= known[o]
	}
	return flags
}

// culprit returns the error for mounts that cannot be id-mapped, with the file system of the first one.
func culprit(path string, recursive bool, userns *os.File, cause error) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Join(cause, err)
	}
	defer unix.Close(fd)
	resolved, err := os.Readlink("/proc/thread-self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return errors.Join(cause, err)
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return errors.Join(cause, err)
	}
	refused := func(m *mountinfo.Info, where string) error {
		return fmt.Errorf("%s cannot be id-mapped: the kernel refuses it for %s at %s: %w", path, m.FSType, where, cause)
	}
	var top *mountinfo.Info // the mount that has path
	for _, m := range mounts {
		if within(resolved, m.Mountpoint) && (top == nil || len(m.Mountpoint) >= len(top.Mountpoint)) {
			top = m
		}
	}
	for _, m := range mounts {
		if !recursive || m.Mountpoint == resolved || !within(m.Mountpoint, resolved) {
			continue
		}
		if clone(m.Mountpoint, func(fd int) error { return idmap(fd, userns, 0) }) != nil {
			if clone(resolved, func(fd int) error { return idmap(fd, userns, 0) }) == nil {
				return refused(m, m.Mountpoint)
			}
		}
	}
	if top == nil {
		return fmt.Errorf("%s cannot be id-mapped: %w", path, cause)
	}
	return refused(top, top.Mountpoint)
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}
