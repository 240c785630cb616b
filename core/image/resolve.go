package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"

	"berth/core/restore"
	"berth/core/todocker"
)

// Resolve returns the local image that ref refers to, for a container that runs or mounts
// it. userRef is the reference that the user wrote; it selects the digest in Ref. The error
// is of kind NotFound if the image is not on the node.
func (s *Service) Resolve(ctx context.Context, ref, userRef string) (todocker.Image, error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return todocker.Image{}, err
	}
	images, known := s.cache.Find(docker, ref)
	if out, ok := s.contents.Get(known); ok {
		return s.withNames(out, known.Inspected.Tags, known.Inspected.Digests, userRef), nil
	}
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	found, err := s.find(ctx, docker, ref, byHexPrefix)
	if err != nil {
		return todocker.Image{}, err
	}
	if err := checkConfig(found); err != nil {
		return todocker.Image{}, err
	}
	out := content(found)
	if known != nil && known.ID == out.ID {
		s.contents.Put(images, known, out)
	}
	return s.withNames(out, found.RepoTags, found.RepoDigests, userRef), nil
}

// withNames returns an image with its names, tags and digests, and with the one that the user has asked for.
func (s *Service) withNames(out todocker.Image, tags, digests []string, userRef string) todocker.Image {
	digests = s.Aliases.Digests(tags, digests)
	out.Ref, out.Names = repoDigest(digests, userRef, out.ID), slices.Concat(tags, digests)
	return out
}

// content returns what an inspect says of an image, but for its names.
func content(found image.InspectResponse) todocker.Image {
	out := todocker.Image{ID: found.ID, User: defaultUser(found), Size: found.Size}
	if found.Config != nil {
		out.IsCheckpoint = restore.HasMark(found.Config.Labels)
		if command := slices.Concat(found.Config.Entrypoint, found.Config.Cmd); len(command) > 0 {
			out.HasCommand, out.HasEntrypoint, out.Program = true, len(found.Config.Entrypoint) > 0, command[0]
		}
	}
	// The directories of overlay2; other storage drivers have none.
	if data := found.GraphDriver.Data; data["UpperDir"] != "" {
		out.Layers = []string{data["UpperDir"]}
		if data["LowerDir"] != "" {
			out.Layers = append(out.Layers, strings.Split(data["LowerDir"], ":")...)
		}
	}
	return out
}

const (
	// maxLabels bounds the labels of an image, in bytes. Docker copies them to each
	// container and sends them with each of its events and in each list.
	maxLabels = 256 << 10
	// maxConfig bounds the configuration of an image as JSON, in bytes. Docker copies it to
	// each container, too, and sends most of it with each inspect.
	maxConfig = 1 << 20
)

// checkConfig refuses an image whose containers would make all answers of Docker large.
func checkConfig(found image.InspectResponse) error {
	if found.Config == nil {
		return nil
	}
	size := 0
	for k, v := range found.Config.Labels {
		size += len(k) + len(v)
	}
	if size > maxLabels {
		return fmt.Errorf("image %s has %d bytes of labels: at most %d are supported: %w", found.ID, size, maxLabels, errdefs.ErrFailedPrecondition)
	}
	text, err := json.Marshal(found.Config)
	if err != nil {
		return fmt.Errorf("configuration of image %s: %w", found.ID, err)
	}
	if len(text) > maxConfig {
		return fmt.Errorf("image %s has a configuration of %d bytes: at most %d are supported: %w", found.ID, len(text), maxConfig, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// repoDigest returns the digest in the repository of userRef or, if there is none, the first
// digest or id.
func repoDigest(digests []string, userRef, id string) string {
	fallback := id
	if len(digests) > 0 && !strings.Contains(digests[0], "<none>") {
		fallback = digests[0]
	}
	user, err := reference.ParseNormalizedNamed(userRef)
	if err != nil {
		return fallback
	}
	for _, digest := range digests {
		if named, err := reference.ParseNormalizedNamed(digest); err == nil && named.Name() == user.Name() {
			return digest
		}
	}
	return fallback
}
