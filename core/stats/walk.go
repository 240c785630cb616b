package stats

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// longestPath is how long a path gets before the walk keeps a descriptor of the
	// directory there and starts a new path: the kernel takes no path of 4096 bytes
	// or more in one call, but files can be deeper than that.
	longestPath = 3500
	// mostLevels and mostPath bound how deep a walk goes. What is deeper is not
	// counted, which is logged.
	mostLevels = 50_000
	mostPath   = 1 << 20
	// mostPending bounds the bytes of the names of directories that a walk keeps to
	// visit them later. Beyond it a directory is read up to its first subdirectory,
	// and again from there.
	mostPending = 256 << 10
	// pieceSize is how much of a directory is read at a time.
	pieceSize = 32 << 10
)

// A walk adds up what is below directories that containers write to, as du does: a
// file with many names once. It can be interrupted at any time and be continued, and
// its memory does not grow with the number of files.
//
// The files change while it looks at them, and a container may do that on purpose.
// So directories are opened from the descriptor of one above, beneath it, without
// following symbolic links and without leaving the mount.
type walk struct {
	roots  []string // still to be visited
	device uint64   // of the root that is being visited
	path   []byte   // of the directory that is being visited, from its root
	levels []level
	fds    []int // of the directories that paths begin in, the root first
	held   int   // bytes of all pending names

	bytes, inodes uint64
	// Of files with many names each name counts a part, so that nothing has to be
	// remembered of them. Their names are all in here: no link leads out of a mount.
	sharedBytes, sharedInodes float64

	absent error // why a root could not be visited at all
	missed error // the first that could not be counted
	buffer []byte
}

// A level is a directory on the way from the root to the one that is being visited.
type level struct {
	begin, end int // of its path in walk.path; begin is where its descriptor's ends
	fd         int // index in walk.fds
	inode      uint64
	offset     int64 // where to read on
	more       bool  // whether there is something to read
	pending    []string
}

func newWalk(roots ...string) *walk { return &walk{roots: roots} }

// total returns what has been counted up to now.
func (w *walk) total() (bytes, inodes uint64) {
	return w.bytes + uint64(math.Round(w.sharedBytes)), w.inodes + uint64(math.Round(w.sharedInodes))
}

// run goes on with the walk until the given time and reports whether it is complete.
func (w *walk) run(until time.Time) (done bool) {
	if w.buffer == nil {
		w.buffer = make([]byte, pieceSize)
	}
	// Each round gets on, however short the time is.
	for {
		switch {
		case len(w.levels) > 0:
			w.visit(until)
		case len(w.roots) > 0:
			root := w.roots[0]
			w.roots = w.roots[1:]
			w.enter(root)
		default:
			w.buffer = nil
			return true
		}
		if !time.Now().Before(until) {
			w.buffer = nil // it may take a while until there is more time
			return len(w.levels) == 0 && len(w.roots) == 0
		}
	}
}

// file counts a single file, which must be on no way that a container controls.
func (w *walk) file(path string) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		w.count(&st, false)
	}
}

// close gives up the walk.
func (w *walk) close() {
	for _, fd := range w.fds {
		unix.Close(fd)
	}
	w.roots, w.levels, w.fds, w.path, w.buffer = nil, nil, nil, nil, nil
}

// enter begins with a root.
func (w *walk) enter(root string) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	var st unix.Stat_t
	if err == nil {
		if err = unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		if w.absent == nil {
			w.absent = &fs.PathError{Op: "open", Path: root, Err: err}
		}
		return
	}
	w.device, w.path, w.held = st.Dev, w.path[:0], 0
	w.fds = append(w.fds[:0], fd)
	w.levels = append(w.levels[:0], level{inode: st.Ino, more: true})
	w.count(&st, true)
}

// visit does the next step in the deepest directory: it goes down into the next one
// below, or reads on, or leaves.
func (w *walk) visit(until time.Time) {
	l := &w.levels[len(w.levels)-1]
	if n := len(l.pending); n > 0 {
		name := l.pending[n-1]
		l.pending = l.pending[:n-1]
		w.held -= len(name)
		w.descend(name, until)
		return
	}
	l.pending = nil
	if !l.more {
		w.leave()
		return
	}
	fd, st, err := w.open(w.fds[l.fd], w.path[l.begin:l.end])
	if err == nil && st.Ino != l.inode {
		unix.Close(fd)
		err = fs.ErrNotExist // it was moved, and something else is there now
	}
	if err != nil {
		l.more = false
		if errors.Is(err, unix.ENOSYS) { // Linux before 5.6
			w.absent = fmt.Errorf("openat2: %w", err)
		}
		w.miss("open", err)
		return
	}
	defer unix.Close(fd)
	if l.offset != 0 {
		if _, err := unix.Seek(fd, l.offset, unix.SEEK_SET); err != nil {
			l.more = false
			w.miss("seek", err)
			return
		}
	}
	w.read(fd, l, until)
}

