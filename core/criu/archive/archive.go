// Package archive writes checkpoints to where their callers want them: that of a container to a file, and that of a pod to the files of a
// directory.
//
// A file appears complete or not at all: until it is, it has another name in its directory. What a crash leaves can be removed by the
// path (RemoveTemp) or the Place that the caller has recorded before.
package archive

import (
	"archive/tar"
	"context"
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

	"berth/core/rootdiff"
)

// tempPrefix begins the names of archives that are not complete. They are in the directory of the complete one, so that it appears
// there by a rename.
const tempPrefix = ".berth-checkpoint-"

// A Destination is where an archive is written.
type Destination struct {
	dir  *os.File // of the archive
	name string
	temp string // name beside it until it is complete
}

// Open checks the location of an archive. The error is of kind InvalidArgument if no archive may be written there.
func Open(location string) (*Destination, error) {
	if !filepath.IsAbs(location) || filepath.Clean(location) != location || location == "/" || strings.ContainsRune(location, 0) {
		return nil, fmt.Errorf("location %.200q: must be the absolute path of a file: %w", location, errdefs.ErrInvalidArgument)
	}
	parent, err := os.OpenFile(filepath.Dir(location), unix.O_PATH|unix.O_DIRECTORY, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("location %.200q: its directory must exist: %w", location, errdefs.ErrInvalidArgument)
	case err != nil:
		return nil, fmt.Errorf("location %.200q: %w", location, err)
	}
	var st unix.Stat_t
	err = unix.Fstatat(int(parent.Fd()), filepath.Base(location), &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENAMETOOLONG):
		err = fmt.Errorf("location %.200q: its name is too long: %w", location, errdefs.ErrInvalidArgument)
	case err != nil && !errors.Is(err, unix.ENOENT):
		err = fmt.Errorf("location %.200q: %w", location, err)
	case err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = fmt.Errorf("location %.200q: there is something that is not a regular file: %w", location, errdefs.ErrInvalidArgument)
	default:
		return &Destination{parent, filepath.Base(location), tempPrefix + rand.Text()}, nil
	}
	return nil, errors.Join(err, parent.Close())
}

func (d *Destination) Close() error { return d.dir.Close() }

// TempPath returns the path of the archive while it is not complete.
func (d *Destination) TempPath() string { return filepath.Join(d.dir.Name(), d.temp) }

// Write makes an archive of the files in the directory work. On an error there is no archive, or the one that was there before.
func (d *Destination) Write(ctx context.Context, work string, names []string) (size int64, err error) {
	return d.Create(ctx, func(f *os.File) error { return writeTar(ctx, f, work, names) })
}

// Create makes a file with what fill writes to it, and returns its size. On an error there is no file, or the one that was there before.
func (d *Destination) Create(ctx context.Context, fill func(f *os.File) error) (size int64, err error) {
	dirfd := int(d.dir.Fd())
	fd, err := unix.Openat(dirfd, d.temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, pathError("create", d.TempPath(), err)
	}
	f := os.NewFile(uintptr(fd), d.TempPath())
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Unlinkat(dirfd, d.temp, 0))
		}
	}()
	err = fill(f)
	if err == nil {
		size, err = f.Seek(0, io.SeekCurrent)
	}
	if err == nil {
		err = f.Sync() // a file that is there is complete, also after a power failure
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, fmt.Errorf("write %s: %w", d.name, err)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := unix.Renameat(dirfd, d.temp, dirfd, d.name); err != nil {
		return 0, pathError("rename", d.TempPath(), err)
	}
	return size, nil
}

// writeTar writes the files, and the directories with the files in them, that exist in the directory work.
func writeTar(ctx context.Context, w io.Writer, work string, names []string) error {
	root, err := os.OpenRoot(work)
	if err != nil {
		return err
	}
	defer root.Close()
	archive := tar.NewWriter(w)
	for _, name := range names {
		err := fs.WalkDir(root.FS(), name, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			return addFile(ctx, archive, root, path, info)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return archive.Close()
}

// addFile adds a file or directory to the archive, and nothing else: there is nothing else in a checkpoint, and containerd refuses it.
func addFile(ctx context.Context, archive *tar.Writer, root *os.Root, path string, info fs.FileInfo) error {
	header := &tar.Header{Name: path, ModTime: info.ModTime(), Mode: 0o600, Typeflag: tar.TypeReg, Size: info.Size()}
	switch {
	case info.IsDir():
		header.Name, header.Mode, header.Typeflag, header.Size = path+"/", 0o700, tar.TypeDir, 0
		return archive.WriteHeader(header)
	case !info.Mode().IsRegular():
		return nil
	}
	f, err := root.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(archive, rootdiff.WithContext(ctx, f))
	return err
}

// RemoveTemp removes what a crash has left of an archive. The path is from the record of the checkpoint; nothing but a file that
// Create may have created is removed.
func RemoveTemp(path string) error {
	if !strings.HasPrefix(filepath.Base(path), tempPrefix) || !filepath.IsAbs(path) {
		return nil
	}
	if err := unix.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return pathError("remove", path, err)
	}
	return nil
}

func pathError(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }
