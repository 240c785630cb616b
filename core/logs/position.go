package logs

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A position is how far a log has been written. It goes with the files that
// it is about, not with their names, for both sides rename theirs.
type position struct {
	Source place `json:"source,omitzero"` // how far the Engine's file was read
	File   place `json:"file,omitzero"`   // how long the kubelet's file was then

	// Follow tells that the Engine's log stream is read, not its file. Then
	// there is no Source, but the time of the last line and how many lines of
	// that time have been written.
	Follow bool   `json:"follow,omitempty"`
	Last   string `json:"last,omitempty"`
	Count  int    `json:"count,omitempty"`

	// Complete tells that the container has ended and all of its log is written.
	Complete bool `json:"complete,omitempty"`
}

// A place is an offset in a file.
type place struct {
	Inode  uint64 `json:"inode,omitempty"`
	Head   string `json:"head,omitempty"` // of a source: how it begins, see head
	Offset int64  `json:"offset,omitempty"`
}

// inode returns what identifies the file of f, as long as it is not removed.
func inode(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// headSize is how much of a file tells it from another one. Every line of a
// source has its time in it.
const headSize = 1024

// head tells files apart that have had the same inode one after the other:
// how many bytes of the file there were to look at, at most headSize, and
// their hash.
func head(f *os.File, size int64) (string, error) {
	buf := make([]byte, min(size, headSize))
	if _, err := f.ReadAt(buf, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	h := fnv.New64a()
	_, _ = h.Write(buf) // cannot fail
	return fmt.Sprintf("%d-%x", len(buf), h.Sum64()), nil
}

// begins reports whether f begins as head has said.
func begins(f *os.File, said string) bool {
	var size int64
	var hash uint64
	if _, err := fmt.Sscanf(said, "%d-%x", &size, &hash); err != nil || size < 0 || size > headSize {
		return false
	}
	now, err := head(f, size)
	return err == nil && now == said
}

// openLog opens a log file for writing, and makes it if need be, as containerd does.
func openLog(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
}

// surplus returns what the kubelet's file holds beyond at, written just before the daemon died and
// not noted any more; nil if there is none. The kubelet may have renamed the
// file since: path is what it was called.
func surplus(path string, at place) ([]byte, error) {
	if at.Inode == 0 {
		return nil, nil
	}
	candidates := []string{path}
	dir, base := filepath.Split(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), base+".") {
			candidates = append(candidates, filepath.Join(dir, e.Name()))
		}
	}
	for _, name := range candidates {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		rest, found, err := beyond(f, at)
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if found || err != nil {
			return rest, err
		}
	}
	return nil, nil
}

// beyond returns what f holds beyond at, and whether f is the file of at.
func beyond(f *os.File, at place) (rest []byte, found bool, err error) {
	info, err := f.Stat()
	if err != nil || inode(info) != at.Inode || info.Size() < at.Offset {
		return nil, false, err
	}
	rest, err = io.ReadAll(io.NewSectionReader(f, at.Offset, info.Size()-at.Offset))
	return rest, true, err
}
