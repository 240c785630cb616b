// Package crifile writes the log file of a container that the kubelet reads: it opens it
// safely below the log directory of the pod, formats records as the CRI requires, and
// continues exactly where a killed daemon stopped.
//
// Path is the place of a log, OpenLines formats records, and Writer appends them to the
// file. The kubelet rotates the file: it renames it and calls ReopenContainerLog.
package crifile

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A Path is where the log of a container is: a file below the log directory of its pod.
// Log collectors, and pods with a hostPath volume, may be able to write below that
// directory, so nothing found there is trusted: no symbolic link is followed, and only a
// regular file is a log. The directories above it belong to the node, and /var/log may be a
// symbolic link.
type Path struct {
	dir        string   // log directory of the pod, absolute and clean
	components []string // from there to the file; the last one is the file's name
}

// NewPath returns the path of a log in a pod with the log directory dir. The error is of
// kind FailedPrecondition if path is not below dir.
func NewPath(dir, path string) (Path, error) {
	dir, path = filepath.Clean(dir), filepath.Clean(path)
	below, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/")+"/")
	if !filepath.IsAbs(dir) || !ok {
		return Path{}, fmt.Errorf("log path %q is not below the log directory %q of the pod: %w", path, dir, errdefs.ErrFailedPrecondition)
	}
	return Path{dir: dir, components: strings.Split(below, "/")}, nil
}

// Dir returns the log directory of the pod.
func (p Path) Dir() string { return p.dir }

func (p Path) String() string {
	return filepath.Join(append([]string{p.dir}, p.components...)...)
}

// inDir calls do with a descriptor of the directory that contains the file, and the file's
// name there. It creates missing directories if create is set.
//
// It opens component by component without following links, as openat2 does with
// RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, because openat2 requires Linux 5.6.
func (p Path) inDir(create bool, do func(dir int, name string) error) error {
	if create {
		if err := os.MkdirAll(p.dir, 0o755); err != nil {
			return err
		}
	}
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	at := p.dir
	dir, err := unix.Open(at, flags, 0)
	for _, name := range p.components[:len(p.components)-1] {
		if err != nil {
			break
		}
		at = filepath.Join(at, name)
		next, nextErr := unix.Openat(dir, name, flags, 0)
		if create && errors.Is(nextErr, unix.ENOENT) {
			if nextErr = unix.Mkdirat(dir, name, 0o755); nextErr == nil || errors.Is(nextErr, unix.EEXIST) {
				next, nextErr = unix.Openat(dir, name, flags, 0)
			}
		}
		_ = unix.Close(dir) // nothing was written through it
		dir, err = next, nextErr
	}
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return fmt.Errorf("log %s: %s is not a directory, and links are not followed: %w", p, at, errdefs.ErrFailedPrecondition)
	case err != nil:
		return &os.PathError{Op: "open", Path: at, Err: err}
	}
	defer func() { _ = unix.Close(dir) }()
	if err := do(dir, p.components[len(p.components)-1]); err != nil {
		return fmt.Errorf("log %s: %w", p, err)
	}
	return nil
}

// open opens the file for appending and creates it if necessary, as containerd does.
func (p Path) open() (f *os.File, err error) {
	err = p.inDir(false, func(dir int, name string) error {
		f, err = openRegular(dir, name, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT, p.String())
		return err
	})
	return f, err
}

// Touch creates the file if necessary.
func (p Path) Touch() error {
	f, err := p.open()
	if err != nil {
		return err
	}
	return f.Close()
}

