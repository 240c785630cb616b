package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
)

// mostFiles is how many files of one container the Engine may keep: the one it
// writes and those it has rotated away, the newest of which is called .1. An
// operator's log-opts may allow more than we ask for.
const mostFiles = 20

// sourceName returns the name of the n-th newest file of a source.
func sourceName(source string, n int) string {
	if n == 0 {
		return source
	}
	return source + "." + strconv.Itoa(n)
}

// errLost is the kind of finding out that the Engine has removed what was not
// read yet.
var errLost = errors.New("docker has removed output before it could be copied")

// openSource opens the file that at is in, or the oldest there is for a zero
// place. If that file is gone the oldest is opened as well and the error is
// errLost. There may be none: the error is then of kind fs.ErrNotExist.
func openSource(source string, at place) (*os.File, error) {
	var oldest *os.File
	for n := range mostFiles {
		f, err := os.Open(sourceName(source, n))
		if errors.Is(err, fs.ErrNotExist) {
			if n == 0 {
				continue // it may be being rotated
			}
			break
		}
		if err != nil {
			return nil, errors.Join(err, shut(&oldest))
		}
		if err := shut(&oldest); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		oldest = f
		info, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if inodeOf(info) == at.Inode && info.Size() >= at.Offset && begins(f, at.Head) {
			return f, nil
		}
	}
	switch {
	case oldest == nil:
		return nil, fs.ErrNotExist
	case at.Inode != 0:
		return oldest, errLost
	default:
		return oldest, nil
	}
}

// newerSource opens the file that the Engine has begun after current, which is open; nil if there is
// none yet. The errors are those of openSource.
func newerSource(source string, current *os.File) (*os.File, error) {
	own, err := current.Stat()
	if err != nil {
		return nil, err
	}
	for range 10 { // the Engine may rotate while we look
		n, err := age(source, own)
		switch {
		case err != nil:
			return nil, err
		case n == 0:
			return nil, nil
		case n < 0:
			f, err := openSource(source, place{})
			if err == nil {
				err = errLost
			}
			return f, err
		}
		f, err := os.Open(sourceName(source, n-1))
		if err != nil {
			return nil, err
		}
		if now, err := age(source, own); err == nil && now == n {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s is rotated faster than it can be read", source)
}

// age returns how many files of a source are newer than file, or -1 if file is not one
// of them any more.
func age(source string, file fs.FileInfo) (int, error) {
	for n := range mostFiles {
		info, err := os.Stat(sourceName(source, n))
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

// shut closes *f, if it is open, and forgets it.
func shut(f **os.File) error {
	if *f == nil {
		return nil
	}
	err := (*f).Close()
	*f = nil
	return err
}
