package logs

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// A position is how far a log has been written. It goes with the files that
// it is about, not with their names, for both sides rename theirs.
type position struct {
	Source place `json:"source,omitzero"` // how far the Engine's file was read
	File   place `json:"file,omitzero"`   // how long the kubelet's file was then

	// Follow tells that the Engine's log stream is read, not its file. Then
	// there is no Source, but what was written last of each stream.
	Follow bool `json:"follow,omitempty"`
	Stdout mark `json:"stdout,omitzero"`
	Stderr mark `json:"stderr,omitzero"`
	// Last and Count are a mark without a stream, as berth 1.0 has noted it.
	Last  string `json:"last,omitempty"`
	Count int    `json:"count,omitempty"`

	// Dir is the log directory of the pod, as the CRI has named it when the
	// container was created; "" where an earlier berth has noted the rest.
	Dir string `json:"dir,omitempty"`
	// Open are the lines that the kubelet's file ends in the middle of.
	Open openLines `json:"open,omitzero"`

	// Complete tells that the container has ended and all of its log is written.
	Complete bool `json:"complete,omitempty"`
}

// A place is an offset in a file.
type place struct {
	Inode  uint64 `json:"inode,omitempty"`
	Head   string `json:"head,omitempty"` // of a source: how it begins, see head
	Offset int64  `json:"offset,omitempty"`
}

// inodeOf returns what identifies a file, as long as it is not removed.
func inodeOf(info fs.FileInfo) uint64 {
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

// A surplus is what the kubelet's file holds beyond the place in a position,
// written just before the daemon died and not noted any more.
type surplus struct {
	file    *os.File
	at, end int64
}

// findSurplus returns the surplus beyond at of the log at l, nil for nothing.
// The kubelet may have renamed the file since.
func findSurplus(l location, at place) (*surplus, error) {
	if at.Inode == 0 {
		return nil, nil
	}
	f, err := l.find(at.Inode)
	if err != nil || f == nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil || info.Size() <= at.Offset {
		return nil, errors.Join(err, f.Close())
	}
	return &surplus{f, at.Offset, info.Size()}, nil
}

// skip returns what of text is not there yet, and whether there may be more that
// is. None of what differs from what is there is left out.
func (s *surplus) skip(text []byte) (rest []byte, more bool, err error) {
	have := make([]byte, min(s.end-s.at, int64(len(text))))
	if _, err := s.file.ReadAt(have, s.at); err != nil && !errors.Is(err, io.EOF) {
		return text, true, err
	}
	if !bytes.Equal(have, text[:len(have)]) {
		return text, false, nil // somebody else has written there
	}
	s.at += int64(len(have))
	return text[len(have):], s.at < s.end, nil
}
