package rootdiff

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxDepth bounds how deep the directories of a writable layer may be nested: each level holds a descriptor.
	maxDepth = 1000
	// maxXattr bounds the value of an extended attribute; the kernel has the same limit (XATTR_SIZE_MAX).
	maxXattr = 64 << 10

	xattrOpaque, xattrRedirect, xattrMetacopy = "trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy"
)

// Layers are the directories of an overlay. Closing them is the subject of their owner.
type Layers struct {
	Upper *os.File
	// Lowers returns those of the image, the topmost first. It is called only if a directory of the image was replaced.
	Lowers func() ([]*os.File, error)
	// Skip are the mount points of the container, clean and absolute.
	Skip map[string]bool
}

// Write writes what a container has changed in its root file system to an archive, and returns the paths that it has deleted, sorted.
func Write(ctx context.Context, w io.Writer, layers Layers) (deleted []string, err error) {
	d := &diff{ctx: ctx, tar: tar.NewWriter(w), skip: layers.Skip, links: map[inode]string{}, lowers: layers.Lowers}
	if err := errors.Join(d.add(layers.Upper, "/", 0, false), d.tar.Close()); err != nil {
		return nil, err
	}
	slices.Sort(d.deleted)
	return d.deleted, nil
}

// A diff writes what a container has changed in its root file system: the files of the writable layer to a tar archive, and the paths
// that are not there any more to deleted. Both are as CRI-O writes them: no whiteouts in the archive, no sockets, and nothing that is
// a mount point of the container.
type diff struct {
	ctx     context.Context
	tar     *tar.Writer
	skip    map[string]bool // mount points in the container
	lowers  func() ([]*os.File, error)
	links   map[inode]string // first name of files with several links
	deleted []string
}

type inode struct{ dev, ino uint64 }

// add adds what is in the directory dir of the writable layer, with the path name in the container. The file system of the container
// is frozen, but for what processes of the node write: an entry that disappears is left out. opaque is set if the image has nothing
// at name that the container can see.
func (d *diff) add(dir *os.File, name string, depth int, opaque bool) error {
	if depth > maxDepth {
		return fmt.Errorf("%.100s...: directories are nested deeper than %d", name, maxDepth)
	}
	if err := d.ctx.Err(); err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	slices.Sort(names)
	present := map[string]bool{}
	for _, entry := range names {
		present[entry] = true
		err := d.addEntry(int(dir.Fd()), entry, path.Join(name, entry), depth, opaque)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if opaque && depth > 0 {
		return d.addHidden(name, present)
	}
	return nil
}

// addEntry adds the file entry of the directory with the descriptor dirfd.
func (d *diff) addEntry(dirfd int, entry, name string, depth int, opaque bool) error {
	if d.skip[name] {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, entry, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("stat", name, err)
	}
	header := &tar.Header{
		Format: tar.FormatPAX, Name: strings.TrimPrefix(name, "/"), Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK: // nothing to restore; archives have no type for it
		return nil
	case unix.S_IFCHR, unix.S_IFBLK:
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			d.deleted = append(d.deleted, name)
			return nil
		}
		header.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			header.Typeflag = tar.TypeBlock
		}
		header.Devmajor, header.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		header.Typeflag = tar.TypeFifo
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dirfd, entry, target)
		if err != nil {
			return pathError("readlink", name, err)
		}
		header.Typeflag, header.Linkname = tar.TypeSymlink, string(target[:n])
	case unix.S_IFDIR:
		return d.addDir(dirfd, entry, name, header, depth, opaque)
	default:
		return d.addFile(dirfd, entry, name, header, &st)
	}
	d.isLink(header, &st)
	return d.tar.WriteHeader(header)
}

// isLink reports whether the archive has the file already, and makes header a hard link to it then.
func (d *diff) isLink(header *tar.Header, st *unix.Stat_t) bool {
	if st.Nlink < 2 {
		return false
	}
	key := inode{st.Dev, st.Ino}
	first, ok := d.links[key]
	if !ok {
		d.links[key] = header.Name
		return false
	}
	header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
	return true
}