// Create creates the file if necessary, and its directories. It replaces a symbolic link,
// which an earlier container of the same name may have left.
func (p Path) Create() error {
	return p.inDir(true, func(dir int, name string) error {
		if st, err := lstat(dir, name); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			if err := unix.Unlinkat(dir, name, 0); err != nil {
				return err
			}
		}
		f, err := openRegular(dir, name, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT, p.String())
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// Symlink makes the file a symbolic link to target. It replaces a log or another link.
func (p Path) Symlink(target string) error {
	return p.inDir(true, func(dir int, name string) error {
		st, err := lstat(dir, name)
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			return err
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			if current, err := readlink(dir, name); err == nil && current == target {
				return nil
			}
		default:
			if err := checkRegular(st); err != nil {
				return err
			}
		}
		if err == nil {
			if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
		return unix.Symlinkat(target, dir, name)
	})
}

// LinkTarget returns the target of the symbolic link at the path, "" if it is not a link.
func (p Path) LinkTarget() (target string) {
	_ = p.inDir(false, func(dir int, name string) (err error) {
		target, err = readlink(dir, name)
		return err
	})
	return target
}

// RemoveSymlink removes the file if it is a symbolic link to target.
func (p Path) RemoveSymlink(target string) error {
	err := p.inDir(false, func(dir int, name string) error {
		if current, err := readlink(dir, name); err != nil || current != target {
			return nil // a log, or the kubelet has removed the link
		}
		return unix.Unlinkat(dir, name, 0)
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// RemoveEmpty removes the file if it is an empty log.
func (p Path) RemoveEmpty() error {
	err := p.inDir(false, func(dir int, name string) error {
		if st, err := lstat(dir, name); err != nil || st.Size > 0 || checkRegular(st) != nil {
			return nil
		}
		return unix.Unlinkat(dir, name, 0)
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// findCurrent opens the log for reading if it has the given inode, else it returns nil.
func (p Path) findCurrent(inode uint64) (*os.File, error) { return p.find(inode, false) }

// findAny opens for reading the file with the given inode: the log itself, or a file of which
// the name begins with that of the log and a dot, as the kubelet renames it. It returns nil
// if no file has that inode.
func (p Path) findAny(inode uint64) (*os.File, error) { return p.find(inode, true) }

func (p Path) find(inode uint64, rotated bool) (found *os.File, err error) {
	err = p.inDir(false, func(dir int, name string) error {
		try := func(candidate string) error {
			st, err := lstat(dir, candidate)
			if err != nil || st.Ino != inode || st.Mode&unix.S_IFMT != unix.S_IFREG {
				return nil // removed meanwhile, or a different file
			}
			f, err := openRegular(dir, candidate, os.O_RDONLY, filepath.Join(filepath.Dir(p.String()), candidate))
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			if err != nil {
				return err
			}
			if info, err := f.Stat(); err != nil || inodeOf(info) != inode {
				return errors.Join(err, f.Close())
			}
			found = f
			return nil
		}
		if err := try(name); err != nil || found != nil || !rotated {
			return err
		}
		fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		list := os.NewFile(uintptr(fd), filepath.Dir(p.String()))
		defer list.Close()
		for {
			names, err := list.Readdirnames(256)
			for _, candidate := range names {
				if !strings.HasPrefix(candidate, name+".") {
					continue
				}
				if err := try(candidate); err != nil || found != nil {
					return err
				}
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // the directory was removed, and the file with it
	}
	return found, err
}

// openRegular opens a regular file in dir. It never blocks, as opening a named pipe
// would. It refuses to write to a file with a second name (hard link).
func openRegular(dir int, name string, flags int, path string) (*os.File, error) {
	check := func(st unix.Stat_t) error {
		if flags == os.O_RDONLY && st.Mode&unix.S_IFMT == unix.S_IFREG {
			return nil
		}
		return checkRegular(st)
	}
	// Opening a device may have side effects, so the type is checked before.
	if st, err := lstat(dir, name); err == nil {
		if err := check(st); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		err = check(st)
	}
	if err = cmp.Or(err, unix.SetNonblock(fd, false)); err != nil {
		_ = unix.Close(fd) // nothing was written to it
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func lstat(dir int, name string) (st unix.Stat_t, err error) {
	return st, unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
}

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	return string(buf[:max(n, 0)]), err
}

// checkRegular returns an error of kind FailedPrecondition if a file cannot be a log.
func checkRegular(st unix.Stat_t) error {
	kind := "a device"
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if st.Nlink <= 1 {
			return nil
		}
		kind = "a file with a second name (hard link)"
	case unix.S_IFLNK:
		kind = "a symbolic link"
	case unix.S_IFDIR:
		kind = "a directory"
	case unix.S_IFIFO:
		kind = "a named pipe"
	case unix.S_IFSOCK:
		kind = "a socket"
	}
	return fmt.Errorf("there is %s; it must be a regular file, or not be there: %w", kind, errdefs.ErrFailedPrecondition)
}

// inodeOf returns what identifies a file until it is removed.
func inodeOf(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
