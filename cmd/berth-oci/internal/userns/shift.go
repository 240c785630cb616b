package userns

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth/core/ociedit"
)

// noteName is the name of the note beside an upper directory. The Engine removes it with the layer.
const noteName = "berth-idmap"

// note says that the files of an upper directory have been, or are being, given to the IDs of the host. They must not be
// mapped twice: mapped IDs can be IDs of the container as well. It is not synced: after a power loss there are no instructions
// any more, which are in /run.
type note struct {
	UIDMappings []ociedit.IDMapping `json:"uidMappings"`
	GIDMappings []ociedit.IDMapping `json:"gidMappings"`
	// Done is false while the files are changed. Files says then what they become.
	Done  bool          `json:"done"`
	Files []shiftedFile `json:"files,omitempty"`
}

// shiftedFile is a file with its future owner, and what chown(2) clears.
type shiftedFile struct {
	Path         []byte `json:"path"` // below the upper directory; not always UTF-8
	UID          uint32 `json:"uid"`
	GID          uint32 `json:"gid"`
	Mode         uint32 `json:"mode,omitempty"`         // of a setuid or setgid file
	Capabilities []byte `json:"capabilities,omitempty"` // the extended attribute security.capability
}

func notePath(upper string) string { return filepath.Join(filepath.Dir(upper), noteName) }

// readNote returns the note of an upper directory, or nil.
func readNote(upper string) (*note, error) {
	text, err := os.ReadFile(notePath(upper))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	n := &note{}
	if err := json.Unmarshal(text, n); err != nil {
		return nil, fmt.Errorf("%s is damaged: the container must be created anew: %w", notePath(upper), err)
	}
	return n, nil
}

// write replaces the note of an upper directory. What a killed process leaves beside it is overwritten.
func (n *note) write(upper string) error {
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	path := notePath(upper)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// shift gives the files of an upper directory to the IDs of the host, once. n is its note.
//
// The future owners of all files are written first: a process that finds a note that is not done gives the files the same
// owners again.
func shift(upper string, n *note, u *ociedit.UserNamespace) (err error) {
	if n != nil && n.Done {
		return nil
	}
	if n == nil {
		n = &note{UIDMappings: u.UIDMappings, GIDMappings: u.GIDMappings}
		if n.Files, err = filesToShift(upper, u); err != nil {
			return fmt.Errorf("owners of %s: %w", upper, err)
		}
		if err := n.write(upper); err != nil {
			return err
		}
		reached("noted")
	}
	for _, f := range n.Files {
		if err := f.apply(upper); err != nil {
			return fmt.Errorf("owners of %s: %w", upper, err)
		}
		reached("shifted a file")
	}
	reached("shifted")
	n.Done, n.Files = true, nil
	return n.write(upper)
}

// filesToShift returns the files of an upper directory that get another owner. An ID that is not mapped stays and is shown as 65534.
func filesToShift(upper string, u *ociedit.UserNamespace) (files []shiftedFile, err error) {
	root, _ := mapped(u.UIDMappings, 0)
	err = filepath.WalkDir(upper, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		uid, uidChanged := mapped(u.UIDMappings, st.Uid)
		gid, gidChanged := mapped(u.GIDMappings, st.Gid)
		if !uidChanged && !gidChanged {
			return nil
		}
		name, err := filepath.Rel(upper, path)
		if err != nil {
			return err
		}
		f := shiftedFile{Path: []byte(name), UID: uid, GID: gid}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			if st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
				f.Mode = st.Mode & 0o7777
			}
			f.Capabilities = fileCapabilities(path, root)
		}
		files = append(files, f)
		return nil
	})
	return files, err
}

// mapped returns the ID of the host for one of the container, and whether it is another one.
func mapped(mappings []ociedit.IDMapping, id uint32) (uint32, bool) {
	for _, m := range mappings {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			host := m.HostID + (id - m.ContainerID)
			return host, host != id
		}
	}
	return id, false
}

// fileCapabilities returns security.capability of a file as it must be when root is the root of its user namespace (VFS_CAP_REVISION_3,
// capabilities(7)), or nil.
func fileCapabilities(path string, root uint32) []byte {
	const revision2, revision3, mask, size2 = 0x02000000, 0x03000000, 0xff000000, 20
	value := make([]byte, 64)
	n, err := unix.Lgetxattr(path, "security.capability", value)
	if err != nil || n < 4 {
		return nil
	}
	value = value[:n]
	if magic := binary.LittleEndian.Uint32(value); magic&mask == revision2 && n == size2 {
		binary.LittleEndian.PutUint32(value, magic&^mask|revision3)
		value = binary.LittleEndian.AppendUint32(value, root)
	}
	return value
}

// apply gives the file its owner.
func (f shiftedFile) apply(upper string) error {
	path := filepath.Join(upper, string(f.Path))
	err := os.Lchown(path, int(f.UID), int(f.GID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed after an interrupted attempt
	}
	if err == nil && f.Mode != 0 {
		err = unix.Chmod(path, f.Mode)
	}
	if err == nil && f.Capabilities != nil {
		err = unix.Lsetxattr(path, "security.capability", f.Capabilities, 0)
	}
	return err
}
