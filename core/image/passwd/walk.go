package passwd

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"github.com/containerd/errdefs"

	"berth/core/engine"
)

// Walk calls visit for the files of the image id with these names in its root directory, and for all below those that are
// directories. The names in the headers are relative to the root directory and clean. A name that does not exist is left out.
func (r *Reader) Walk(ctx context.Context, id string, names []string, visit func(header *tar.Header, content io.Reader) error) error {
	err := r.withHelper(ctx, id, func(docker *engine.Conn, helper string) error {
		for _, name := range names {
			if err := walk(ctx, docker, helper, name, visit); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read files of image %s: %w", id, err)
	}
	return nil
}

func walk(ctx context.Context, docker *engine.Conn, container, name string, visit func(header *tar.Header, content io.Reader) error) (err error) {
	// The type is checked before Docker opens the file, as in readEntry.
	stat, err := docker.ContainerStatPath(ctx, container, "/"+name)
	switch {
	case errdefs.IsNotFound(err):
		return containerExists(ctx, docker, container)
	case err != nil:
		return err
	case !stat.Mode.IsRegular() && stat.Mode.Type() != fs.ModeDir:
		return fmt.Errorf("%s is neither a regular file nor a directory: %w", name, errdefs.ErrFailedPrecondition)
	}
	body, _, err := docker.CopyFromContainer(ctx, container, "/"+name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	archive := tar.NewReader(body)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		header.Name = path.Clean(header.Name) // its first element is the base of name
		if err := visit(header, archive); err != nil {
			return err
		}
	}
}
