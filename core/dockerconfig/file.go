package dockerconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth/core/trust"
)

// DefaultFile is the configuration file that dockerd reads without --config-file.
const DefaultFile = "/etc/docker/daemon.json"

// backupSuffix is behind the name of the file as it was before the last change.
const backupSuffix = ".berth-backup"

// ErrBusy is returned while another process changes the file by this package.
var ErrBusy = errors.New("another process is changing it")

// A File is a daemon.json on the disk, which may be missing.
type File struct {
	Path string
	*Document

	found []byte // what was read; nil if there was no file
	info  *unix.Stat_t
	lock  *os.File
}

// Read reads the file path. An error names the file and is one line.
func Read(path string) (*File, error) {
	f := &File{Path: path}
	var err error
	if f.found, f.info, err = readFile(path); err != nil {
		return nil, err
	}
	if f.Document, err = Parse(f.found); err != nil {
		return nil, fmt.Errorf("%s is not changed: %w", path, err)
	}
	return f, nil
}

// Lock reads the file path as Read does, and keeps other processes from doing so with Lock until Unlock. It creates the
// directory if that is missing.
func Lock(path string) (_ *File, err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%s: %w", path, ErrBusy)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(lock.Fd()), &st); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if err := trust.File(dir, &st); err != nil {
		return nil, err
	}
	f, err := Read(path)
	if err != nil {
		return nil, err
	}
	f.lock = lock
	return f, nil
}

// Unlock ends Lock.
func (f *File) Unlock() { _ = f.lock.Close() }

// Existed reports whether there was a file when it was read.
func (f *File) Existed() bool { return f.found != nil }

// Backup returns the name of the file as it was before the last Replace.
func (f *File) Backup() string { return f.Path + backupSuffix }

// readFile returns the content of the file path, nil if there is none, and its attributes. It refuses what dockerd
// reads from elsewhere, or what others than root could change.
func readFile(path string) ([]byte, *unix.Stat_t, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case errors.Is(err, unix.ELOOP):
		target, _ := os.Readlink(path)
		return nil, nil, fmt.Errorf("%s is a link to %q: it must be a regular file", path, target)
	case err != nil:
		return nil, nil, err
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil, fmt.Errorf("%s is not a regular file", path)
	}
	if err := trust.File(path, &st); err != nil {
		return nil, nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, maxSize+1))
	if err != nil {
		return nil, nil, err
	}
	if text == nil {
		text = []byte{}
	}
	return text, &st, nil
}

// Replace replaces the file by one with that text and the same mode, owner and attributes, and stores what it replaces in
// Backup. The caller has f from Lock. It fails if another program has changed the file since then.
func (f *File) Replace(d *Document) error {
	if err := f.checkUnchanged(); err != nil {
		return err
	}
	if f.found != nil {
		if err := f.write(f.Backup(), f.found); err != nil {
			return err
		}
	}
	return f.put(d)
}

// Amend is Replace for another change of the same operation: Backup stays as it is.
func (f *File) Amend(d *Document) error {
	if err := f.checkUnchanged(); err != nil {
		return err
	}
	return f.put(d)
}

// Restore brings the file back that f was before Replace, or removes it if there was none.
func (f *File) Restore(original *File) error {
	if err := f.checkUnchanged(); err != nil {
		return err
	}
	if original.found == nil {
		return os.Remove(f.Path)
	}
	return f.write(f.Path, original.found)
}

// put writes d to the file and keeps it as what is on the disk.
func (f *File) put(d *Document) error {
	if err := f.write(f.Path, d.Text()); err != nil {
		return err
	}
	f.found, f.Document = d.Text(), d
	return nil
}

// Copy returns what f is now, for Restore.
func (f *File) Copy() *File {
	saved := *f
	return &saved
}

// checkUnchanged returns an error if the file is not as it was read or written last.
func (f *File) checkUnchanged() error {
	text, _, err := readFile(f.Path)
	if err != nil {
		return err
	}
	if (text == nil) != (f.found == nil) || !bytes.Equal(text, f.found) {
		return fmt.Errorf("%s was changed by another program meanwhile: try again", f.Path)
	}
	return nil
}

// write replaces the file path, which is f or its backup, and syncs it: dockerd must find a complete file also after a
// power loss.
func (f *File) write(path string, text []byte) (err error) {
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = temp.Close()
			_ = os.Remove(temp.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err := temp.Write(text); err != nil {
		return err
	}
	mode, fd := uint32(0o644), int(temp.Fd())
	if f.info != nil {
		mode = f.info.Mode & 0o7777
		if err := unix.Fchown(fd, int(f.info.Uid), int(f.info.Gid)); err != nil {
			return err
		}
		copyAttributes(f.Path, fd)
	}
	if err := errors.Join(unix.Fchmod(fd, mode), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// copyAttributes copies extended attributes of a file, such as its SELinux label, as far as the file system allows.
func copyAttributes(from string, to int) {
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(from, names)
	if err != nil {
		return
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 4096)
		if size, err := unix.Lgetxattr(from, name, value); err == nil {
			_ = unix.Fsetxattr(to, name, value[:size], 0)
		}
	}
}

// SyncDir syncs the entries of a directory to the disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
