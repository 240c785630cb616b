package logs

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A location is where the log of a container is: a file below the log directory
// of its pod. Log collectors, and pods with a hostPath, may be able to write below
// that directory, so nothing found there is trusted: no link is followed, and
// only a regular file is a log. What is above it is the node's own, and
// /var/log may well be a link.
type location struct {
	dir   string   // log directory of the pod, absolute and clean
	below []string // from there to the file; the last one is the file's name
}

// locate returns the location of the log at path in a pod whose log directory is
// dir. A path that is not below dir is refused: of kind FailedPrecondition.
func locate(dir, path string) (location, error) {
	dir, path = filepath.Clean(dir), filepath.Clean(path)
	below, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/")+"/")
	if !filepath.IsAbs(dir) || !ok {
		return location{}, fmt.Errorf("log path %q is not below the log directory %q of the pod: %w", path, dir, errdefs.ErrFailedPrecondition)
	}
	return location{dir: dir, below: strings.Split(below, "/")}, nil
}

func (l location) String() string {
	return filepath.Join(append([]string{l.dir}, l.below...)...)
}

// in calls do with a descriptor of the directory that the file is in, and the
// file's name there. Missing directories are made if create is set.
//
// Component by component without following links is what openat2 does with
// RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, which Linux has from 5.6 on only.
func (l location) in(create bool, do func(dir int, name string) error) error {
	if create {
		if err := os.MkdirAll(l.dir, 0o755); err != nil {
			return err
		}
	}
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	at := l.dir
	dir, err := unix.Open(at, flags, 0)
	for _, name := range l.below[:len(l.below)-1] {
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
		return fmt.Errorf("log %s: %s is not a directory, and links are not followed: %w", l, at, errdefs.ErrFailedPrecondition)
	case err != nil:
		return &os.PathError{Op: "open", Path: at, Err: err}
	}
	defer func() { _ = unix.Close(dir) }()
	if err := do(dir, l.below[len(l.below)-1]); err != nil {
		return fmt.Errorf("log %s: %w", l, err)
	}
	return nil
}

// open opens the file for writing at its end, and makes it if need be, as containerd does.
func (l location) open() (f *os.File, err error) {
	err = l.in(false, func(dir int, name string) error {
		f, err = openRegular(dir, name, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT, l.String())
		return err
	})
	return f, err
}

// make makes the file, and the directories that it is in. A link that an earlier
// owner of the name has left is replaced.
func (l location) make() error {
	return l.in(true, func(dir int, name string) error {
		if st, err := lstat(dir, name); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			if err := unix.Unlinkat(dir, name, 0); err != nil {
				return err
			}
		}
		f, err := openRegular(dir, name, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT, l.String())
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// link makes the file a link to source. A log or another link is replaced.
func (l location) link(source string) error {
	return l.in(true, func(dir int, name string) error {
		st, err := lstat(dir, name)
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			return err
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			if target, err := readlink(dir, name); err == nil && target == source {
				return nil
			}
		default:
			if err := regular(st); err != nil {
				return err
			}
		}
		if err == nil {
			if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
		return unix.Symlinkat(source, dir, name)
	})
}

// target returns what the file is a link to, "" if it is not a link.
func (l location) target() (target string) {
	_ = l.in(false, func(dir int, name string) (err error) {
		target, err = readlink(dir, name)
		return err
	})
	return target
}

// unlink removes the file if it is a link to source.
func (l location) unlink(source string) error {
	err := l.in(false, func(dir int, name string) error {
		if target, err := readlink(dir, name); err != nil || target != source {
			return nil // a log, or the kubelet has removed the link
		}
		return unix.Unlinkat(dir, name, 0)
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// removeEmpty removes the file if it is a log and empty.
func (l location) removeEmpty() error {
	err := l.in(false, func(dir int, name string) error {
		if st, err := lstat(dir, name); err != nil || st.Size > 0 || regular(st) != nil {
			return nil
		}
		return unix.Unlinkat(dir, name, 0)
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// find opens, for reading, the file with the inode: the log itself, or what the
// kubelet has renamed it to since. It returns nil if no file there has it.
func (l location) find(inode uint64) (found *os.File, err error) {
	err = l.in(false, func(dir int, name string) error {
		try := func(candidate string) error {
			st, err := lstat(dir, candidate)
			if err != nil || st.Ino != inode || st.Mode&unix.S_IFMT != unix.S_IFREG {
				return nil // removed meanwhile, or another file
			}
			f, err := openRegular(dir, candidate, os.O_RDONLY, filepath.Join(filepath.Dir(l.String()), candidate))
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
		if err := try(name); err != nil || found != nil {
			return err
		}
		fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		list := os.NewFile(uintptr(fd), filepath.Dir(l.String()))
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
		return nil, nil // the directory has been removed, and the file with it
	}
	return found, err
}

// openRegular opens a regular file in dir. It never blocks, as opening a named pipe
// would. A file with a second name is not written to.
func openRegular(dir int, name string, flags int, path string) (*os.File, error) {
	check := func(st unix.Stat_t) error {
		if flags == os.O_RDONLY && st.Mode&unix.S_IFMT == unix.S_IFREG {
			return nil
		}
		return regular(st)
	}
	// Opening a device may have an effect, so it is not even tried.
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

// regular returns why a file cannot be a log, nil if it can: of kind
// FailedPrecondition.
func regular(st unix.Stat_t) error {
	what := "a device"
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if st.Nlink <= 1 {
			return nil
		}
		what = "a file with a second name (hard link)"
	case unix.S_IFLNK:
		what = "a symbolic link"
	case unix.S_IFDIR:
		what = "a directory"
	case unix.S_IFIFO:
		what = "a named pipe"
	case unix.S_IFSOCK:
		what = "a socket"
	}
	return fmt.Errorf("there is %s; it must be a regular file, or not be there: %w", what, errdefs.ErrFailedPrecondition)
}
