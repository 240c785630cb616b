// Package premount creates mounts on the node, before the container that gets them exists: Docker then binds
// the prepared mount into the container as it is. berth needs it for what the Engine API cannot express:
//
//   - mounts that are read-only with all mounts below them, before Docker 25,
//   - volumes made of the files of an image, before Docker 28,
//   - the mount options noexec, nosuid and nodev, on every Docker.
//
// Dir is a directory of such mounts. Create clones a tree of mounts of the node (open_tree(2)), or makes an overlay
// of an image's layers, and gives it the options (mount_setattr(2)); Remove unmounts it. It needs Linux 5.12, and a
// Docker in the mount namespace of berthd.
//
// Tmpfs, CheckPropagation and WritableSysfs are other operations on mounts that pods need.
package premount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/core/names"
)

// A Dir is a directory of premounts: DIR/NAME/0, DIR/NAME/1 and so on. It is a mount of its own, and unbindable, so
// that recursive binds leave it out: in a pod that mounts the node's root, clones would otherwise contain clones of
// clones, without end. Use New.
type Dir struct {
	dir string
	mu  sync.Mutex // guards that dir is a mount while it has entries
}

// A Mount describes one premount. It has either a Source or Layers.
type Mount struct {
	// Source is the path on the node whose mounts are cloned. With names.UnknownID in it Create only makes an empty directory, which
	// Complete replaces by the mount.
	Source string
	// NonRecursive clones only the mount of Source, without those below.
	NonRecursive bool
	// Layers are the directories of an image's layers, the topmost first. They are never written to.
	Layers []string
	// SubPath is a path in Layers, "" for all files. Symbolic links are resolved within the image.
	SubPath string

	// Options are options that Check accepts.
	Options     []string
	Propagation Propagation
}

// A Propagation tells which later mounts and unmounts propagate between a premount and its source.
type Propagation int

// The propagations, as mount_namespaces(7) calls them.
const (
	Private Propagation = iota // none
	Slave                      // from the source to the premount
	Shared                     // in both directions
)

// New returns the Dir at the path dir, which the first Create creates.
func New(dir string) *Dir { return &Dir{dir: dir} }

// Path is where Create mounts the i-th mount of name.
func (d *Dir) Path(name names.Premount, i int) string {
	return filepath.Join(d.dir, name.String(), strconv.Itoa(i))
}

// Create creates mounts under a new name. On error nothing stays. Errors about a Mount with Layers wrap ErrLayers.
func (d *Dir) Create(name names.Premount, mounts []Mount) (err error) {
	if name.IsZero() {
		return fmt.Errorf("create premounts: no name: %w", errdefs.ErrInvalidArgument)
	}
	if err := d.createSubdir(name); err != nil {
		return fmt.Errorf("create premounts: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Remove(name))
		}
	}()
	for i, m := range mounts {
		if m.incomplete() {
			err = os.Mkdir(d.Path(name, i), 0o700)
		} else {
			err = create(m, d.Path(name, i))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// incomplete reports whether the source depends on the ID of a container that does not exist yet.
func (m Mount) incomplete() bool { return strings.Contains(m.Source, names.UnknownID) }

// Complete mounts those of the mounts of Create whose source depends on the ID of the container, now that it is known. Docker looks at what it
// mounts when the container starts. Sources must propagate mounts as their Mount says.
func (d *Dir) Complete(name names.Premount, id string, mounts []Mount) error {
	for i, m := range mounts {
		if !m.incomplete() {
			continue
		}
		m.Source = strings.ReplaceAll(m.Source, names.UnknownID, id)
		if err := CheckPropagation(m.Source, m.Propagation); err != nil {
			return fmt.Errorf("propagation of mount of %s: %w", m.Source, err)
		}
		if err := os.Remove(d.Path(name, i)); err != nil {
			return err
		}
		if err := create(m, d.Path(name, i)); err != nil {
			return err
		}
	}
	return nil
}

// createSubdir creates the directory of name, and the mount of the Dir if need be.
func (d *Dir) createSubdir(name names.Premount) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	mounted, err := isMount(unix.AT_FDCWD, d.dir)
	if err != nil {
		return err
	}
	if !mounted {
		if err := unix.Mount(d.dir, d.dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", d.dir, err)
		}
	}
	if err := unix.Mount("", d.dir, "", unix.MS_UNBINDABLE, ""); err != nil {
		return fmt.Errorf("make %s unbindable: %w", d.dir, err)
	}
	return os.Mkdir(filepath.Join(d.dir, name.String()), 0o700)
}

// Names lists the names that have premounts. Directory entries that Create cannot have made are left out.
func (d *Dir) Names() ([]names.Premount, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("premounts: %w", err)
	}
	var found []names.Premount
	for _, e := range entries {
		if name, err := names.ParsePremount(e.Name()); err == nil {
			found = append(found, name)
		}
	}
	return found, nil
}

// Remove unmounts and removes the premounts of name. A name that has none, or no name, is no error. Mounts that
// containers have made of them stay. Remove works relative to directory descriptors, follows no symbolic links, and
// touches nothing but what Create has made.
func (d *Dir) Remove(name names.Premount) error {
	if name.IsZero() {
		return nil
	}
	if err := d.remove(name); err != nil {
		return fmt.Errorf("premounts: %w", err)
	}
	return nil
}

func (d *Dir) remove(name names.Premount) error {
	root, err := os.OpenFile(d.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), name.String(), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "openat2", Path: filepath.Join(d.dir, name.String()), Err: err}
	}
	dir := os.NewFile(uintptr(fd), filepath.Join(d.dir, name.String()))
	defer dir.Close()
	entries, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !mountName().MatchString(e) {
			continue // rmdir will fail then, and its error is returned
		}
		if err := unmountAndRemove(dir, e); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := unix.Unlinkat(int(root.Fd()), name.String(), unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir.Name(), Err: err}
	}
	if left, err := os.ReadDir(d.dir); err != nil || len(left) > 0 {
		return err
	}
	parent, err := os.OpenFile(filepath.Dir(d.dir), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	root.Close() // an open descriptor would keep the mount busy
	return unmountAndRemove(parent, filepath.Base(d.dir))
}

// mountName matches the entries that Create makes in the directory of a name.
var mountName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9]+(\.image)?$`) })

// unmountAndRemove unmounts everything that is mounted at an entry of dir, and removes the entry, which must be an empty
// directory or a file then: the files of a mount are never touched. An entry that does not exist is no error.
func unmountAndRemove(dir *os.File, entry string) error {
	fd := int(dir.Fd())
	path := filepath.Join(dir.Name(), entry)
	for {
		mounted, err := isMount(fd, entry)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !mounted {
			return unlink(fd, entry, path)
		}
		// The unmount of a clone that is shared with its source would propagate to the source's own mounts.
		private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(fd, entry, unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW, &private); err != nil {
			return fmt.Errorf("make %s private: %w", path, err)
		}
		// umount2(2) takes no descriptor. The magic link in /proc leads to dir itself, even if it has been renamed.
		at := fmt.Sprintf("/proc/self/fd/%d/%s", fd, entry)
		if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// unlink removes a file or an empty directory in the directory dir.
func unlink(dir int, entry, path string) error {
	err := unix.Unlinkat(dir, entry, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = unix.Unlinkat(dir, entry, unix.AT_REMOVEDIR)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

// isMount reports whether something is mounted at path, relative to the directory dir.
func isMount(dir int, path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(dir, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	if err != nil {
		return false, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