func (d *diff) addFile(dirfd int, entry, name string, header *tar.Header, st *unix.Stat_t) error {
	if d.isLink(header, st) {
		return d.tar.WriteHeader(header)
	}
	fd, err := unix.Openat(dirfd, entry, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var opened unix.Stat_t
	if err := unix.Fstat(fd, &opened); err != nil {
		return pathError("stat", name, err)
	}
	if opened.Dev != st.Dev || opened.Ino != st.Ino || opened.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%s was replaced while it was read", name)
	}
	if err := addXattrs(header, f, name); err != nil {
		return err
	}
	header.Typeflag, header.Size = tar.TypeReg, opened.Size
	if err := d.tar.WriteHeader(header); err != nil {
		return err
	}
	if n, err := io.Copy(d.tar, WithContext(d.ctx, io.LimitReader(f, opened.Size))); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	} else if n < opened.Size {
		return fmt.Errorf("%s: %d of %d bytes could be read: %w", name, n, opened.Size, io.ErrUnexpectedEOF)
	}
	return nil
}

func (d *diff) addDir(dirfd int, entry, name string, header *tar.Header, depth int, opaque bool) error {
	fd, err := unix.Openat(dirfd, entry, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", name, err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	value, err := getXattr(dir, xattrOpaque)
	if err != nil {
		return pathError("getxattr", name, err)
	}
	opaque = opaque || value == "y"
	if err := addXattrs(header, dir, name); err != nil {
		return err
	}
	header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
	if err := d.tar.WriteHeader(header); err != nil {
		return err
	}
	return d.add(dir, name, depth+1, opaque)
}

// addHidden adds to deleted what the image has in the directory name and the container cannot see any more, because it has replaced
// the directory. present is what is in the new one.
func (d *diff) addHidden(name string, present map[string]bool) error {
	lowers, err := d.lowers()
	if err != nil {
		return fmt.Errorf("%s was replaced by the container, and the layers of the image are not known: %w", name, err)
	}
	hidden := map[string]bool{}
	for _, layer := range lowers {
		dir, err := openBeneath(layer, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			break // a file in this layer hides the directories in those below
		}
		if err != nil {
			return pathError("open", name, err)
		}
		names, err := dir.Readdirnames(-1)
		value, xattrErr := getXattr(dir, xattrOpaque)
		dir.Close()
		if err := errors.Join(err, xattrErr); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		for _, entry := range names {
			if !present[entry] {
				hidden[path.Join(name, entry)] = true // also whiteouts: deleting what is not there does no harm
			}
		}
		if value == "y" {
			break
		}
	}
	for entry := range hidden {
		if !d.skip[entry] {
			d.deleted = append(d.deleted, entry)
		}
	}
	return nil
}

// openBeneath opens the directory name, an absolute path, beneath the directory layer.
func openBeneath(layer *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat2(int(layer.Fd()), strings.TrimPrefix(name, "/"), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// addXattrs adds the extended attributes that belong to the file and not to the node: capabilities and those of users.
func addXattrs(header *tar.Header, f *os.File, name string) error {
	list := make([]byte, maxXattr)
	n, err := unix.Flistxattr(int(f.Fd()), list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return pathError("listxattr", name, err)
	}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		switch {
		case key == xattrRedirect, key == xattrMetacopy:
			return fmt.Errorf("%s is not complete in the writable layer (%s): mount overlays with redirect_dir=off and metacopy=off", name, key)
		case key != xattrCapability && !strings.HasPrefix(key, xattrUserPrefix):
			continue
		}
		value, err := getXattr(f, key)
		if err != nil {
			return pathError("getxattr", name, err)
		}
		if header.PAXRecords == nil {
			header.PAXRecords = map[string]string{}
		}
		header.PAXRecords[xattrPrefix+key] = value
	}
	return nil
}

// getXattr returns an extended attribute, "" if f does not have it.
func getXattr(f *os.File, key string) (string, error) {
	value := make([]byte, maxXattr)
	n, err := unix.Fgetxattr(int(f.Fd()), key, value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return string(value[:n]), nil
}

func pathError(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// WithContext returns a Reader that reads from r until ctx ends, and fails with its error then.
func WithContext(ctx context.Context, r io.Reader) io.Reader { return &contextReader{ctx, r} }

type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
