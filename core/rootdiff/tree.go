package rootdiff

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A tree is a root file system that is being changed.
type tree struct {
	root *os.File
	dirs []dirTime // set at the end, because what is added to a directory changes its time
}

type dirTime struct {
	name string
	at   time.Time
}

// openDir opens the directory name. No symbolic link is followed and no mount entered.
func (t *tree) openDir(name string) (*os.File, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(int(t.root.Fd()), name, how)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// add makes what an entry describes.
func (t *tree) add(name string, header *tar.Header, content io.Reader) error {
	dirName, base := path.Dir(name), path.Base(name)
	if deleted, ok := strings.CutPrefix(base, whiteout); ok {
		return t.remove(path.Join(dirName, deleted))
	}
	parent, err := t.openDir(dirName)
	if err != nil {
		return err
	}
	defer parent.Close()
	fd := int(parent.Fd())
	if header.Typeflag != tar.TypeDir {
		if err := removeIn(parent, base); err != nil {
			return err
		}
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return t.addDir(parent, base, name, header)
	case tar.TypeLink:
		return t.link(header.Linkname, fd, base)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(header.Linkname, fd, base); err != nil {
			return err
		}
		if err := unix.Fchownat(fd, base, header.Uid, header.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		return unix.UtimesNanoAt(fd, base, timesOf(header.ModTime), unix.AT_SYMLINK_NOFOLLOW)
	case tar.TypeFifo:
		if err := unix.Mknodat(fd, base, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
		return finish(fd, base, unix.O_PATH, header, nil)
	default:
		return addFile(fd, base, header, content)
	}
}

func (t *tree) addDir(parent *os.File, base, name string, header *tar.Header) error {
	fd := int(parent.Fd())
	var st unix.Stat_t
	err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
	case err == nil:
		if err := unix.Unlinkat(fd, base, 0); err != nil {
			return err
		}
		fallthrough
	case errors.Is(err, unix.ENOENT):
		if err := unix.Mkdirat(fd, base, 0o700); err != nil {
			return err
		}
	default:
		return err
	}
	t.dirs = append(t.dirs, dirTime{name, header.ModTime})
	return finish(fd, base, unix.O_RDONLY|unix.O_DIRECTORY, header, nil)
}

func addFile(dir int, base string, header *tar.Header, content io.Reader) error {
	return finish(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, header, content)
}

// finish opens the file base of the directory dir, which has been made by its caller or is made by the flags, and gives it its
// content and attributes.
func finish(dir int, base string, flags int, header *tar.Header, content io.Reader) (err error) {
	fd, err := unix.Openat(dir, base, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	f := os.NewFile(uintptr(fd), base)
	defer func() { err = errors.Join(err, f.Close()) }()
	if content != nil {
		if n, err := io.Copy(f, io.LimitReader(content, header.Size)); err != nil || n < header.Size {
			return fmt.Errorf("%d of %d bytes: %w", n, header.Size, errors.Join(err, io.ErrUnexpectedEOF))
		}
	}
	// By the descriptor, so that nothing that takes the place of the name is changed. Those of O_PATH have only this way.
	self := "/proc/self/fd/" + strconv.Itoa(fd)
	if err := unix.Fchownat(fd, "", header.Uid, header.Gid, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if err := unix.Fchmodat(unix.AT_FDCWD, self, uint32(header.Mode&permissions), 0); err != nil { // after the owner, which clears the setuid bit
		return fmt.Errorf("chmod: %w", err)
	}
	for key, value := range header.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || name != xattrCapability && !strings.HasPrefix(name, xattrUserPrefix) || flags&unix.O_PATH != 0 {
			continue // others belong to the node: labels, and those of overlayfs
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set %.100q: %w", name, err)
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, self, timesOf(header.ModTime), 0); err != nil {
		return fmt.Errorf("set the time: %w", err)
	}
	return nil
}

// link makes a hard link to the file target, which must be beneath the root directory as everything else.
func (t *tree) link(target string, dir int, base string) error {
	clean, err := cleanName(target)
	if err != nil {
		return err
	}
	parent, err := t.openDir(path.Dir(clean))
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Linkat(int(parent.Fd()), path.Base(clean), dir, base, 0); err != nil { // without AT_SYMLINK_FOLLOW
		return fmt.Errorf("link to %.200q: %w", clean, err)
	}
	return nil
}

// remove removes the file or directory name, if it is there.
func (t *tree) remove(name string) error {
	parent, err := t.openDir(path.Dir(name))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // what is behind a link is not what was deleted
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	return removeIn(parent, path.Base(name))
}

// removeIn removes the file or directory base of the directory parent, if it is there.
func removeIn(parent *os.File, base string) error {
	err := unix.Unlinkat(int(parent.Fd()), base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(parent.Fd())))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(base), root.Close())
}

// setTimes sets the times of directories, the deepest first. One that is not there any more was replaced by a later entry.
func (t *tree) setTimes() error {
	for _, d := range slices.Backward(t.dirs) {
		dir, err := t.openDir(d.name)
		if err != nil {
			continue
		}
		err = unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(dir.Fd())), timesOf(d.at), 0)
		if err := errors.Join(err, dir.Close()); err != nil {
			return fmt.Errorf("time of %.200q: %w", d.name, err)
		}
	}
	return nil
}

// timesOf returns at as the times of access and modification.
func timesOf(at time.Time) []unix.Timespec {
	spec, err := unix.TimeToTimespec(at)
	if err != nil {
		spec = unix.Timespec{} // outside of what the platform can express
	}
	return []unix.Timespec{spec, spec}
}
