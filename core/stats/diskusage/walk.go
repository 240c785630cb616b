package diskusage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxCallPath is the length of a path beyond which a walk keeps a descriptor of the
	// directory there and begins a new path: the kernel takes no path of PATH_MAX (4096)
	// bytes in one call, but directories can be nested deeper than that.
	maxCallPath = 3500
	// maxLevels and maxPath bound the depth of a walk. Deeper files are not counted, which
	// is logged.
	maxLevels = 50_000
	maxPath   = 1 << 20
	// maxPendingBytes bounds the names of directories that a walk keeps to visit them
	// later. Beyond it a directory is read up to its first subdirectory, and again from
	// there.
	maxPendingBytes = 256 << 10
	// readSize is how much of a directory is read at a time.
	readSize = 32 << 10
)

// A walk adds up the files below directories that a container writes to, as du does: a
// file with several links counts once. It can be interrupted at any time and resumed, and
// its memory does not grow with the number of files.
//
// The files change during the walk, and a container may change them on purpose. So
// directories are opened with openat2 relative to the descriptor of a directory above,
// beneath it, without following symbolic links and without leaving the mount.
type walk struct {
	roots   []string // not visited yet
	device  uint64   // of the current root
	path    []byte   // of the current directory, relative to the root
	levels  []level
	baseFDs []int // directories that paths are relative to, the root first
	pending int   // bytes of all pending names

	bytes, inodes uint64
	// Each link of a file with several links counts a fraction of it, so that no inode
	// numbers have to be kept. All links are found: none can lead out of a mount.
	sharedBytes, sharedInodes float64

	rootErr  error // why a root could not be visited at all
	firstErr error // the first reason why something was not counted
	buffer   []byte
}

// A level is a directory on the way from the root to the current directory.
type level struct {
	begin, end int // of its path in walk.path, relative to its base
	base       int // index in walk.baseFDs
	inode      uint64
	offset     int64 // where to continue reading
	more       bool  // whether there is more to read
	pending    []string
}

// buffers are for what run reads, as *[readSize]byte: most walks are short, and there is one per container and minute.
var buffers = sync.Pool{New: func() any { return new([readSize]byte) }}

func newWalk(roots ...string) *walk { return &walk{roots: roots} }

// total returns what has been counted so far.
func (w *walk) total() (bytes, inodes uint64) {
	return w.bytes + uint64(math.Round(w.sharedBytes)), w.inodes + uint64(math.Round(w.sharedInodes))
}

// run continues the walk until the given time and reports whether it is complete.
func (w *walk) run(until time.Time) (done bool) {
	buffer := buffers.Get().(*[readSize]byte)
	w.buffer = buffer[:]
	defer func() {
		w.buffer = nil
		buffers.Put(buffer)
	}()
	// Each pass makes progress, however short the time is.
	for {
		switch {
		case len(w.levels) > 0:
			w.step(until)
		case len(w.roots) > 0:
			root := w.roots[0]
			w.roots = w.roots[1:]
			w.enterRoot(root)
		default:
			return true
		}
		if !time.Now().Before(until) {
			return len(w.levels) == 0 && len(w.roots) == 0
		}
	}
}

// countFile counts a single file. No directory of its path may be under the control of a
// container.
func (w *walk) countFile(path string) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		w.count(&st, false)
	}
}

// close ends the walk and releases its descriptors.
func (w *walk) close() {
	for _, fd := range w.baseFDs {
		unix.Close(fd)
	}
	w.roots, w.levels, w.baseFDs, w.path = nil, nil, nil, nil
}

// enterRoot begins with a root.
func (w *walk) enterRoot(root string) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	var st unix.Stat_t
	if err == nil {
		if err = unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		if w.rootErr == nil {
			w.rootErr = &fs.PathError{Op: "open", Path: root, Err: err}
		}
		return
	}
	w.device, w.path, w.pending = st.Dev, w.path[:0], 0
	w.baseFDs = append(w.baseFDs[:0], fd)
	w.levels = append(w.levels[:0], level{inode: st.Ino, more: true})
	w.count(&st, true)
}

// step does the next step in the current directory: it descends into the next
// subdirectory, continues reading, or ascends.
func (w *walk) step(until time.Time) {
	l := &w.levels[len(w.levels)-1]
	if n := len(l.pending); n > 0 {
		name := l.pending[n-1]
		l.pending = l.pending[:n-1]
		w.pending -= len(name)
		w.descend(name, until)
		return
	}
	l.pending = nil
	if !l.more {
		w.ascend()
		return
	}
	fd, st, err := w.openBeneath(w.baseFDs[l.base], w.path[l.begin:l.end])
	if err == nil && st.Ino != l.inode {
		unix.Close(fd)
		err = fs.ErrNotExist // moved; another directory has its name now
	}
	if err != nil {
		l.more = false
		if errors.Is(err, unix.ENOSYS) { // Linux before 5.6
			w.rootErr = fmt.Errorf("openat2: %w", err)
		}
		w.recordErr("open", err)
		return
	}
	defer unix.Close(fd)
	if l.offset != 0 {
		if _, err := unix.Seek(fd, l.offset, unix.SEEK_SET); err != nil {
			l.more = false
			w.recordErr("seek", err)
			return
		}
	}
	w.readDir(fd, l, until)
}

