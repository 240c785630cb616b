// Package state stores the records that outlive the daemon and that Docker labels and
// libcni's cache cannot hold: unfinished sandboxes, failed starts, changed resources,
// positions in logs.
//
// A Store is a directory of buckets. A Bucket[T] holds records of one type, one file per
// key, and has one owner: the package that opens and writes it. A record is replaced as a whole
// and survives the death of the daemon at any moment. It is not synced to the disk, because
// it is written on the path of every pod: after a power loss the newest records may
// be missing or torn, and a torn record reads as absent. Their owners tolerate both, since no
// pod survives a power loss.
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

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"berth/core/atomicfile"
)

// version is the directory of the files in this format. Another format gets another
// directory, and reads this one.
const version = "v1"

// A Store is a directory of buckets.
type Store struct {
	dir string
}

// Open returns the store in dir, which is created if it does not exist.
func Open(dir string) (*Store, error) {
	s := &Store{dir: filepath.Join(dir, version)}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	return s, nil
}

// MoveRecords moves the records of bucket from whose file content satisfies match to
// bucket to, where they replace those with the same key. It is for records that an earlier
// release kept in another bucket; call it before either bucket is opened.
func (s *Store) MoveRecords(from, to string, match func(data []byte) bool) error {
	source, target := filepath.Join(s.dir, from), filepath.Join(s.dir, to)
	entries, err := os.ReadDir(source)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(source, e.Name())
		data, err := os.ReadFile(path)
		if err != nil || hidden(e) || !match(data) {
			continue // an unreadable record counts as absent
		}
		if err := os.MkdirAll(target, 0o700); err != nil {
			return fmt.Errorf("state: %w", err)
		}
		if err := os.Rename(path, filepath.Join(target, e.Name())); err != nil {
			return fmt.Errorf("state: %w", err)
		}
	}
	return nil
}

// A Bucket holds values of type T, each under a key. Its methods can be called
// concurrently: of several writers of a key the last one wins, and a reader never
// sees a part of a record.
type Bucket[T any] struct {
	dir       string
	marshal   func(T) ([]byte, error)
	unmarshal func([]byte) (T, error)
}

// OpenBucket opens the bucket called name, whose records are the JSON of T. The bucket
// is created if it does not exist. Temporary files of an interrupted Put are removed, so
// nothing else may have the bucket open.
func OpenBucket[T any](s *Store, name string) (*Bucket[T], error) {
	dir, err := s.openDir(name)
	if err != nil {
		return nil, err
	}
	return &Bucket[T]{
		dir:     dir,
		marshal: func(v T) ([]byte, error) { return json.Marshal(v) },
		unmarshal: func(data []byte) (v T, err error) {
			err = json.Unmarshal(data, &v)
			return v, err
		},
	}, nil
}

// OpenProtoBucket is OpenBucket for a message type, in the JSON of protobuf. Fields that this
// release does not know are ignored.
func OpenProtoBucket[T proto.Message](s *Store, name string) (*Bucket[T], error) {
	dir, err := s.openDir(name)
	if err != nil {
		return nil, err
	}
	return &Bucket[T]{
		dir:     dir,
		marshal: func(v T) ([]byte, error) { return protojson.Marshal(v) },
		unmarshal: func(data []byte) (T, error) {
			var none T
			v := none.ProtoReflect().New().Interface().(T)
			return v, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, v)
		},
	}, nil
}

// openDir creates the directory of a bucket and removes temporary files from it.
func (s *Store) openDir(name string) (string, error) {
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("state: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("state: %w", err)
	}
	for _, e := range entries {
		if hidden(e) {
			_ = os.Remove(filepath.Join(dir, e.Name())) // if that fails, readers still ignore it
		}
	}
	return dir, nil
}

// hidden reports whether e is a temporary file of atomicfile.Write.
func hidden(e fs.DirEntry) bool { return strings.HasPrefix(e.Name(), ".") }

// maxKeyLength is the length of the longest key that is its own file name. NAME_MAX is 255
// bytes, and the name of a temporary file is longer than the key.
const maxKeyLength = 128

// path returns the file of key. A key that cannot be a file name is hashed: Docker names
// of containers, for example, can be longer than NAME_MAX.
func (b *Bucket[T]) path(key string) string {
	plain := len(key) > 0 && len(key) <= maxKeyLength && key[0] != '.' && !strings.ContainsAny(key, "/\x00")
	if !plain {
		sum := sha256.Sum256([]byte(key))
		key = "sha256-" + hex.EncodeToString(sum[:])
	}
	return filepath.Join(b.dir, key)
}

// Put stores v under key.
func (b *Bucket[T]) Put(key string, v T) error {
	data, err := b.marshal(v)
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	if err := atomicfile.Write(b.path(key), data); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// Get returns the value under key, and false if there is none. A torn record counts as none; one that cannot be read, for
// example for lack of file descriptors, is an error: it must not be taken for absent. A nil Bucket is empty.
func (b *Bucket[T]) Get(key string) (v T, found bool, err error) {
	var none T
	if b == nil {
		return none, false, nil
	}
	data, err := os.ReadFile(b.path(key))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return none, false, nil
	case err != nil:
		return none, false, fmt.Errorf("state: %w", err)
	}
	if v, err = b.unmarshal(data); err != nil {
		return none, false, nil //nolint:nilerr // torn
	}
	return v, true, nil
}

// Delete removes the value under key. A key that does not exist is no error.
func (b *Bucket[T]) Delete(key string) error {
	if err := atomicfile.Remove(b.path(key)); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// Keys returns the file names of all records, also of those that cannot be read. Each is
// valid as a key for Get and Delete; it differs from the key of Put if that was hashed.
func (b *Bucket[T]) Keys() ([]string, error) {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	var names []string
	for _, e := range entries {
		if !hidden(e) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
