// Package state keeps the little that changes after a container is created
// and that neither its labels nor libcni's cache can hold: steps begun but not
// finished, times of failed starts, positions in logs.
//
// It is one small file per object, replaced as a whole, on shelves by subject.
// A file survives the death of the daemon at any moment. It is not synced to
// the disk, for it is written on the path of every pod: when the machine loses
// power the newest files may be lost, and everything that reads them lives
// without (no pod runs after a power loss).
package state

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// version is the directory that files of this form live in. Another form gets
// another one, and reads the older.
const version = "v1"

// A Store is a directory of shelves.
type Store struct {
	dir string
}

// Open returns the journal in dir, which is made if need be.
func Open(dir string) (*Store, error) {
	j := &Store{dir: filepath.Join(dir, version)}
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return j, nil
}

// Bucket returns the shelf called name, which is made if need be. What was being
// saved there when a daemon died is thrown away, so nobody else may use it yet.
func (j *Store) Bucket(name string) (*Bucket, error) {
	dir := filepath.Join(j.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			_ = os.Remove(filepath.Join(dir, e.Name())) // one that stays is overlooked
		}
	}
	return &Bucket{dir: dir}, nil
}

// A Bucket holds one file per key. Writers of the same key do not disturb each
// other, the last one wins; a reader never sees half a file.
type Bucket struct {
	dir string
}

// path returns the file of key. Keys that make no good file name (a container's
// name may be longer than one can be) are hashed.
func (s *Bucket) path(key string) string {
	plain := len(key) > 0 && len(key) <= 128 && key[0] != '.' && !strings.ContainsAny(key, "/\x00")
	if !plain {
		sum := sha256.Sum256([]byte(key))
		key = "sha256-" + hex.EncodeToString(sum[:])
	}
	return filepath.Join(s.dir, key)
}

// Save keeps data under key.
func (s *Bucket) Save(key string, data []byte) error {
	path := s.path(key)
	temp, err := os.CreateTemp(s.dir, ".") // a name of its own for each writer, mode 0600
	if err != nil {
		return fmt.Errorf("journal: save %s: %w", path, cause(err))
	}
	_, err = temp.Write(data)
	err = errors.Join(err, temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temp.Name()) // on a full disk it would be in the way
		return fmt.Errorf("journal: save %s: %w", path, cause(err))
	}
	return nil
}

// cause returns err without the name of a temporary file, which is another one each
// time: a message that repeats must be the same.
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

// Load returns what is kept under key, and whether anything is.
func (s *Bucket) Load(key string) ([]byte, bool) {
	data, err := os.ReadFile(s.path(key))
	return data, err == nil && len(data) > 0
}

// Delete forgets key; it need not be there.
func (s *Bucket) Delete(key string) error {
	path := s.path(key)
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		// A read-only file system refuses to remove even what does not exist.
		if _, statErr := os.Lstat(path); errors.Is(statErr, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// Put keeps v, as JSON, under key.
func (s *Bucket) Put(key string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return s.Save(key, data)
}

// Get reads into v what Put kept under key, and returns whether it could. A
// torn or foreign file counts as absent.
func (s *Bucket) Get(key string, v any) bool {
	data, ok := s.Load(key)
	return ok && json.Unmarshal(data, v) == nil
}

// Names returns the file names on the shelf, each good as a key for Get and
// Delete.
func (s *Bucket) Names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