// descend counts the subdirectory name of the current directory and begins to read it.
func (w *walk) descend(name string, until time.Time) {
	above := &w.levels[len(w.levels)-1]
	next := level{begin: above.begin, base: above.base, more: true}
	w.path = append(w.path[:above.end], '/')
	if above.begin == above.end { // a path relative to a descriptor has no leading slash
		next.begin++
	}
	w.path = append(w.path, name...)
	next.end = len(w.path)
	if len(w.levels) == maxLevels || next.end > maxPath {
		w.recordErr("open", unix.ELOOP)
		return
	}
	fd, st, err := w.openBeneath(w.baseFDs[next.base], w.path[next.begin:next.end])
	switch {
	case errors.Is(err, unix.EXDEV): // another file system, not the container's
		return
	case err != nil:
		w.recordErr("open", err)
		return
	}
	defer unix.Close(fd)
	if st.Dev != w.device {
		return
	}
	w.count(&st, true)
	next.inode = st.Ino
	if next.end-next.begin > maxCallPath {
		base, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			w.recordErr("dup", err)
			return
		}
		w.baseFDs = append(w.baseFDs, base)
		next.base, next.begin = len(w.baseFDs)-1, next.end
	}
	w.levels = append(w.levels, next)
	w.readDir(fd, &w.levels[len(w.levels)-1], until)
}

// ascend returns to the parent directory.
func (w *walk) ascend() {
	last := len(w.levels) - 1
	l := w.levels[last]
	if last == 0 || w.levels[last-1].base != l.base {
		unix.Close(w.baseFDs[l.base])
		w.baseFDs = w.baseFDs[:l.base]
	}
	w.levels = w.levels[:last]
	if last > 0 {
		w.path = w.path[:w.levels[last-1].end]
	}
}

// openBeneath opens the directory path beneath the directory dirfd.
func (w *walk) openBeneath(dirfd int, path []byte) (fd int, st unix.Stat_t, err error) {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	name := string(path)
	if name == "" {
		name = "."
	}
	for range 10 {
		fd, err = unix.Openat2(dirfd, name, how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	if err != nil {
		return -1, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// readDir continues to read the directory l, which is open as fd, until its end, until
// there are subdirectories to descend into, or until the given time.
func (w *walk) readDir(fd int, l *level, until time.Time) {
	for {
		n, err := unix.Getdents(fd, w.buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			l.more = false
			if err != nil {
				w.recordErr("read", err)
			}
			return
		}
		for entries := w.buffer[:n]; len(entries) > 0; {
			// struct linux_dirent64: d_ino u64, d_off i64, d_reclen u16, d_type u8, d_name
			const header = 19
			if len(entries) < header {
				break
			}
			offset := int64(binary.NativeEndian.Uint64(entries[8:])) //nolint:gosec // the kernel's offset is signed
			size := int(binary.NativeEndian.Uint16(entries[16:]))
			kind := entries[18]
			if size < header || size > len(entries) {
				break
			}
			name := entries[header:size]
			if end := bytes.IndexByte(name, 0); end >= 0 {
				name = name[:end]
			}
			entries = entries[size:]
			if !w.addEntry(fd, l, string(name), kind) {
				return
			}
			l.offset = offset
			if !time.Now().Before(until) {
				return
			}
		}
		if len(l.pending) > 0 {
			return
		}
	}
}

// addEntry counts the file name in the directory l. A subdirectory is added to the pending
// ones; false means that there are too many of them.
func (w *walk) addEntry(fd int, l *level, name string, kind uint8) bool {
	if name == "." || name == ".." {
		return true
	}
	if kind != unix.DT_DIR {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
			w.recordErr("stat", err)
			return true
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if st.Dev == w.device {
				w.count(&st, false)
			}
			return true
		}
	}
	if len(l.pending) > 0 && w.pending+len(name) > maxPendingBytes {
		return false
	}
	l.pending = append(l.pending, name)
	w.pending += len(name)
	return true
}

// count counts one link of a file.
func (w *walk) count(st *unix.Stat_t, isDir bool) {
	size := uint64(max(st.Blocks, 0)) * 512
	if st.Nlink > 1 && !isDir {
		w.sharedBytes += float64(size) / float64(st.Nlink)
		w.sharedInodes += 1 / float64(st.Nlink)
		return
	}
	w.bytes += size
	w.inodes++
}

// recordErr keeps the first reason why something is not counted. Files that were removed
// during the walk are no reason.
func (w *walk) recordErr(op string, err error) {
	if w.firstErr == nil && !errors.Is(err, fs.ErrNotExist) {
		path := string(w.path)
		if len(path) > 200 {
			path = path[:200] + "..."
		}
		w.firstErr = &fs.PathError{Op: op, Path: path, Err: err}
	}
}
