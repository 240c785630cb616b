package imagecopy

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/core/containerd"
)

// Files of an archive of docker save.
const (
	manifestFile = "manifest.json" // Docker's own format
	blobDir      = "blobs/sha256/" // of the OCI image layout, which Docker adds since 25.0
)

// An archive is what was received of a docker save. Its blobs are in containerd.
type archive struct {
	index     []byte // index.json; nil before Docker 25.0
	manifests []byte // manifest.json
	blobs     map[string]ocispec.Descriptor
	links     map[string]string // symbolic and hard links between files: layers that images share
}

// receive reads an archive and stores its blobs in containerd. run makes the names of incomplete blobs unique.
func receive(ctx context.Context, store *containerd.Client, run string, r io.Reader) (*archive, error) {
	a := &archive{blobs: map[string]ocispec.Descriptor{}, links: map[string]string{}}
	for tr := tar.NewReader(r); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, r) // what is behind the end of the archive, so that the connection is complete
			return a, err
		}
		if err != nil {
			return nil, fmt.Errorf("read the archive from docker: %w", err)
		}
		if len(a.blobs)+len(a.links) > maxBlobs {
			return nil, fmt.Errorf("the archive from docker has more than %d files: %w", maxBlobs, errdefs.ErrInvalidArgument)
		}
		name := path.Clean(header.Name)
		switch header.Typeflag {
		case tar.TypeReg:
			err = a.receiveFile(ctx, store, run, name, header.Size, tr)
		case tar.TypeSymlink:
			a.links[name] = path.Join(path.Dir(name), header.Linkname)
		case tar.TypeLink:
			a.links[name] = path.Clean(header.Linkname)
		}
		if err != nil {
			return nil, err
		}
	}
}

// receiveFile reads a file of the archive.
func (a *archive) receiveFile(ctx context.Context, store *containerd.Client, run, name string, size int64, r io.Reader) (err error) {
	var want ocispec.Descriptor
	hex, isBlob := strings.CutPrefix(name, blobDir)
	switch {
	case name == ocispec.ImageIndexFile:
		a.index, err = readLimited(r, name)
		return err
	case name == manifestFile:
		a.manifests, err = readLimited(r, name)
		return err
	case isBlob:
		want = ocispec.Descriptor{Digest: digest.NewDigestFromEncoded(digest.SHA256, hex), Size: size}
		if err := want.Digest.Validate(); err != nil {
			return fmt.Errorf("file %q in the archive from docker: %w", name, err)
		}
	case path.Base(name) == "layer.tar", path.Dir(name) == "." && path.Ext(name) == ".json":
	default:
		return nil // of Docker's format before 1.10
	}
	a.blobs[name], err = store.WriteBlob(ctx, run+"/"+name, want, r)
	if err != nil {
		return fmt.Errorf("file %q of the archive from docker: %w", name, err)
	}
	return nil
}

// blob returns the blob of a file. It follows one link: layer.tar is a link to a file.
func (a *archive) blob(name string) (ocispec.Descriptor, error) {
	name = path.Clean(name)
	if to, ok := a.links[name]; ok {
		name = to
	}
	found, ok := a.blobs[name]
	if !ok {
		return found, fmt.Errorf("the archive from docker has no file %q: %w", name, errdefs.ErrDataLoss)
	}
	return found, nil
}

// find returns the root of the image with that ID: the digest of its target or of its configuration.
func (a *archive) find(ctx context.Context, store *containerd.Client, run, id string) (ocispec.Descriptor, error) {
	if a.index == nil {
		return a.makeManifest(ctx, store, run, id)
	}
	var index ocispec.Index
	if err := json.Unmarshal(a.index, &index); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("index.json of the archive from docker: %w", err)
	}
	for _, desc := range index.Manifests {
		desc.Annotations, desc.Platform = nil, nil // names
		if desc.Digest.String() == id {
			return desc, nil
		}
		found, err := readTree(ctx, store, desc)
		if err != nil {
			return desc, err
		}
		if found.config.Digest.String() == id {
			return desc, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("the archive from docker does not contain the image %s: %w", id, errdefs.ErrDataLoss)
}

// makeManifest writes a manifest for the image with that ID: Docker before 25.0 sends none.
func (a *archive) makeManifest(ctx context.Context, store *containerd.Client, run, id string) (ocispec.Descriptor, error) {
	var list []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(a.manifests, &list); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("manifest.json of the archive from docker: %w", err)
	}
	for _, image := range list {
		config, err := a.blob(image.Config)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		if config.Digest.String() != id {
			continue
		}
		config.MediaType = ocispec.MediaTypeImageConfig
		manifest := ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{},
		}
		for _, file := range image.Layers {
			layer, err := a.blob(file)
			if err != nil {
				return ocispec.Descriptor{}, err
			}
			layer.MediaType = ocispec.MediaTypeImageLayer
			manifest.Layers = append(manifest.Layers, layer)
		}
		text, err := json.Marshal(manifest)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		desc, err := store.WriteBlob(ctx, run+"/manifest", ocispec.Descriptor{Digest: digest.FromBytes(text), Size: int64(len(text))}, bytes.NewReader(text))
		desc.MediaType = ocispec.MediaTypeImageManifest
		return desc, err
	}
	return ocispec.Descriptor{}, fmt.Errorf("the archive from docker does not contain the image %s: %w", id, errdefs.ErrDataLoss)
}

// writeArchive writes an image of containerd as an archive for docker load. It is in the OCI image layout, which Docker reads
// with the containerd image store, and has the manifest.json that it reads otherwise. With everything it has all
// platforms, else that of this node.
func writeArchive(ctx context.Context, store *containerd.Client, t *tree, names []string, everything bool, w io.Writer) error {
	tw := tar.NewWriter(w)
	blobs := append([]ocispec.Descriptor{t.config}, t.layers...)
	if everything {
		blobs = t.blobs
	}
	sent := map[digest.Digest]bool{}
	for _, blob := range blobs {
		if sent[blob.Digest] {
			continue
		}
		sent[blob.Digest] = true
		if err := tw.WriteHeader(fileHeader(blobDir+blob.Digest.Encoded(), blob.Size)); err != nil {
			return err
		}
		if err := store.ReadBlob(ctx, blob.Digest, tw); err != nil {
			return err
		}
	}
	docker := struct {
		Config           string
		RepoTags, Layers []string
	}{Config: blobDir + t.config.Digest.Encoded()}
	for _, layer := range t.layers {
		docker.Layers = append(docker.Layers, blobDir+layer.Digest.Encoded())
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, name := range names {
		if !isDigest(name) {
			docker.RepoTags = append(docker.RepoTags, name)
		}
		named := t.target
		named.Annotations = map[string]string{"io.containerd.image.name": name}
		index.Manifests = append(index.Manifests, named)
	}
	files := map[string]any{manifestFile: []any{docker}}
	if everything {
		files[ocispec.ImageIndexFile], files[ocispec.ImageLayoutFile] = index, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}
	}
	for name, content := range files {
		text, err := json.Marshal(content)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(fileHeader(name, int64(len(text)))); err != nil {
			return err
		}
		if _, err := tw.Write(text); err != nil {
			return err
		}
	}
	return tw.Close()
}

// fileHeader returns the header of a file that everyone may read.
func fileHeader(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644}
}
