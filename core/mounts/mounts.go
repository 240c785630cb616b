// Package mounts stages mounts for the Engine: it clones a tree of mounts of
// the node, gives the clone the options that the Engine cannot be asked for,
// and keeps it in a place from where the Engine can bind it into a container.
//
// Before Docker 25 that is the only way to a mount that is read-only with all
// below it, before Docker 28 the only one to a volume of an image's files, and
// on every Docker the only one to noexec, nosuid and nodev. It needs Linux 5.12
// and an Engine that sees the mounts of the daemon's own mount namespace.
package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// A Stage is a directory of staged mounts, DIR/NAME/0, DIR/NAME/1 and so on. It
// is its own mount, which nobody's recursive bind takes along: clones would
// otherwise hold clones of clones, without end, in a pod that mounts the node's
// root.
type Stage struct {
	dir string
	mu  sync.Mutex // guards that dir is a mount while it has entries
}

// A Tree is what is to be staged as one mount.
type Tree struct {
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
func New(dir string) *Stage { return &Stage{dir: dir} }

// Path is where Put stages tree i of those of name.
func (s *Stage) Path(name string, i int) string {
	return filepath.Join(s.dir, name, strconv.Itoa(i))
}

// Put stages trees under a name that nobody has. With an error nothing stays.
func (s *Stage) Put(name string, trees []Tree) (err error) {
	if err := s.open(name); err != nil {
		return fmt.Errorf("stage mounts: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Drop(name))
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
func (s *Stage) open(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	mounted, err := isMount(s.dir)
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
	return os.Mkdir(filepath.Join(s.dir, name), 0o700)
}

// Names lists what is staged.
func (s *Stage) Names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("staged mounts: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// Drop takes down what is staged under name, if anything is; no name is no error.
// Containers keep what they have.
func (s *Stage) Drop(name string) error {
	if name == "" {
		return nil
	}
	dir := filepath.Join(s.dir, name)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("staged mounts: %w", err)
	}
	for _, e := range entries {
		if err := takeDown(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("staged mounts: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("staged mounts: %w", err)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
		return err
	}
	if err := takeDown(s.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("staged mounts: %w", err)
	}
	return nil
}

// takeDown unmounts whatever is mounted at path and removes path, which must be
// empty then: what is behind a mount is never touched.
func takeDown(path string) error {
	for {
		mounted, err := isMount(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !mounted {
			return os.Remove(path)
		}
		// A clone that shares its source's comings and goings would take the
		// source's own mounts along.
		private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW, &private); err != nil {
			return fmt.Errorf("make %s private: %w", path, err)
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// isMount reports whether something is mounted at path.
func isMount(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	if err != nil {
		return false, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
