// Package userns gives a container a user namespace: it prepares the mounts that the container is made of, so that the files
// in them have owners of that namespace.
//
// All mounts but one are made in a mount namespace that belongs to this process alone and becomes that of the runtime below, of
// which the container's is a copy. It ends with them: nothing has to be unmounted, also if a process is killed. The exception
// is the root file system. overlayfs itself cannot be id-mapped (mount_setattr(2): EINVAL), so a new overlay of the same directories
// is mounted, its lower ones id-mapped, and it takes the place of the Engine's mount: two overlays of one upper directory
// would not see each other's changes. The Engine unmounts it as its own. The upper directory cannot be id-mapped, because the Engine
// as root, who is not in the mappings, could not write any more (EOVERFLOW): its files are given to the IDs of the host.
//
// If the process is killed between the unmount and the mount, nothing is mounted there: the Engine accepts that when it cleans up the
// failed start, and mounts anew at the next.
package userns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/cmd/berth-oci/internal/spec"
	"berth/core/ociedit"
)

const (
	// Dir is where the mounts are. On the host it is an empty directory, which stays.
	Dir = "/run/berth-oci"
	// rootDir is the root file system of the container. It must exist on the host as well: "runc exec" changes to the directory
	// of this name there, before it enters the container.
	rootDir   = Dir + "/rootfs"
	lowerDir  = Dir + "/lower"
	volumeDir = Dir + "/volumes"
	sysDir    = Dir + "/sys"
)

// reached is called after each step, with its name. Tests end the process there.
var reached = func(string) {}

// Apply gives the container of s the user namespace u, that of sandbox if it is not nil. The calling goroutine must be locked to its
// thread, which gets a mount namespace of its own: only this thread may start the runtime below.
func Apply(s *spec.Spec, u *ociedit.UserNamespace, sandbox *ociedit.Process) error {
	x := &session{}
	defer x.close()
	join, foreignNetwork, err := x.join(s, u, sandbox)
	if err != nil {
		return err
	}
	root, err := s.Root()
	if err != nil {
		return err
	}
	binds, err := s.Binds(u)
	if err != nil {
		return err
	}
	if err := x.enter(); err != nil {
		return fmt.Errorf("mount namespace of the runtime: %w", err)
	}
	reached("entered")
	for n, b := range binds {
		if err := x.bind(b, filepath.Join(volumeDir, strconv.Itoa(n))); err != nil {
			return fmt.Errorf("mount %s: %w", b.Destination, err)
		}
	}
	reached("bound")
	if err := x.mountRoot(root, u); err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	reached("mounted")
	sys := ""
	if foreignNetwork {
		sys = sysDir
		if err := mountSys(sys); err != nil {
			return err
		}
	}
	if err := s.SetUserNamespace(u, join, sys); err != nil {
		return err
	}
	return s.SetRoot(rootDir)
}

// session has what Apply opens.
type session struct {
	host, own *os.File // mount namespaces: that of the Engine and that of this process
	cwd       string
	users     []user
}

// user is a user namespace that only serves to map mounts.
type user struct {
	uids, gids []ociedit.IDMapping
	file       *os.File
}

func (x *session) close() {
	for _, f := range []*os.File{x.host, x.own} {
		if f != nil {
			f.Close()
		}
	}
	for _, u := range x.users {
		u.file.Close()
	}
}

// enter gives this thread a mount namespace of its own, with an empty Dir.
func (x *session) enter() (err error) {
	if x.cwd, err = os.Getwd(); err != nil {
		return err
	}
	if err := os.MkdirAll(rootDir, 0o755); err != nil {
		return err
	}
	if x.host, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if x.own, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
		return err
	}
	// Mounts of the host arrive here, as the propagation of volumes needs it, but not the other way.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make / a slave: %w", err)
	}
	if err := unix.Mount("berth-oci", Dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", Dir, err)
	}
	for _, dir := range []string{rootDir, lowerDir, volumeDir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// mountSys mounts sysfs at dir. It shows the network of the process that mounts it, and the kernel refuses it to a user
// namespace that does not own that network; KEP-5607 describes the bind mount. It is a new one and not the host's /sys, in
// which debugfs, bpf and the cgroups of the host are mounted.
func mountSys(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		err = unix.Mount("sysfs", dir, "sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	if err != nil {
		return fmt.Errorf("mount sysfs for the host's network at %s: %w", dir, err)
	}
	return nil
}

// onHost calls f in the mount namespace of the Engine.
func (x *session) onHost(f func() error) (err error) {
	if err := unix.Setns(int(x.host.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the mount namespace of the Engine: %w", err)
	}
	err = f()
	if back := unix.Setns(int(x.own.Fd()), unix.CLONE_NEWNS); back != nil {
		return errors.Join(err, fmt.Errorf("enter the own mount namespace: %w", back))
	}
	return errors.Join(err, os.Chdir(x.cwd)) // setns(2) changes to the root directory
}

// bind attaches a clone of the source of a bind mount at target, id-mapped if b says so.
func (x *session) bind(b *spec.Bind, target string) error {
	recursive := uint(0)
	if b.Recursive {
		recursive = unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, b.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|recursive)
	if err != nil {
		return fmt.Errorf("clone %s: %w", b.Source, err)
	}
	defer unix.Close(fd) // unmounts a clone that is not attached
	if len(b.UIDs) > 0 {
		userns, err := x.user(b.UIDs, b.GIDs)
		if err != nil {
			return err
		}
		if err := idmap(fd, userns, recursive); err != nil {
			return culprit(b.Source, b.Recursive, userns, err)
		}
	}
	if err := attach(fd, target); err != nil {
		return err
	}
	// Flags of a mount cannot be cleared in the mount namespace of another user namespace (mount_namespaces(7)): the runtime must
	// ask for them when it changes others.
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	return b.Replace(target, lockedOptions(st.Flags)...)
}

// lockedOptions returns the mount options of the flags of statfs(2), whose type depends on the architecture.
func lockedOptions[T int32 | int64 | uint32](flags T) (options []string) {
	for _, o := range []struct {
		flag T
		name string
	}{{unix.ST_RDONLY, "ro"}, {unix.ST_NOSUID, "nosuid"}, {unix.ST_NODEV, "nodev"}, {unix.ST_NOEXEC, "noexec"}} {
		if flags&o.flag != 0 {
			options = append(options, o.name)
		}
	}
	return options
}

// idmap maps the owners of a detached mount.
func idmap(fd int, userns *os.File, flags uint) error {
	return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())})
}

// attach mounts a detached tree at target, which it creates as a directory or a file, like the root of the tree.
func attach(fd int, target string) error {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(target, 0o755)
	} else if err == nil {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return moveMount(fd, target)
}

func moveMount(fd int, target string) error {
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach a mount at %s: %w", target, err)
	}
	return nil
}

// user returns a user namespace with mappings, to map mounts.
func (x *session) user(uids, gids []ociedit.IDMapping) (*os.File, error) {
	for _, u := range x.users {
		if slices.Equal(u.uids, uids) && slices.Equal(u.gids, gids) {
			return u.file, nil
		}
	}
	file, err := newUserNamespace(uids, gids)
	if err != nil {
		return nil, fmt.Errorf("create a user namespace (sysctl user.max_user_namespaces): %w", err)
	}
	x.users = append(x.users, user{uids, gids, file})
	return file, nil
}
