package archive

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A Place says where the checkpoint of a pod is written, for a berthd that comes after this one.
type Place struct {
	Path   string   `json:"path"` // without links
	Device uint64   `json:"device"`
	Inode  uint64   `json:"inode"`
	Files  []string `json:"files"` // names of all files that may be there
}

// A Dir is the directory that the checkpoint of a pod is written to. The caller owns it.
type Dir struct {
	dir *os.File
	// Place is recorded before the first file is written, with the names of all.
	Place Place
}

// OpenDir opens an existing, empty directory. The error is of kind InvalidArgument for everything else.
func OpenDir(path string) (_ *Dir, err error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || strings.ContainsRune(path, 0) {
		return nil, fmt.Errorf("output_path %.200q: must be the absolute path of an existing, empty directory: %w", path, errdefs.ErrInvalidArgument)
	}
	dir, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("output_path %.200q: the directory must exist: %w", path, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return nil, fmt.Errorf("output_path %.200q: must be a directory and no symbolic link: %w: %w", path, err, errdefs.ErrInvalidArgument)
	case err != nil:
		return nil, fmt.Errorf("output_path %.200q: %w", path, err)
	}
	o := &Dir{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.Close())
		}
	}()
	if _, err := dir.Readdirnames(1); !errors.Is(err, io.EOF) {
		return nil, errors.Join(fmt.Errorf("output_path %.200q: the directory must be empty: %w", path, errdefs.ErrInvalidArgument), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, pathError("stat", path, err)
	}
	o.Place = Place{Device: st.Dev, Inode: st.Ino}
	o.Place.Path, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	return o, err
}

func (o *Dir) Close() error { return o.dir.Close() }

// File returns where the file name is written.
func (o *Dir) File(name string) *Destination {
	return &Destination{o.dir, name, tempPrefix + rand.Text()}
}

// Clear removes the files that may have been written, also those that are not complete.
func (o *Dir) Clear() error { return clearFiles(o.dir, o.Place.Files) }

// Clear is that of the Dir. It does nothing if the directory is not there any more.
func (p Place) Clear() error {
	fd, err := unix.Openat2(unix.AT_FDCWD, p.Path, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return pathError("open", p.Path, err)
	}
	dir := os.NewFile(uintptr(fd), p.Path)
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pathError("stat", p.Path, err)
	}
	if st.Dev != p.Device || st.Ino != p.Inode {
		return nil // another directory
	}
	return clearFiles(dir, p.Files)
}

// clearFiles removes files of a directory by their names, and those that are not complete.
func clearFiles(dir *os.File, names []string) error {
	if _, err := dir.Seek(0, io.SeekStart); err != nil { // it has been read
		return err
	}
	entries, err := dir.Readdirnames(-1)
	if err != nil {
		return pathError("read", dir.Name(), err)
	}
	for _, name := range entries {
		if strings.HasPrefix(name, tempPrefix) {
			names = append(names[:len(names):len(names)], name)
		}
	}
	var errs []error
	for _, name := range names {
		if filepath.Base(name) != name { // of a record that is not ours
			continue
		}
		err := unix.Unlinkat(int(dir.Fd()), name, 0)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EISDIR) { // a directory is not ours
			errs = append(errs, pathError("remove", filepath.Join(dir.Name(), name), err))
		}
	}
	return errors.Join(errs...)
}

// Sync makes the names of the files last.
func (o *Dir) Sync() error { return o.dir.Sync() }
