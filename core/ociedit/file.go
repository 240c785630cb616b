package ociedit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const suffix = ".json"

// Write stores the instructions of i.ContainerID in dir, which it creates if necessary. A reader, also one after a crash,
// finds the whole file, or the one before. Only one process may write the instructions of one container at a time.
func Write(dir string, i Instructions) error {
	if !validID(i.ContainerID) {
		return fmt.Errorf("instructions of container %q: not a container ID", i.ContainerID)
	}
	i.Version = i.version()
	if err := i.validate(); err != nil {
		return fmt.Errorf("instructions of container %s: %w", i.ContainerID, err)
	}
	text, err := json.Marshal(i)
	if err != nil {
		return fmt.Errorf("instructions of container %s: %w", i.ContainerID, err)
	}
	if len(text) > MaxSize {
		return fmt.Errorf("instructions of container %s have %d bytes: must be at most %d", i.ContainerID, len(text), MaxSize)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := openDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := replace(d, i.ContainerID+suffix, text); err != nil {
		return fmt.Errorf("write instructions of container %s: %w", i.ContainerID, err)
	}
	return nil
}

// temporary returns the name under which replace writes a file. It is the same each time, so that Remove and
// List find what a killed process has left.
func temporary(name string) string { return "." + name }

// replace writes a file in d and syncs both.
func replace(d *os.File, name string, text []byte) error {
	dir := int(d.Fd())
	if err := unix.Unlinkat(dir, temporary(name), 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	fd, err := unix.Openat(dir, temporary(name), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = unix.Renameat(dir, temporary(name), dir, name)
	}
	if err != nil {
		_ = unix.Unlinkat(dir, temporary(name), 0) // on a full disk it would take space
		return err
	}
	return d.Sync()
}

// Read returns the instructions of the container id in dir. If there are none, the error wraps fs.ErrNotExist. Every other
// error is one line that says why the file is not believed.
func Read(dir, id string) (*Instructions, error) {
	if !validID(id) {
		return nil, fmt.Errorf("instructions of container %q: not a container ID", id)
	}
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	path := filepath.Join(dir, id+suffix)
	text, err := readFile(d, id+suffix)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	i, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if i.ContainerID != id {
		return nil, fmt.Errorf("%s: has the instructions of container %.*q", path, maxID, i.ContainerID)
	}
	return i, nil
}

// readFile returns the contents of a file in d that only its owner can have written.
func readFile(d *os.File, name string) ([]byte, error) {
	fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, errors.New("is a symbolic link")
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, errors.New("is not a regular file")
	case !trustedOwner(st.Uid):
		return nil, fmt.Errorf("belongs to user %d: must belong to root", st.Uid)
	case st.Mode&0o022 != 0:
		return nil, fmt.Errorf("has mode %#o: others than its owner can write it", st.Mode&0o7777)
	case st.Size > MaxSize:
		return nil, fmt.Errorf("has %d bytes: must have at most %d", st.Size, MaxSize)
	}
	text, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err == nil && len(text) > MaxSize {
		err = fmt.Errorf("has more than %d bytes", MaxSize)
	}
	return text, err
}

// decode returns what a file says.
func decode(text []byte) (*Instructions, error) {
	var format struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &format); err != nil {
		return nil, fmt.Errorf("is truncated or not JSON: %w", err)
	}
	switch {
	case format.Version > Version:
		return nil, fmt.Errorf("has version %d, and this program knows versions up to %d: upgrade berth-oci", format.Version, Version)
	case format.Version < 1:
		return nil, fmt.Errorf("has version %d: must be from 1 to %d", format.Version, Version)
	}
	i := &Instructions{}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(i); err != nil {
		return nil, fmt.Errorf("version %d: %w", format.Version, err)
	}
	if format.Version < i.version() {
		return nil, fmt.Errorf("has version %d and fields of version %d", format.Version, i.version())
	}
	return i, i.validate()
}

// Remove removes the instructions of the container id, and what an interrupted Write has left. It is no error if there are none.
func Remove(dir, id string) error {
	if !validID(id) {
		return fmt.Errorf("instructions of container %q: not a container ID", id)
	}
	d, err := openDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	for _, name := range []string{id + suffix, temporary(id + suffix)} {
		if err := unix.Unlinkat(int(d.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove %s: %w", filepath.Join(dir, name), err)
		}
	}
	return nil
}

// List returns the IDs of all containers that Remove would remove a file of, sorted. A directory that does not exist has none.
func List(dir string) ([]string, error) {
	d, err := openDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, name := range names {
		id, ok := strings.CutSuffix(strings.TrimPrefix(name, "."), suffix)
		if ok && validID(id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// openDir opens a directory that only root can enter, below directories that only root can change. It follows no symbolic link.
func openDir(dir string) (*os.File, error) {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return nil, fmt.Errorf("directory of instructions %q: must be an absolute path without . and .. elements", dir)
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Open("/", flags, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	path := ""
	for name := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		path += "/" + name
		next, err := unix.Openat(fd, name, flags, 0)
		_ = unix.Close(fd)
		if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
			return nil, fmt.Errorf("directory of instructions %s: %s is a symbolic link or not a directory", dir, path)
		}
		if err != nil {
			return nil, fmt.Errorf("directory of instructions: %w", &fs.PathError{Op: "open", Path: path, Err: err})
		}
		fd = next
		if err := checkDir(fd, path == dir); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("directory of instructions %s: %s %w", dir, path, err)
		}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// checkDir checks a directory on the path of the instructions, or the last one of it.
func checkDir(fd int, last bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch {
	case !trustedOwner(st.Uid):
		return fmt.Errorf("belongs to user %d: must belong to root", st.Uid)
	case last && st.Mode&0o077 != 0:
		return fmt.Errorf("has mode %#o: must be 0700", st.Mode&0o7777)
	case st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0: // in a sticky directory others cannot rename the next one
		return fmt.Errorf("has mode %#o: others than its owner can write it", st.Mode&0o7777)
	}
	return nil
}

// trustedOwner reports whether what belongs to uid can be believed: root, which is also the user of this process but in tests.
func trustedOwner(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }
