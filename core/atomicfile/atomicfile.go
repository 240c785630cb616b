// Package atomicfile replaces and removes small files so that a reader sees the
// old content or the new, never a part, also when the process is killed at any moment.
//
// It does not sync to the disk, because it is called on the path of every pod: after
// a power loss a file may be missing, old or empty. That is why it is not
// github.com/moby/sys/atomicwriter, which syncs each file.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write replaces the file path by one with data and mode 0600. Concurrent writers of one
// path do not disturb each other: the last one wins.
//
// The new file is first written beside path, as TempPattern says. If the process is killed
// meanwhile, that file stays; the owner of the directory must remove it.
func Write(path string, data []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), TempPattern(filepath.Base(path)))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	_, err = temp.Write(data)
	err = errors.Join(err, temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temp.Name()) // on a full disk it would take space
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	return nil
}

// TempPattern returns the pattern, in the syntax of os.CreateTemp and filepath.Match, of
// the temporary files of Write for a file with that base name. They begin with a dot and
// are unique for each call.
func TempPattern(base string) string { return "." + base + ".*" }

// cause returns err without the name of the temporary file, which differs each time: a
// repeated error must have the same text.
func cause(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &link):
		return link.Err
	}
	return err
}

// Remove removes the file path. A file that does not exist is no error, also on a
// read-only file system, where unlink(2) fails with EROFS whether or not the file exists.
func Remove(path string) error {
	err := os.Remove(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, statErr := os.Lstat(path); errors.Is(statErr, fs.ErrNotExist) {
		return nil
	}
	return err
}
