package imagecopy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/core/containerd"
	"berth/core/pause"
	"berth/core/rollback"
)

// leaseTTL is how long containerd keeps what a copy has left that was killed. It is longer than a copy takes.
const leaseTTL = 24 * time.Hour

// managedLabel marks an image record as one of containerd's CRI plugin (internal/cri/labels of containerd).
const managedLabel = "io.cri-containerd.image"

// toContainerd copies images of Docker to containerd.
type toContainerd struct {
	Config

	// docker is the namespace that Docker stores images in, if it does so in the same containerd.
	docker *containerd.Client
}

// list implements direction.
func (d *toContainerd) list(ctx context.Context) ([]Image, error) {
	d.findDockerNamespace(ctx)
	rows, err := d.Docker.ImageList(ctx, image.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list images of docker: %w", err)
	}
	containers, err := d.Docker.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, fmt.Errorf("list containers of docker: %w", err)
	}
	used := map[string]bool{}
	for _, c := range containers {
		used[c.ImageID] = true
		if name, ok := canonical(c.Image); ok {
			used[name] = true
		}
	}
	var images []Image
	for _, row := range rows {
		img := Image{ID: row.ID, Size: row.Size, Used: used[row.ID]}
		names := slices.Concat(row.RepoTags, row.RepoDigests)
		if d.Docker.Features.Snapshotter {
			names = append(names, digestNames(row.RepoTags, row.ID)...)
		}
		for _, text := range names {
			name, ok := canonical(text)
			if !ok || text == pause.Ref || slices.Contains(img.Names, name) { // <none>:<none> is no name
				continue
			}
			img.Names = append(img.Names, name)
			img.Used = img.Used || used[name]
		}
		if len(img.Names) > 0 {
			images = append(images, img)
		}
	}
	return images, nil
}

// digestNames returns the names by digest of tags in the containerd image store, where the ID of an image is the digest of
// its manifest. Docker 28.5 lists the digest of one repository only.
func digestNames(tags []string, id string) (names []string) {
	for _, tag := range tags {
		named, err := reference.ParseNormalizedNamed(tag)
		if err != nil {
			continue // <none>:<none>
		}
		if named, err := reference.WithDigest(reference.TrimNamed(named), digest.Digest(id)); err == nil {
			names = append(names, named.String())
		}
	}
	return names
}

// findDockerNamespace finds out whether Docker stores images in the containerd that they are to be copied to. Engines since
// 27.0 (API 1.46) say which containerd they use.
func (d *toContainerd) findDockerNamespace(ctx context.Context) {
	if !d.Docker.Features.Snapshotter {
		return
	}
	info, err := d.Docker.Info(ctx)
	if err != nil || info.Containerd == nil {
		return
	}
	own, err := os.Stat(strings.TrimPrefix(info.Containerd.Address, "unix://"))
	if err != nil {
		return // on another host, perhaps
	}
	if target, err := os.Stat(d.Address); err == nil && os.SameFile(own, target) {
		d.docker = d.Containerd.In(info.Containerd.Namespaces.Containers)
	}
}

// isImage reports whether t is the image with that ID of Docker: the digest of the configuration or, with the containerd
// image store, of the target.
func isImage(t *tree, id string) bool {
	return t.config.Digest.String() == id || t.target.Digest.String() == id
}

// check implements direction.
func (d *toContainerd) check(ctx context.Context, img Image) (p plan, err error) {
	records := map[string]digest.Digest{}
	trees := map[digest.Digest]bool{}
	for _, name := range append([]string{img.ID}, img.Names...) {
		found, err := d.Containerd.GetImage(ctx, name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return p, err
		}
		records[name] = found.Target.Digest
		if trees[found.Target.Digest] || p.tree != nil {
			continue
		}
		trees[found.Target.Digest] = true
		t, err := readTree(ctx, d.Containerd, found.Target)
		switch {
		case err == nil && isImage(t, img.ID):
			p.tree, p.there = t, true
		case err != nil && ctx.Err() != nil:
			return p, err
		case err != nil:
			d.Log.Debug("image in containerd is incomplete", slog.String("image", name), slog.Any("err", err))
		}
	}
	target := digest.Digest(img.ID) // with Docker's own store no manifest has this digest
	if p.there {
		target = p.tree.target.Digest
		if id := p.tree.config.Digest; records[id.String()] == "" {
			if _, err := d.Containerd.GetImage(ctx, id.String()); errdefs.IsNotFound(err) {
				p.missing = append(p.missing, id.String())
			} else if err != nil {
				return p, err
			}
		}
	}
	kept := 0
	for _, name := range img.Names {
		now, exists := records[name]
		switch {
		case isDigest(name) && !strings.HasSuffix(name, "@"+target.String()):
			p.lost = append(p.lost, name)
			continue
		case !exists:
			p.missing = append(p.missing, name)
		case !p.there || now != target:
			p.missing, p.replaced = append(p.missing, name), append(p.replaced, name)
		}
		kept++
	}
	if kept == 0 {
		return p, fmt.Errorf("%w: it has no tag, and docker's image store does not keep the manifest of its digest", errSkipped)
	}
	return p, nil
}

