package crifile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A Position is how much of a log was written at the last checkpoint of its writer. It
// refers to the file itself, not to its name, for the kubelet renames the file to rotate it.
type Position struct {
	Inode  uint64 `json:"inode,omitempty"` // 0: nothing was ever written
	Offset int64  `json:"offset,omitempty"`
}

// A Writer appends records to a log. A write that fails, such as on a full disk, is
// completed by Flush. It is not safe for concurrent use.
type Writer struct {
	path    Path
	file    *os.File // nil if not open
	rotated uint64   // the inode of the file that was open before the last Reopen, 0 if none was
	pos     Position
	tail    *unackedTail // nil if the log ends at pos
	pending []byte       // not written yet, because a write has failed
	unacked int64        // bytes written since the last checkpoint
}

// NewWriter returns a writer of the log at path that an earlier writer has written up to pos.
func NewWriter(path Path, pos Position) *Writer { return &Writer{path: path, pos: pos} }

// IsOpen reports whether the file is open.
func (w *Writer) IsOpen() bool { return w.file != nil }

// IsUnused reports whether this writer and its predecessors have never opened the file.
func (w *Writer) IsUnused() bool { return w.pos.Inode == 0 }

// Unacked returns how many bytes were written since the last checkpoint.
func (w *Writer) Unacked() int64 { return w.unacked }

// Open opens the file if it is not open. Before that it looks for records that an earlier
// writer has written after its last checkpoint: Write skips them.
func (w *Writer) Open() error {
	if w.file != nil {
		return nil
	}
	w.DiscardTail()
	tail, err := findTail(w.path, w.pos)
	if err != nil {
		return err
	}
	w.tail = tail
	return w.Reopen()
}

// Reopen opens the file at the path, and creates it if the kubelet has renamed the open one.
func (w *Writer) Reopen() error {
	if w.file != nil {
		if err := errors.Join(w.restore(w.path.findAny), w.Flush()); err != nil {
			return err
		}
	}
	f, err := w.path.open()
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	previous := w.file
	w.file = f
	if previous == nil {
		w.pos.Inode = inodeOf(info)
		return nil
	}
	if inode := inodeOf(info); inode != w.pos.Inode {
		w.rotated, w.pos.Inode = w.pos.Inode, inode
	}
	return previous.Close()
}

// restore continues the file before the last rotation if the kubelet has put it back: it does so if its call of
// ReopenContainerLog fails (rotateLatestLog in pkg/kubelet/logs), which its deadline can cause although the log was
// reopened, and thereby removes the file that is open. What that contains is appended to the other, which find opens for reading.
func (w *Writer) restore(find func(inode uint64) (*os.File, error)) error {
	if w.rotated == 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(w.file.Fd()), &st); err != nil || st.Nlink > 0 {
		return err
	}
	found, err := find(w.rotated)
	if errors.Is(err, fs.ErrNotExist) || errdefs.IsFailedPrecondition(err) || err == nil && found == nil {
		return nil // the log was removed, perhaps with its directory, or replaced
	}
	if err != nil {
		return err
	}
	defer found.Close()
	// Both through their descriptors: one has no name any more, and that of the other may change again.
	lost, err := reopen(w.file, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer lost.Close()
	f, err := reopen(found, os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return err
	}
	var before unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &before); err != nil || checkRegular(before) != nil {
		return errors.Join(err, f.Close()) // a hard link is not followed: its file may be another's
	}
	if _, err := io.Copy(f, lost); err != nil { // on a full disk; it is tried again
		return errors.Join(err, f.Truncate(before.Size), f.Close())
	}
	w.pos.Inode, w.rotated = w.rotated, 0
	previous := w.file
	w.file = f
	return previous.Close()
}

// reopen opens the file of f in another mode.
func reopen(f *os.File, flags int) (*os.File, error) {
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags, 0)
}

// Write appends records, except those that an earlier writer has written already. After an
// error the rest is pending.
func (w *Writer) Write(records []byte) error {
	if err := w.restore(w.path.findCurrent); err != nil {
		w.pending = append(w.pending, records...)
		return err
	}
	if w.tail != nil {
		rest, more, err := w.tail.skip(records)
		if err != nil {
			w.pending = append(w.pending, records...)
			return err
		}
		if records = rest; !more {
			w.DiscardTail()
		}
	}
	n, err := w.file.Write(records)
	w.unacked += int64(n)
	if err != nil {
		w.pending = append(w.pending, records[n:]...)
	}
	return err
}

// Flush writes what is pending.
func (w *Writer) Flush() error {
	if len(w.pending) == 0 {
		return nil
	}
	n, err := w.file.Write(w.pending)
	w.unacked += int64(n)
	if w.pending = w.pending[n:]; len(w.pending) == 0 {
		w.pending = nil
	}
	return err
}

// DiscardTail stops skipping the records that an earlier writer has written.
func (w *Writer) DiscardTail() {
	if w.tail != nil {
		_ = w.tail.file.Close() // it was only read
		w.tail = nil
	}
}

// CanCheckpoint reports whether the file is open and contains exactly what was passed to
// Write.
func (w *Writer) CanCheckpoint() bool {
	return w.file != nil && len(w.pending) == 0 && w.tail == nil
}

// Checkpoint returns the position at the end of the file, from which the next writer
// continues.
func (w *Writer) Checkpoint() (Position, error) {
	info, err := w.file.Stat()
	if err != nil {
		return w.pos, err
	}
	w.pos.Offset = info.Size()
	return w.pos, nil
}

// ResetUnacked makes Unacked count from 0.
func (w *Writer) ResetUnacked() { w.unacked = 0 }

// Close closes the file. Open opens it again.
func (w *Writer) Close() error {
	w.DiscardTail()
	if w.file == nil {
		return nil
	}
	err := w.restore(w.path.findCurrent) // which may replace the file
	err = errors.Join(err, w.file.Close())
	w.file, w.rotated = nil, 0
	return err
}

// An unackedTail is what a log contains after the position of its last checkpoint: written
// just before berthd was killed.
type unackedTail struct {
	file       *os.File
	start, end int64
}

// findTail returns the unacknowledged tail of the log at path, nil if it has none. The
// kubelet may have renamed the file since.
func findTail(path Path, pos Position) (*unackedTail, error) {
	if pos.Inode == 0 {
		return nil, nil
	}
	f, err := path.findAny(pos.Inode)
	if err != nil || f == nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil || info.Size() <= pos.Offset {
		return nil, errors.Join(err, f.Close())
	}
	return &unackedTail{f, pos.Offset, info.Size()}, nil
}

// skip returns the part of records that the tail does not contain, and whether the tail may
// contain more of what follows. Records that differ from the tail are never skipped.
func (t *unackedTail) skip(records []byte) (rest []byte, more bool, err error) {
	have := make([]byte, min(t.end-t.start, int64(len(records))))
	if _, err := t.file.ReadAt(have, t.start); err != nil && !errors.Is(err, io.EOF) {
		return records, true, err
	}
	if !bytes.Equal(have, records[:len(have)]) {
		return records, false, nil // another program has written to the file
	}
	t.start += int64(len(have))
	return records[len(have):], t.start < t.end, nil
}
