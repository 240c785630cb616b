// Package rootdiff writes what a container has changed in its root file system, as CRI-O does for checkpoints (rootfs-diff.tar and
// deleted.files), and applies it to that of a new container.
//
// Nothing that is applied is believed. Every name is resolved beneath the root directory, without symbolic links and without crossing into
// another mount, and each file is made anew instead of being written through what is there. Device nodes are refused: the devices of a
// container come from its pod. Sizes are bounded by that of the archive, which is not compressed (core/restore has decompressed it).
//
// The package is linked into berth-oci: it imports little.
package rootdiff

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// MaxDeleted bounds deleted.files, in bytes.
	MaxDeleted = 16 << 20
	// maxEntries bounds the entries of an archive, and the paths in deleted.files.
	maxEntries = 1 << 20
	// maxElements bounds how deep a name may be nested.
	maxElements = 1000
	// whiteout begins the names of entries that delete a file, in archives of containerd. An opaque directory has one with opaque.
	whiteout, opaque = ".wh.", ".wh..wh..opq"
	// xattrPrefix is before the name of an extended attribute in a header.
	xattrPrefix = "SCHILY.xattr."
	// xattrCapability and xattrUserPrefix are those that belong to the file and not to the node.
	xattrCapability, xattrUserPrefix = "security.capability", "user."
	// maxID is the greatest user or group ID.
	maxID int64 = 1<<32 - 2
	// permissions are those bits of a mode that are not its type.
	permissions = 0o7777
)

// Check returns an error if an archive of at most size bytes has something that Apply refuses whatever the root file system is.
func Check(archive io.Reader, size int64) error {
	return walk(archive, size, func(string, *tar.Header, io.Reader) error { return nil })
}

// Apply applies an archive of at most size bytes to the file system with the directory root.
func Apply(root *os.File, archive io.Reader, size int64) error {
	t := &tree{root: root}
	err := walk(archive, size, t.add)
	return errors.Join(err, t.setTimes())
}

// walk calls visit for each entry of an archive, with its name, which is clean, relative and beneath the root.
func walk(archive io.Reader, size int64, visit func(name string, header *tar.Header, content io.Reader) error) error {
	reader, entries, bytes := tar.NewReader(archive), 0, int64(0)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("changed files: the archive is truncated or no tar archive: %w", err)
		}
		if entries++; entries > maxEntries {
			return fmt.Errorf("changed files: more than %d entries", maxEntries)
		}
		name, err := cleanName(header.Name)
		if err != nil {
			return fmt.Errorf("changed files: %w", err)
		}
		// A sparse file can have any size in an archive of some bytes.
		if header.Size < 0 || header.Size > size-bytes {
			return fmt.Errorf("changed files: %.200q has more bytes than the archive", name)
		}
		bytes += header.Size
		if err := checkHeader(name, header); err != nil {
			return fmt.Errorf("changed files: %.200q %w", name, err)
		}
		if name == "." {
			continue
		}
		if err := visit(name, header, reader); err != nil {
			return fmt.Errorf("changed files: %.200q: %w", name, err)
		}
	}
}

// cleanName returns the name of an entry as a relative path, "." for the root directory.
func cleanName(name string) (string, error) {
	clean := path.Clean(name)
	switch {
	case name == "" || strings.ContainsRune(name, 0) || len(name) >= unix.PathMax || strings.Count(clean, "/") >= maxElements:
		return "", fmt.Errorf("name %.200q is empty, too long or has NUL", name)
	case !filepath.IsLocal(name) || !filepath.IsLocal(clean):
		return "", fmt.Errorf("name %.200q is not below the root directory", name)
	}
	return clean, nil
}

// checkHeader refuses entries that are not restored.
func checkHeader(name string, header *tar.Header) error {
	switch header.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeFifo:
	case tar.TypeSymlink:
		if header.Linkname == "" || len(header.Linkname) >= unix.PathMax || strings.ContainsRune(header.Linkname, 0) {
			return errors.New("is a symbolic link whose target is empty, too long or has NUL")
		}
	case tar.TypeLink:
		if target, err := cleanName(header.Linkname); err != nil || target == "." {
			return fmt.Errorf("is a hard link to %.200q, which is not below the root directory", header.Linkname)
		}
	case tar.TypeChar, tar.TypeBlock:
		return errors.New("is a device node: the devices of a container come from its pod")
	default:
		return fmt.Errorf("has the type %q, which is not supported", header.Typeflag)
	}
	switch base := path.Base(name); {
	case header.Uid < 0 || header.Gid < 0 || int64(header.Uid) > maxID || int64(header.Gid) > maxID:
		return fmt.Errorf("belongs to %d:%d: must be from 0 to %d", header.Uid, header.Gid, maxID)
	case base == opaque:
		return errors.New("makes its directory opaque, which is not supported")
	case strings.HasPrefix(base, whiteout) && !isName(strings.TrimPrefix(base, whiteout)):
		return errors.New("deletes nothing that can have a name")
	}
	return nil
}

func isName(name string) bool { return name != "" && name != "." && name != ".." }

// ParseDeleted returns the paths in deleted.files, relative to the root directory.
func ParseDeleted(text []byte) (paths []string, err error) {
	if len(text) > MaxDeleted {
		return nil, fmt.Errorf("deleted files: more than %d bytes", MaxDeleted)
	}
	if err := json.Unmarshal(text, &paths); err != nil {
		return nil, fmt.Errorf("deleted files: truncated or not a list: %w", err)
	}
	if len(paths) > maxEntries {
		return nil, fmt.Errorf("deleted files: more than %d paths", maxEntries)
	}
	for i, name := range paths {
		name, err := cleanName(strings.TrimPrefix(name, "/"))
		if err == nil && name == "." {
			err = errors.New("the root directory itself")
		}
		if err != nil {
			return nil, fmt.Errorf("deleted files: %w", err)
		}
		paths[i] = name
	}
	return paths, nil
}

// Delete deletes paths of ParseDeleted from the file system with the directory root. What is not there is left out.
func Delete(root *os.File, paths []string) error {
	t := &tree{root: root}
	for _, name := range paths {
		if err := t.remove(name); err != nil {
			return fmt.Errorf("delete %.200q: %w", name, err)
		}
	}
	return nil
}
