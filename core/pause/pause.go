// Package pause is the built-in pause image: the smallest program that can hold a pod's
// namespaces, as an image that Docker can load. With it a node needs no registry to run a
// pod. Archive returns the image for docker load, Is recognises it in Docker.
package pause

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
	v1 "github.com/moby/docker-image-spec/specs-go/v1"
)

// Ref is the name of the built-in image in Docker, so that an operator sees in the output
// of docker images where it comes from. An image with other content gets another tag. The
// name alone proves nothing: other images can have it, see Is.
const Ref = name + ":" + version

const (
	name    = "berth.local/pause"
	version = "1" // also in src/build.sh
)

// The programs, as built by src/build.sh.
//
//go:embed pause-amd64 pause-arm pause-arm64 pause-ppc64le pause-riscv64 pause-s390x
var programs embed.FS

// program returns the pause program for an architecture, which is named as GOARCH and as
// in OCI image configurations. The error is of kind NotImplemented for other ones.
func program(arch string) ([]byte, error) {
	binary, err := programs.ReadFile("pause-" + arch)
	if err != nil {
		return nil, fmt.Errorf("no built-in pause image for architecture %s: %w", arch, errdefs.ErrNotImplemented)
	}
	return binary, nil
}

// Archive returns the image for an architecture in the format of docker save. Its bytes,
// and so the ID of the image, are always the same. The error is of kind NotImplemented for
// an architecture without a built-in image.
func Archive(arch string) ([]byte, error) {
	layer, config, err := build(arch)
	if err != nil {
		return nil, err
	}
	configName, layerName := digest(config)+".json", digest(layer)+"/layer.tar"
	manifest, err := json.Marshal([]map[string]any{{
		"Config": configName, "RepoTags": []string{Ref}, "Layers": []string{layerName},
	}})
	if err != nil {
		return nil, err
	}
	return tarball([]file{{configName, 0o644, config}, {layerName, 0o644, layer}, {"manifest.json", 0o644, manifest}})
}

// IsBuiltin reports whether an inspected image is the built-in one for an architecture. It
// compares the configuration and layers, not the ID, which depends on Docker's image store.
func IsBuiltin(found image.InspectResponse, arch string) bool {
	_, config, err := build(arch)
	if err != nil || found.Config == nil || found.Architecture != arch {
		return false
	}
	var want struct {
		Config v1.DockerOCIImageConfig
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(config, &want); err != nil {
		return false
	}
	// Compared as JSON, which does not distinguish empty from missing fields.
	wantJSON, err := json.Marshal(want.Config)
	if err != nil {
		return false
	}
	foundJSON, err := json.Marshal(found.Config)
	return err == nil && bytes.Equal(foundJSON, wantJSON) && slices.Equal(found.RootFS.Layers, want.RootFS.DiffIDs)
}

// build returns the only layer of the image for an architecture, and its configuration.
func build(arch string) (layer, config []byte, err error) {
	binary, err := program(arch)
	if err != nil {
		return nil, nil, err
	}
	layer, err = tarball([]file{{"pause", 0o755, binary}})
	if err != nil {
		return nil, nil, err
	}
	config, err = json.Marshal(map[string]any{
		"architecture": arch,
		"os":           "linux",
		"created":      epoch.Format(time.RFC3339),
		"config": map[string]any{
			"Entrypoint": []string{"/pause"},
			"User":       "65535:65535",
			"WorkingDir": "/",
			"Labels": map[string]string{
				"org.opencontainers.image.title":   "berth built-in pause",
				"org.opencontainers.image.version": version,
			},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
		"history": []map[string]any{{"created": epoch.Format(time.RFC3339), "created_by": "berth core/pause"}},
	})
	return layer, config, err
}

// epoch is the creation time of everything in the image, so that builds are reproducible.
var epoch = time.Unix(0, 0).UTC()

// A file is an entry of a tar archive.
type file struct {
	name string
	mode int64
	data []byte
}

// tarball returns a tar archive of files.
func tarball(files []file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		err := w.WriteHeader(&tar.Header{
			Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: epoch, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR,
		})
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// digest returns the SHA-256 of data in hexadecimal.
func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
