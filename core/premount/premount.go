// Package premount stages mounts for the Engine: it clones a tree of mounts of
// the node, gives the clone the options that the Engine cannot be asked for,
// and keeps it in a place from where the Engine can bind it into a container.
//
// Before Docker 25 that is the only way to a mount that is read-only with all
// below it, before Docker 28 the only one to a volume of an image's files, and
// on every Docker the only one to noexec, nosuid and nodev. It needs Linux 5.12
// and an Engine that sees the mounts of the daemon's own mount namespace.
package premount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/core/names"
)

// A Dir is a directory of staged mounts, DIR/NAME/0, DIR/NAME/1 and so on. It
// is its own mount, which nobody's recursive bind takes along: clones would
// otherwise hold clones of clones, without end, in a pod that mounts the node's
// root.
type Dir struct {
	dir string
	mu  sync.Mutex // guards that dir is a mount while it has entries
}

// A Mount is what is to be staged as one mount.
type Mount struct {
	Source string // the path of the node whose mounts are cloned; or
	// Layers are directories that together, the topmost first, are an image's
	// files. They are never written to.
	Layers  []string
	SubPath string // of Layers, links followed as the image means them; "" for all

	Options     []string // that Check accepts; later ones win
	Propagation Propagation
}

// A Propagation says what a staged mount has to do with its source once mounts
// come and go below either.
type Propagation int

// The propagations there are, by what mount(8) calls them.
const (
	Private Propagation = iota
	Slave
	Shared
)

// New returns the stage in dir, which is made when there is something to stage.
func New(dir string) *Dir { return &Dir{dir: dir} }

// Path is where Put stages tree i of those of name.
func (s *Dir) Path(name names.Premount, i int) string {
	return filepath.Join(s.dir, name.String(), strconv.Itoa(i))
}

// Create stages trees under a new name. On error nothing stays.
func (s *Dir) Create(name names.Premount, trees []Mount) (err error) {
	if name.None() {
		return fmt.Errorf("stage mounts: no name: %w", errdefs.ErrInvalidArgument)
	}
	if err := s.open(name); err != nil {
		return fmt.Errorf("stage mounts: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Remove(name))
		}
	}()
	for i, t := range trees {
		if err := put(t, s.Path(name, i)); err != nil {
			return err
		}
	}
	return nil
}

// open makes the directory of name.
func (s *Dir) open(name names.Premount) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	mounted, err := isMount(unix.AT_FDCWD, s.dir)
	if err != nil {
		return err
	}
	if !mounted {
		if err := unix.Mount(s.dir, s.dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", s.dir, err)
		}
	}
	if err := unix.Mount("", s.dir, "", unix.MS_UNBINDABLE, ""); err != nil {
		return fmt.Errorf("make %s unbindable: %w", s.dir, err)
	}
	return os.Mkdir(filepath.Join(s.dir, name.String()), 0o700)
}

// Names lists what is staged. Directory entries that Put cannot have made are left out.
func (s *Dir) Names() ([]names.Premount, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("staged mounts: %w", err)
	}
	var list []names.Premount
	for _, e := range entries {
		if name, err := names.ParseStage(e.Name()); err == nil {
			list = append(list, name)
		}
	}
	return list, nil
}

// Remove takes down what is staged under name, if anything is; no name is no error.
// Containers keep what they have. Drop works relative to directory descriptors,
// follows no links, and touches nothing but what Put has made.
func (s *Dir) Remove(name names.Premount) error {
	if name.None() {
		return nil
	}
	if err := s.drop(name); err != nil {
		return fmt.Errorf("staged mounts: %w", err)
	}
	return nil
}

func (s *Dir) drop(name names.Premount) error {
	root, err := os.OpenFile(s.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
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
		return &fs.PathError{Op: "openat2", Path: filepath.Join(s.dir, name.String()), Err: err}
	}
	dir := os.NewFile(uintptr(fd), filepath.Join(s.dir, name.String()))
	defer dir.Close()
	entries, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !treeName.MatchString(e) {
			continue // the directory will not be removed then, and the error says so
		}
		if err := takeDown(dir, e); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := unix.Unlinkat(int(root.Fd()), name.String(), unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir.Name(), Err: err}
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
		return err
	}
	parent, err := os.OpenFile(filepath.Dir(s.dir), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	root.Close() // nothing holds the mount any more
	return takeDown(parent, filepath.Base(s.dir))
}

// treeName matches what Put makes in the directory of a name.
var treeName = regexp.MustCompile(`^[0-9]+(\.image)?$`)

// takeDown unmounts whatever is mounted at an entry of dir and removes the entry,
// which must be an empty directory or a file then: what is behind a mount is never
// touched. An entry that does not exist is no error.
func takeDown(dir *os.File, entry string) error {
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
			return remove(fd, entry, path)
		}
		// A clone that shares mount events with its source would pass the unmount
		// on to the source's own mounts.
		private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(fd, entry, unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW, &private); err != nil {
			return fmt.Errorf("make %s private: %w", path, err)
		}
		// umount2(2) takes no descriptor; the link of /proc leads to dir itself,
		// whatever its path has become.
		at := fmt.Sprintf("/proc/self/fd/%d/%s", fd, entry)
		if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// remove removes a file or an empty directory in the directory dir.
func remove(dir int, entry, path string) error {
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
