// Package pause is the built-in pause image: the smallest program that can
// hold a pod's namespaces, in an image that an Engine can load. With it a node
// needs no registry to run a pod.
package pause

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
	v1 "github.com/moby/docker-image-spec/specs-go/v1"
)

// Ref is the name that the built-in image has in the Engine, so that an operator who
// finds it in docker images sees whose it is. With other bytes it gets another tag.
// The name proves nothing: other images can have it, see Is.
const Ref = name + ":" + version

const (
	name    = "berth.local/pause"
	version = "1" // also in src/build.sh
)

// The programs, as src/build.sh makes them.
//
//go:embed pause-amd64
var amd64 []byte

//go:embed pause-arm64
var arm64 []byte

// program returns the pause program for an architecture, in the words of Go and of
// image configurations.
func program(arch string) ([]byte, error) {
	switch arch {
	case "amd64":
		return amd64, nil
	case "arm64":
		return arm64, nil
	default:
		return nil, fmt.Errorf("no built-in pause image for architecture %s: %w", arch, errdefs.ErrNotImplemented)
	}
}

// Archive returns the image for an architecture, in the form of docker save.
// Its bytes, and so the ID of the image, are always the same.
func Archive(arch string) ([]byte, error) {
	layer, config, err := parts(arch)
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
	return pack([]file{{configName, 0o644, config}, {layerName, 0o644, layer}, {"manifest.json", 0o644, manifest}})
}

// Is reports whether an image, as Docker describes it, is the built-in one for an
// architecture. Its ID does not tell: that depends on Docker's image store.
func Is(found image.InspectResponse, arch string) bool {
	_, config, err := parts(arch)
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
	// As JSON, in which what is empty and what is not there are the same.
	wantText, err := json.Marshal(want.Config)
	if err != nil {
		return false
	}
	text, err := json.Marshal(found.Config)
	return err == nil && bytes.Equal(text, wantText) && slices.Equal(found.RootFS.Layers, want.RootFS.DiffIDs)
}

// parts returns the only layer of the image for an architecture, and its configuration.
func parts(arch string) (layer, config []byte, err error) {
	bin, err := program(arch)
	if err != nil {
		return nil, nil, err
	}
	layer, err = pack([]file{{"pause", 0o755, bin}})
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

// epoch is when everything in the image was made, so that it is always the same.
var epoch = time.Unix(0, 0).UTC()

// A file is one in an archive.
type file struct {
	name string
	mode int64
	data []byte
}

// pack makes a tar archive of files.
func pack(files []file) ([]byte, error) {
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
