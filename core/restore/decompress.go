package restore

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"berth/core/ociedit"
	"berth/core/rootdiff"
)

// decompressed is the name of the changed files while they are decompressed.
const decompressed = ociedit.RestoreFiles + ".part"

// decompress replaces the changed files of the container by their decompressed archive if they are compressed with gzip, as containerd 2.3
// writes them (MediaTypeImageLayerGzip). They may have half of the free space of the file system: zeros have a thousandth of their size.
func (u *unpacker) decompress() error {
	f, err := u.root.Open(ociedit.RestoreFiles)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	buffered := bufio.NewReader(rootdiff.WithContext(u.ctx, f))
	if magic, err := buffered.Peek(2); err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
		return nil // whatever it is, the check of the archive says so
	}
	compressed, err := gzip.NewReader(buffered)
	if err != nil {
		return errors.Join(u.ctx.Err(), invalid("changed files: %w", err))
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return fmt.Errorf("free space: %w", err)
	}
	limit := int64(fs.Bavail) * int64(fs.Bsize) / 2 //nolint:unconvert // its type depends on the machine
	out, err := u.root.OpenFile(decompressed, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(compressed, limit+1))
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	switch {
	case u.ctx.Err() != nil:
		return u.ctx.Err()
	case errors.Is(err, unix.ENOSPC):
		return err
	case err != nil:
		return invalid("changed files: %w", err)
	case n > limit:
		return fmt.Errorf("changed files: decompressed they have more than %d bytes, half of the free space: %w", limit, unix.ENOSPC)
	}
	return u.root.Rename(decompressed, ociedit.RestoreFiles)
}
