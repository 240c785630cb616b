package restore

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"berth/core/ociedit"
	"berth/core/rootdiff"
)

const (
	// maxImages bounds how many files CRIU's images are: some for each process.
	maxImages = 1 << 17
	// maxName is the longest name of one of them.
	maxName = 128
	// imageCharacters are those of their names.
	imageCharacters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-"
	// inventory is the image that CRIU reads first, descriptors is runc's.
	inventory, descriptors = "inventory.img", "descriptors.json"
	// maxDescriptors bounds the latter, in bytes.
	maxDescriptors = 64 << 10
)

// An unpacker writes the files of a checkpoint to a directory.
type unpacker struct {
	ctx    context.Context
	root   *os.Root
	left   int64 // bytes that the files may still have
	images int
}

// unpack writes the files of c to the directory dir, and checks those that are not CRIU's.
func unpack(ctx context.Context, c *Checkpoint, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Mkdir(ociedit.RestoreImages, 0o700); err != nil {
		return err
	}
	u := &unpacker{ctx: ctx, root: root, left: c.size}
	if err := c.source(ctx, []string{ociedit.RestoreImages, ociedit.RestoreFiles, ociedit.RestoreDeleted}, u.add); err != nil {
		return err
	}
	if _, err := root.Lstat(filepath.Join(ociedit.RestoreImages, inventory)); err != nil {
		return invalid("there are no images of CRIU: %w", err)
	}
	if err := u.checkDescriptors(); err != nil {
		return invalid("%s: %w", descriptors, err)
	}
	if err := u.decompress(); err != nil {
		return err
	}
	return u.check()
}

// checkDescriptors checks the list of files that were the standard input, output and error. runc gives CRIU its own descriptor N in the place
// of entry N, so that more entries would be descriptors of runc.
func (u *unpacker) checkDescriptors() error {
	name := filepath.Join(ociedit.RestoreImages, descriptors)
	info, err := u.root.Lstat(name)
	if err != nil {
		return err
	}
	if info.Size() > maxDescriptors {
		return fmt.Errorf("more than %d bytes", maxDescriptors)
	}
	text, err := u.root.ReadFile(name)
	if err != nil {
		return err
	}
	var files []string
	if err := json.Unmarshal(text, &files); err != nil {
		return err
	}
	if len(files) > 3 {
		return errors.New("more than three files")
	}
	return nil
}

// add writes a file.
func (u *unpacker) add(header *tar.Header, content io.Reader) error {
	image, isImage := strings.CutPrefix(header.Name, ociedit.RestoreImages+"/")
	switch {
	case header.Typeflag == tar.TypeDir && header.Name == ociedit.RestoreImages:
		return nil
	case header.Typeflag != tar.TypeReg:
		return invalid("%.200q is not a regular file", header.Name)
	case isImage && (image == "" || image[0] == '.' || len(image) > maxName || strings.Trim(image, imageCharacters) != ""):
		return invalid("%.200q is not a name of CRIU's images", header.Name)
	case !isImage && header.Name != ociedit.RestoreFiles && header.Name != ociedit.RestoreDeleted:
		return invalid("%.200q should be a directory, or is below a file", header.Name)
	case header.Size > u.left:
		return invalid("%.200q has more bytes than the whole checkpoint", header.Name) // a sparse file
	}
	if u.images++; u.images > maxImages {
		return invalid("more than %d files", maxImages)
	}
	u.left -= header.Size
	f, err := u.root.OpenFile(header.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return invalid("%.200q is there twice", header.Name)
	}
	if err != nil {
		return err
	}
	n, err := io.Copy(f, rootdiff.WithContext(u.ctx, io.LimitReader(content, header.Size)))
	if err == nil && n < header.Size {
		err = io.ErrUnexpectedEOF
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%.200q: %w", header.Name, err)
	}
	return nil
}

// check refuses changes of the root file system that berth-oci would refuse when the container starts.
func (u *unpacker) check() error {
	text, err := u.root.ReadFile(ociedit.RestoreDeleted)
	if err == nil {
		_, err = rootdiff.ParseDeleted(text)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return invalid("%w", err)
	}
	f, err := u.root.Open(ociedit.RestoreFiles)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := rootdiff.Check(rootdiff.WithContext(u.ctx, f), info.Size()); err != nil {
		return errors.Join(u.ctx.Err(), invalid("%w", err))
	}
	return nil
}
