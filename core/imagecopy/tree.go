package imagecopy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/core/containerd"
)

// Limits of what an image may make berthd read into memory.
const (
	maxMetadata  = 8 << 20 // bytes of a manifest, an index or a configuration; registries allow 4 MiB
	maxBlobs     = 20_000
	maxNestedIdx = 4
)

// A tree is an image in the content store of containerd.
type tree struct {
	target   ocispec.Descriptor
	manifest ocispec.Descriptor   // for this node; target itself, or below that index
	config   ocispec.Descriptor   // of manifest
	layers   []ocispec.Descriptor // of manifest
	blobs    []ocispec.Descriptor // all that are there, each once, children before their parents
	labels   map[digest.Digest]map[string]string
}

// size returns the bytes of all blobs.
func (t *tree) size() (n int64) {
	for _, blob := range t.blobs {
		n += blob.Size
	}
	return n
}

// A document is a manifest or an index, by its fields.
type document struct {
	MediaType string               `json:"mediaType"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	Config    ocispec.Descriptor   `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
}

// A treeReader reads a tree.
type treeReader struct {
	store *containerd.Client
	tree  *tree
	seen  map[digest.Digest]bool
	exact bool  // manifest is for the architecture of this node
	gap   error // why a manifest is incomplete
}

// readTree reads the image below target. The manifests and blobs of other platforms may be missing, as they are after a
// pull, but one platform must be complete: that of this node is preferred. The error is of kind NotFound if none is.
func readTree(ctx context.Context, store *containerd.Client, target ocispec.Descriptor) (*tree, error) {
	r := treeReader{store: store, tree: &tree{target: target, labels: map[digest.Digest]map[string]string{}}, seen: map[digest.Digest]bool{}}
	if _, err := r.read(ctx, target, 0); err != nil {
		return nil, err
	}
	switch {
	case r.tree.manifest.Digest != "":
		return r.tree, nil
	case r.gap != nil:
		return nil, r.gap
	default:
		return nil, fmt.Errorf("%s has no manifest of an image: %w", target.Digest, errdefs.ErrNotFound)
	}
}

// read reads what is below a manifest or an index. It returns false if that is not there.
func (r *treeReader) read(ctx context.Context, desc ocispec.Descriptor, depth int) (bool, error) {
	if depth > maxNestedIdx || len(r.seen) > maxBlobs {
		return false, fmt.Errorf("image %s has more than %d blobs or %d levels: %w", r.tree.target.Digest, maxBlobs, maxNestedIdx, errdefs.ErrInvalidArgument)
	}
	if r.seen[desc.Digest] {
		return true, nil
	}
	text, err := readSmall(ctx, r.store, desc.Digest)
	if errdefs.IsNotFound(err) {
		r.gap = err
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var doc document
	if err := json.Unmarshal(text, &doc); err != nil {
		return false, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	labels := map[string]string{}
	for i, child := range doc.Manifests {
		there, err := r.read(ctx, child, depth+1)
		if err != nil {
			return false, err
		}
		if there {
			labels[fmt.Sprintf("containerd.io/gc.ref.content.m.%d", i)] = child.Digest.String()
		}
	}
	if len(doc.Manifests) == 0 {
		if labels, err = r.readManifest(ctx, desc, doc); err != nil {
			return false, err
		}
	}
	desc.Size = int64(len(text))
	r.add(desc)
	r.tree.labels[desc.Digest] = labels
	return true, nil
}

// readManifest finds the blobs of a manifest and returns the labels that keep them from the garbage collection.
func (r *treeReader) readManifest(ctx context.Context, desc ocispec.Descriptor, doc document) (map[string]string, error) {
	labels, complete := map[string]string{}, true
	find := func(label string, blob *ocispec.Descriptor) error {
		size, err := r.store.Stat(ctx, blob.Digest)
		switch {
		case errdefs.IsNotFound(err):
			complete = false
			r.gap = fmt.Errorf("blob %s of the image is missing in containerd (with discard_unpacked_layers containerd keeps no layers): %w", blob.Digest, errdefs.ErrNotFound)
		case err != nil:
			return err
		default:
			blob.Size = size
			labels["containerd.io/gc.ref.content."+label] = blob.Digest.String()
			r.add(*blob)
		}
		return nil
	}
	if err := find("config", &doc.Config); err != nil {
		return nil, err
	}
	for i := range doc.Layers {
		if err := find(fmt.Sprintf("l.%d", i), &doc.Layers[i]); err != nil {
			return nil, err
		}
	}
	if !complete || r.exact {
		return labels, nil
	}
	config, err := readConfig(ctx, r.store, doc.Config.Digest)
	if err != nil {
		return nil, err
	}
	if config.OS == "linux" && len(config.RootFS.DiffIDs) == len(doc.Layers) { // not an attestation
		r.exact = config.Architecture == runtime.GOARCH
		if r.exact || r.tree.manifest.Digest == "" {
			r.tree.manifest, r.tree.config, r.tree.layers = desc, doc.Config, doc.Layers
		}
	}
	return labels, nil
}

// add adds a blob that is there.
func (r *treeReader) add(blob ocispec.Descriptor) {
	if !r.seen[blob.Digest] {
		r.seen[blob.Digest] = true
		r.tree.blobs = append(r.tree.blobs, blob)
	}
}

// readConfig reads the configuration of an image.
func readConfig(ctx context.Context, store *containerd.Client, blob digest.Digest) (config ocispec.Image, err error) {
	text, err := readSmall(ctx, store, blob)
	if err == nil {
		err = json.Unmarshal(text, &config)
	}
	if err != nil {
		return config, fmt.Errorf("configuration %s of the image: %w", blob, err)
	}
	return config, nil
}

// readSmall reads a blob of a few bytes.
func readSmall(ctx context.Context, store *containerd.Client, blob digest.Digest) ([]byte, error) {
	size, err := store.Stat(ctx, blob)
	if err != nil {
		return nil, err
	}
	if size > maxMetadata {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are allowed for a manifest or configuration: %w", blob, size, maxMetadata, errdefs.ErrInvalidArgument)
	}
	var text bytes.Buffer
	if err := store.ReadBlob(ctx, blob, &text); err != nil {
		return nil, err
	}
	return text.Bytes(), nil
}

// verifyLayers compares uncompressed layers with the digests in the configuration. Compressed ones are in the manifest
// that the registry or the builder has made.
func (t *tree) verifyLayers(ctx context.Context, store *containerd.Client) error {
	config, err := readConfig(ctx, store, t.config.Digest)
	if err != nil {
		return err
	}
	for i, layer := range t.layers {
		uncompressed := strings.HasSuffix(layer.MediaType, ".tar") // OCI's and Docker's media types end in +gzip, +zstd or .gzip
		if want := config.RootFS.DiffIDs[i]; uncompressed && layer.Digest != want {
			return fmt.Errorf("layer %d has the digest %s, the configuration of the image says %s: %w", i, layer.Digest, want, errdefs.ErrDataLoss)
		}
	}
	return nil
}

// protect sets the labels that keep the blobs of the tree as long as its target.
func (t *tree) protect(ctx context.Context, store *containerd.Client) error {
	for blob, labels := range maps.All(t.labels) {
		if len(labels) == 0 {
			continue
		}
		if err := store.LabelBlob(ctx, blob, labels); err != nil {
			return err
		}
	}
	return nil
}

// readLimited reads r to its end.
func readLimited(r io.Reader, what string) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxMetadata+1))
	if err == nil && len(text) > maxMetadata {
		err = errors.New("it is too large")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	return text, nil
}
