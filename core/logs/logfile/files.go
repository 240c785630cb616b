package logfile

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"
)

// maxFiles bounds the files of one container that are searched: the current one and the
// rotated ones, of which the newest ends in .1. The log-opts of daemon.json may allow more
// files (max-file) than berth configures.
const maxFiles = 20

// fileName returns the name of the n-th newest file of a log; 0 is the current one.
func fileName(path string, n int) string {
	if n == 0 {
		return path
	}
	return path + "." + strconv.Itoa(n)
}

// openAt opens the file that pos is in, or the oldest file for the zero Position. If the
// file of pos was removed, it opens the oldest file too and returns it with ErrGap. If there
// is no file the error is fs.ErrNotExist.
func openAt(path string, pos Position) (*os.File, error) {
	var oldest *os.File
	for n := range maxFiles {
		f, err := os.Open(fileName(path, n))
		if errors.Is(err, fs.ErrNotExist) {
			if n == 0 {
				continue // Docker may be rotating it
			}
			break
		}
		if err != nil {
			return nil, errors.Join(err, closeFile(&oldest))
		}
		if err := closeFile(&oldest); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		oldest = f
		info, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if inodeOf(info) == pos.Inode && info.Size() >= pos.Offset && matches(f, pos.Fingerprint) {
			return f, nil
		}
	}
	switch {
	case oldest == nil:
		return nil, fs.ErrNotExist
	case pos.Inode != 0:
		return oldest, ErrGap
	default:
		return oldest, nil
	}
}

// openNewer opens the file that Docker began after current, which is open; nil if there is
// none yet. The errors are those of openAt.
func openNewer(path string, current *os.File) (*os.File, error) {
	own, err := current.Stat()
	if err != nil {
		return nil, err
	}
	for range 10 { // Docker may rotate the files meanwhile
		n, err := indexOf(path, own)
		switch {
		case err != nil:
			return nil, err
		case n == 0:
			return nil, nil
		case n < 0:
			f, err := openAt(path, Position{})
			if err == nil {
				err = ErrGap
			}
			return f, err
		}
		f, err := os.Open(fileName(path, n-1))
		if err != nil {
			return nil, err
		}
		if now, err := indexOf(path, own); err == nil && now == n {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s is rotated faster than it can be read", path)
}

// indexOf returns how many files of a log are newer than file, or -1 if file was removed.
func indexOf(path string, file fs.FileInfo) (int, error) {
	for n := range maxFiles {
		info, err := os.Stat(fileName(path, n))
		switch {
		case errors.Is(err, fs.ErrNotExist) && n > 0:
			return -1, nil
		case err != nil:
			return 0, err
		case os.SameFile(info, file):
			return n, nil
		}
	}
	return -1, nil
}

// closeFile closes *f, if it is open, and sets it to nil.
func closeFile(f **os.File) error {
	if *f == nil {
		return nil
	}
	err := (*f).Close()
	*f = nil
	return err
}

// inodeOf returns what identifies a file until it is removed.
func inodeOf(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// fingerprintSize is how much of a file distinguishes it from any other one: every entry
// contains its time.
const fingerprintSize = 1024

// fingerprint distinguishes files that had the same inode one after the other. It consists
// of a number and a hash: of as many of the first bytes of the file, at most size and at
// most fingerprintSize.
func fingerprint(f *os.File, size int64) (string, error) {
	buf := make([]byte, min(size, fingerprintSize))
	if _, err := f.ReadAt(buf, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	h := fnv.New64a()
	_, _ = h.Write(buf) // never fails
	return fmt.Sprintf("%d-%x", len(buf), h.Sum64()), nil
}

// matches reports whether want is a fingerprint of f.
func matches(f *os.File, want string) bool {
	var size int64
	var hash uint64
	if _, err := fmt.Sscanf(want, "%d-%x", &size, &hash); err != nil || size < 0 || size > fingerprintSize {
		return false
	}
	got, err := fingerprint(f, size)
	return err == nil && got == want
}