// descend counts the directory called name below the deepest one, and begins to read it.
func (w *walk) descend(name string, until time.Time) {
	above := &w.levels[len(w.levels)-1]
	next := level{begin: above.begin, fd: above.fd, more: true}
	w.path = append(w.path[:above.end], '/')
	if above.begin == above.end { // a path from a descriptor has no slash at its beginning
		next.begin++
	}
	w.path = append(w.path, name...)
	next.end = len(w.path)
	if len(w.levels) == mostLevels || next.end > mostPath {
		w.miss("open", unix.ELOOP)
		return
	}
	fd, st, err := w.open(w.fds[next.fd], w.path[next.begin:next.end])
	switch {
	case errors.Is(err, unix.EXDEV): // another file system, which is not the container's
		return
	case err != nil:
		w.miss("open", err)
		return
	}
	defer unix.Close(fd)
	if st.Dev != w.device {
		return
	}
	w.count(&st, true)
	next.inode = st.Ino
	if next.end-next.begin > longestPath {
		held, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			w.miss("dup", err)
			return
		}
		w.fds = append(w.fds, held)
		next.fd, next.begin = len(w.fds)-1, next.end
	}
	w.levels = append(w.levels, next)
	w.read(fd, &w.levels[len(w.levels)-1], until)
}

// leave goes up.
func (w *walk) leave() {
	last := len(w.levels) - 1
	l := w.levels[last]
	if last == 0 || w.levels[last-1].fd != l.fd {
		unix.Close(w.fds[l.fd])
		w.fds = w.fds[:l.fd]
	}
	w.levels = w.levels[:last]
	if last > 0 {
		w.path = w.path[:w.levels[last-1].end]
	}
}

// open opens the directory at path, which is beneath the directory at.
func (w *walk) open(at int, path []byte) (fd int, st unix.Stat_t, err error) {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	name := string(path)
	if name == "" {
		name = "."
	}
	for range 10 {
		fd, err = unix.Openat2(at, name, how)
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

// read reads on in the directory l, which is open as fd, until it has all of it, there
// are directories to go down into, or the time is over.
func (w *walk) read(fd int, l *level, until time.Time) {
	for {
		n, err := unix.Getdents(fd, w.buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			l.more = false
			if err != nil {
				w.miss("read", err)
			}
			return
		}
		for rest := w.buffer[:n]; len(rest) > 0; {
			// struct linux_dirent64: d_ino u64, d_off i64, d_reclen u16, d_type u8, d_name
			const header = 19
			if len(rest) < header {
				break
			}
			offset := int64(binary.NativeEndian.Uint64(rest[8:])) //nolint:gosec // an offset of the kernel's, which is signed
			size := int(binary.NativeEndian.Uint16(rest[16:]))
			kind := rest[18]
			if size < header || size > len(rest) {
				break
			}
			name := rest[header:size]
			if end := bytes.IndexByte(name, 0); end >= 0 {
				name = name[:end]
			}
			rest = rest[size:]
			if !w.entry(fd, l, string(name), kind) {
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

// entry counts the file called name in the directory l, or keeps it to go down into it
// later; it returns false if there is no room for that.
func (w *walk) entry(fd int, l *level, name string, kind uint8) bool {
	if name == "." || name == ".." {
		return true
	}
	if kind != unix.DT_DIR {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
			w.miss("stat", err)
			return true
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if st.Dev == w.device {
				w.count(&st, false)
			}
			return true
		}
	}
	if len(l.pending) > 0 && w.held+len(name) > mostPending {
		return false
	}
	l.pending = append(l.pending, name)
	w.held += len(name)
	return true
}

// count counts one file, by one of its names.
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

// miss takes note that something is left out, unless it was removed meanwhile.
func (w *walk) miss(what string, err error) {
	if w.missed == nil && !errors.Is(err, fs.ErrNotExist) {
		path := string(w.path)
		if len(path) > 200 {
			path = path[:200] + "..."
		}
		w.missed = &fs.PathError{Op: what, Path: path, Err: err}
	}
}
