package restore

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/errdefs"
)

// marks are the labels of images with a checkpoint, as CRI-O and containerd have them as annotations of manifests, which Docker does
// not keep.
var marks = []string{"io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name"}

// HasMark reports whether labels say that an image is a checkpoint.
func HasMark(labels map[string]string) bool {
	return slices.ContainsFunc(marks, func(name string) bool { return labels[name] != "" })
}

// An Image is an image of the node that a container is to be made of.
type Image struct {
	ID         string
	Names      []string // tags and digests
	Size       int64    // bytes
	HasMark    bool
	HasCommand bool
	// Walk visits its files, see passwd.Reader.
	Walk func(ctx context.Context, id string, names []string, visit func(header *tar.Header, content io.Reader) error) error
}

// OpenImage returns the checkpoint in an image, nil if the image is none. Without a mark, an image is one if its name is listed and it has
// no command, as the files of an archive alone. The error is of kind FailedPrecondition if checkpoints of that name are not restored.
func (s *Store) OpenImage(ctx context.Context, image Image) (*Checkpoint, error) {
	if image.HasCommand || s == nil && !image.HasMark {
		return nil, nil
	}
	if s == nil || !slices.ContainsFunc(image.Names, s.cfg.Images.Match) {
		if !image.HasMark {
			return nil, nil
		}
		return nil, fmt.Errorf("image %s %.200q is a checkpoint: containers are restored only from images that the option %s lists: %w", image.ID, image.Names, ImagesOption, errdefs.ErrFailedPrecondition)
	}
	// The Engine counts the content of files, or the blocks that they take on the disk and their compressed layers.
	c := &Checkpoint{from: image.ID, size: 2*image.Size + 1<<20}
	c.source = func(ctx context.Context, names []string, visit visitor) error {
		return image.Walk(ctx, image.ID, names, visit)
	}
	return c, c.readMetadata(ctx)
}