// transfer implements direction.
func (d *toContainerd) transfer(ctx context.Context, img Image, p plan, moved func(int)) (result Result, err error) {
	run := "berth-images-copy-" + rand.Text()
	ctx, release, err := d.Containerd.WithLease(ctx, run, leaseTTL)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, release(err != nil)) }()
	result = Copied
	target, shared, err := d.share(ctx, run, img)
	if err != nil {
		return "", err
	}
	if shared {
		result = Shared
	} else if target, err = d.stream(ctx, run, img, moved); err != nil {
		return "", err
	}
	t, err := readTree(ctx, d.Containerd, target)
	if err != nil {
		return "", err
	}
	if !isImage(t, img.ID) {
		return "", fmt.Errorf("docker has the image %s, the copy is %s with the configuration %s: %w", img.ID, t.target.Digest, t.config.Digest, errdefs.ErrDataLoss)
	}
	if err := t.verifyLayers(ctx, d.Containerd); err != nil {
		return "", err
	}
	names := p.missing
	if id := t.config.Digest.String(); !slices.Contains(names, id) {
		names = append([]string{id}, names...)
	}
	return result, d.record(ctx, t, names)
}

// stream receives the image as docker save sends it.
func (d *toContainerd) stream(ctx context.Context, run string, img Image, moved func(int)) (ocispec.Descriptor, error) {
	body, err := d.Docker.ImageSave(ctx, []string{img.ID})
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("docker save: %w", err)
	}
	defer body.Close()
	received, err := receive(ctx, d.Containerd, run, &countingReader{body, moved})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return received.find(ctx, d.Containerd, run, img.ID)
}

// share adds the blobs of an image to the namespace if they are in the same containerd. It returns false if they are not, or
// may not be shared.
func (d *toContainerd) share(ctx context.Context, run string, img Image) (ocispec.Descriptor, bool, error) {
	if d.docker == nil {
		return ocispec.Descriptor{}, false, nil
	}
	target := ocispec.Descriptor{Digest: digest.Digest(img.ID)}
	records, err := d.docker.ListImages(ctx)
	if err != nil {
		return target, false, err
	}
	for _, record := range records {
		if record.Target.Digest == target.Digest {
			target = record.Target
		}
	}
	t, err := readTree(ctx, d.docker, target)
	if errdefs.IsNotFound(err) || target.MediaType == "" {
		return target, false, nil // docker save says what is wrong
	}
	if err != nil {
		return target, false, err
	}
	for _, blob := range t.blobs {
		ok, err := d.Containerd.ShareBlob(ctx, run+"/"+blob.Digest.String(), blob)
		if err != nil || !ok {
			return target, false, err
		}
	}
	return target, true, nil
}

// name implements direction.
func (d *toContainerd) name(ctx context.Context, _ Image, p plan) (err error) {
	return d.record(ctx, p.tree, p.missing)
}

// record gives the image t names. The first one is the digest of its configuration: the CRI plugin finds the image by it, and
// expects it before the others.
func (d *toContainerd) record(ctx context.Context, t *tree, names []string) (err error) {
	var undo rollback.Stack
	defer undo.Rollback(ctx, &err)
	if err := t.protect(ctx, d.Containerd); err != nil {
		return err
	}
	for _, name := range names {
		before, err := d.Containerd.GetImage(ctx, name)
		switch {
		case errdefs.IsNotFound(err):
			undo.Push("remove image "+name, func(ctx context.Context) error { return d.Containerd.RemoveImage(ctx, name) })
		case err != nil:
			return err
		default:
			undo.Push("restore image "+name, func(ctx context.Context) error { return d.Containerd.PutImage(ctx, before) })
		}
		record := containerd.Image{Name: name, Target: t.target, Labels: map[string]string{managedLabel: "managed"}}
		if err := d.Containerd.PutImage(ctx, record); err != nil {
			return err
		}
		after, err := d.Containerd.GetImage(ctx, name)
		if err != nil {
			return err
		}
		if after.Target.Digest != t.target.Digest {
			return fmt.Errorf("image %s is now %s, want %s: another client has changed it: %w", name, after.Target.Digest, t.target.Digest, errdefs.ErrAborted)
		}
	}
	return nil
}

// A countingReader calls moved with the number of bytes that were read.
type countingReader struct {
	io.Reader
	moved func(int)
}

// Read implements io.Reader.
func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.moved(n)
	return n, err
}
