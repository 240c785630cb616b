// Package logfile reads the log files that Docker's log drivers json-file and local write for
// a container. It owns what berth knows of them besides their formats: how they are named,
// rotated and removed, which is the same for both drivers.
//
// A Reader reads the bytes of all files of a log in order and continues at the Position of an
// earlier Reader, although Docker renames and removes files meanwhile. The formats are those of
// core/logs/jsonfile and core/logs/localfile. Docker does not document the files: see rotate in
// moby's daemon/logger/loggerutils/logfile.go. Compressed files are not read; berth configures none.
package logfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

// ErrGap is returned when Docker has removed output that was not read.
var ErrGap = errors.New("docker has removed output before it could be copied")

// A Position is how far a log was read. It refers to the file itself, not to its name, for
// Docker renames files when it rotates them.
type Position struct {
	Inode       uint64 `json:"inode,omitempty"`
	Fingerprint string `json:"head,omitempty"` // see fingerprint
	Offset      int64  `json:"offset,omitempty"`
}

// A Reader reads the files of one log. It is not safe for concurrent use.
type Reader struct {
	path     string
	hasEntry func(b []byte) bool
	file     *os.File // nil if not open
	pos      Position
	end      int64 // offset up to which file was read; beyond pos if the last entry is not complete
}

// NewReader returns a Reader of the log with its current file at path. It starts at pos;
// the zero Position is the oldest entry that Docker has kept. hasEntry reports whether b begins
// with bytes that the caller can use, for instance a complete entry.
func NewReader(path string, pos Position, hasEntry func(b []byte) bool) *Reader {
	return &Reader{path: path, pos: pos, hasEntry: hasEntry}
}

// IsOpen reports whether Open has opened a file, and Close has not been called since.
func (r *Reader) IsOpen() bool { return r.file != nil }

// Open opens the file in which the position is, unless it is open. The error is
// fs.ErrNotExist if there is no file, for instance because the container has not printed
// anything yet. With ErrGap the reader is open and has moved to the oldest entry that
// Docker has kept.
func (r *Reader) Open() error {
	if r.file != nil {
		return nil
	}
	f, err := openAt(r.path, r.pos)
	gap := errors.Is(err, ErrGap)
	if err != nil && !gap {
		return err
	}
	if gap {
		r.pos = Position{}
	}
	if enterErr := r.enter(f); enterErr != nil {
		return errors.Join(err, enterErr)
	}
	return err
}

// enter continues with the file f, at its beginning unless the position is in it.
func (r *Reader) enter(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if r.pos.Inode != inodeOf(info) {
		r.pos = Position{Inode: inodeOf(info)}
	}
	r.end = r.pos.Offset
	previous := r.file
	r.file = f
	return closeFile(&previous)
}

// Close closes the file. Open opens it again at the same position.
func (r *Reader) Close() error { return closeFile(&r.file) }

// Read fills buf with the bytes after the position and returns how many there are; 0 at the
// end of the file. It does not move the position.
func (r *Reader) Read(buf []byte) (int, error) {
	n, err := r.file.ReadAt(buf, r.pos.Offset)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	r.end = r.pos.Offset + int64(n)
	return n, err
}

// Advance moves the position by n bytes that Read has returned.
func (r *Reader) Advance(n int) { r.pos.Offset += int64(n) }

// Position returns the position, as NewReader takes it.
func (r *Reader) Position() (Position, error) {
	if r.file == nil {
		return r.pos, nil
	}
	var err error
	r.pos.Fingerprint, err = fingerprint(r.file, r.pos.Offset)
	return r.pos, err
}

// Offset returns the offset of the position in its file.
func (r *Reader) Offset() int64 { return r.pos.Offset }

// Changed reports whether the log has changed since Read has reached the end of its current file.
func (r *Reader) Changed() (bool, error) {
	info, err := os.Stat(r.path)
	if err != nil {
		return false, err
	}
	return inodeOf(info) != r.pos.Inode || info.Size() != r.end, nil
}

// A Continuation is what follows the end of a file.
type Continuation int

// The values of Continuation.
const (
	NothingYet Continuation = iota // the container has not printed more
	SameFile                       // the file has more entries now
	NextFile                       // the reader has moved to the next file
)

// Continue is called when Read returns no further complete entry. It checks whether Docker
// has rotated the file, or it was truncated, and moves the position if so. With ErrGap the
// reader has moved to the oldest file that Docker has kept.
func (r *Reader) Continue() (Continuation, error) {
	info, err := r.file.Stat()
	if err != nil {
		return NothingYet, err
	}
	if info.Size() < r.pos.Offset {
		r.pos, r.end = Position{Inode: inodeOf(info)}, 0
		if info.Size() > 0 {
			return SameFile, nil
		}
		return NothingYet, nil
	}
	newer, err := openNewer(r.path, r.file)
	gap := errors.Is(err, ErrGap)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return NothingYet, nil // Docker is rotating it, or has removed it
	case err != nil && !gap, newer == nil:
		return NothingYet, err
	}
	// Docker writes no more to a file that it has renamed, but may have done so between
	// the last Read and the rename.
	more, err := r.hasMore()
	if err != nil || more {
		err = errors.Join(err, newer.Close())
		if err != nil {
			return NothingYet, err
		}
		return SameFile, nil
	}
	if err := r.enter(newer); err != nil {
		return NothingYet, err
	}
	if gap {
		return NextFile, ErrGap
	}
	return NextFile, nil
}

// hasMore reports whether an entry follows the position in the open file.
func (r *Reader) hasMore() (bool, error) {
	info, err := r.file.Stat()
	if err != nil || info.Size() <= r.pos.Offset {
		return false, nil
	}
	rest := make([]byte, info.Size()-r.pos.Offset)
	n, err := r.Read(rest)
	return r.hasEntry(rest[:n]), err
}
