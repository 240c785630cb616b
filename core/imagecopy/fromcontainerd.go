package imagecopy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/pkg/jsonmessage"
	"github.com/opencontainers/go-digest"

	"berth/core/panics"
)

// fromContainerd copies images of containerd to Docker.
type fromContainerd struct {
	Config
}

// list implements direction.
func (d *fromContainerd) list(ctx context.Context) ([]Image, error) {
	records, err := d.Containerd.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	used, err := d.Containerd.UsedImages(ctx)
	if err != nil {
		return nil, err
	}
	var images []Image
	index := map[digest.Digest]int{}
	for _, record := range records {
		i, ok := index[record.Target.Digest]
		if !ok {
			i = len(images)
			index[record.Target.Digest] = i
			images = append(images, Image{ID: record.Target.Digest.String(), target: record})
		}
		images[i].Used = images[i].Used || used[record.Name]
		if digest.Digest(record.Name).Validate() == nil {
			continue // the record of the CRI plugin for the image ID
		}
		if name, ok := canonical(record.Name); ok && !slices.Contains(images[i].Names, name) {
			images[i].Names = append(images[i].Names, name)
		}
	}
	return slices.DeleteFunc(images, func(img Image) bool { return len(img.Names) == 0 }), nil
}

// check implements direction.
func (d *fromContainerd) check(ctx context.Context, img Image) (p plan, err error) {
	if p.tree, err = readTree(ctx, d.Containerd, img.target.Target); err != nil {
		return p, err
	}
	for _, id := range []digest.Digest{p.tree.config.Digest, p.tree.target.Digest} {
		has, _, err := d.inspect(ctx, id.String(), p.tree)
		if err != nil {
			return p, err
		}
		p.there = p.there || has
	}
	kept := 0
	for _, name := range img.Names {
		has, other, err := d.inspect(ctx, name, p.tree)
		switch {
		case err != nil:
			return p, err
		case has:
		case isDigest(name) && (!d.Docker.Features.Snapshotter || !strings.HasSuffix(name, "@"+img.ID)):
			p.lost = append(p.lost, name)
			continue
		case isDigest(name):
			p.missing = append(p.missing, name)
			p.there = p.there && hasTag(img.Names, name) // a tag of the repository brings it; docker tag takes no digest
		default:
			p.missing = append(p.missing, name)
			if other {
				p.replaced = append(p.replaced, name)
			}
		}
		kept++
	}
	if kept == 0 {
		return p, fmt.Errorf("%w: it has no tag, and docker's image store does not keep the manifest of its digest", errSkipped)
	}
	p.total = p.tree.size()
	if !d.Docker.Features.Snapshotter {
		p.total = p.tree.config.Size
		for _, layer := range p.tree.layers {
			p.total += layer.Size
		}
	}
	return p, nil
}

// hasTag reports whether there is a tag of the repository of name in names.
func hasTag(names []string, name string) bool {
	repository, _, _ := strings.Cut(name, "@")
	return slices.ContainsFunc(names, func(tag string) bool {
		named, err := reference.ParseNormalizedNamed(tag)
		return err == nil && !isDigest(tag) && named.Name() == repository
	})
}

// inspect reports whether ref is the image t in Docker, or another one.
func (d *fromContainerd) inspect(ctx context.Context, ref string, t *tree) (has, other bool, err error) {
	found, err := d.Docker.ImageInspect(ctx, ref)
	if errdefs.IsNotFound(err) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("inspect image %s of docker: %w", ref, err)
	}
	has = isImage(t, found.ID)
	return has, !has, nil
}

// transfer implements direction.
func (d *fromContainerd) transfer(ctx context.Context, img Image, p plan, moved func(int)) (Result, error) {
	names := slices.DeleteFunc(slices.Clone(img.Names), func(name string) bool { return slices.Contains(p.lost, name) })
	pr, pw := io.Pipe()
	sender := panics.NewGroup(d.Log)
	sender.Go(func() error {
		err := panics.Try(d.Log, func() error {
			return writeArchive(ctx, d.Containerd, p.tree, names, d.Docker.Features.Snapshotter, &countingWriter{pw, moved})
		})
		pw.CloseWithError(err)
		return err
	})
	err := d.load(ctx, pr)
	pr.Close() // ends the sender, if docker did not read everything
	if sendErr := sender.Wait(); sendErr != nil && !errors.Is(sendErr, io.ErrClosedPipe) {
		err = sendErr // and the reason of err
	}
	if err != nil {
		return "", err
	}
	return Copied, d.verify(ctx, names, p)
}

// load sends an archive to Docker.
func (d *fromContainerd) load(ctx context.Context, archive io.Reader) error {
	resp, err := d.Docker.ImageLoad(ctx, archive)
	if err != nil {
		return fmt.Errorf("docker load: %w", err)
	}
	defer resp.Body.Close()
	if err := jsonmessage.DisplayJSONMessagesStream(resp.Body, io.Discard, 0, false, nil); err != nil {
		return fmt.Errorf("docker load: %w", err)
	}
	return nil
}

// name implements direction.
func (d *fromContainerd) name(ctx context.Context, _ Image, p plan) error {
	id := p.tree.config.Digest.String()
	if d.Docker.Features.Snapshotter {
		id = p.tree.target.Digest.String()
	}
	for _, name := range p.missing {
		if isDigest(name) {
			continue
		}
		if err := d.Docker.ImageTag(ctx, id, name); err != nil {
			return fmt.Errorf("docker tag %s: %w", name, err)
		}
	}
	return d.verify(ctx, p.missing, p)
}

// verify compares the IDs of the images that have the names now. Names that were given to another image are removed.
func (d *fromContainerd) verify(ctx context.Context, names []string, p plan) error {
	var failures []error
	for _, name := range names {
		has, other, err := d.inspect(ctx, name, p.tree)
		switch {
		case err != nil:
			failures = append(failures, err)
		case other && slices.Contains(p.missing, name):
			_, removeErr := d.Docker.ImageRemove(ctx, name, image.RemoveOptions{})
			failures = append(failures, fmt.Errorf("docker has another image as %s: containerd has %s with the configuration %s: %w",
				name, p.tree.target.Digest, p.tree.config.Digest, errdefs.ErrDataLoss), removeErr)
		case !has:
			failures = append(failures, fmt.Errorf("docker has no image %s after docker load: %w", name, errdefs.ErrNotFound))
		}
	}
	return errors.Join(failures...)
}

// A countingWriter calls moved with the number of bytes that were written.
type countingWriter struct {
	io.Writer
	moved func(int)
}

// Write implements io.Writer.
func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.moved(n)
	return n, err
}
