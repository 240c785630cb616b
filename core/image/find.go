package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"

	"berth/core/engine"
)

// A match says which abbreviated IDs find an image. Names and complete IDs always do.
type match int

const (
	// byHexPrefix is by the first minPrefix or more digits of an ID, without an algorithm, as
	// docker and crictl print them. The reference of a pod never has this form: the kubelet
	// adds a tag to one that has none (applyDefaultImageTag in pkg/kubelet/images).
	byHexPrefix match = iota
	// byDigestPrefix is byHexPrefix, and by such digits after "sha256:". The author of a pod
	// can write this form, and the kubelet passes it on as a name with a tag. It is allowed
	// only for calls that never get a pod's reference, because it could find the image of
	// another tenant.
	byDigestPrefix
)

// minPrefix is how many digits of an ID are needed: docker prints 12, crictl 13.
const minPrefix = 12

// errShortPrefix is for abbreviated IDs with fewer digits that find an image.
var errShortPrefix = fmt.Errorf("an abbreviated image ID must have at least %d digits: %w", minPrefix, errdefs.ErrInvalidArgument)

// isShortPrefix reports whether err is about too few digits of an ID.
func isShortPrefix(err error) bool { return errors.Is(err, errShortPrefix) }

// find inspects the image that ref refers to: by tag, by digest, by ID, or by an abbreviated
// ID that allowed permits. The error is of kind NotFound if there is no such image.
//
// Docker itself accepts any prefix of an ID.
func (s *Service) find(ctx context.Context, docker *engine.Conn, ref string, allowed match) (image.InspectResponse, error) {
	if ref == "" {
		return image.InspectResponse{}, fmt.Errorf("image reference must be set: %w", errdefs.ErrInvalidArgument)
	}
	found, err := docker.ImageInspect(ctx, ref)
	for _, pulled := range s.Aliases.Pulled(ref) {
		if errdefs.IsNotFound(err) {
			found, err = docker.ImageInspect(ctx, pulled)
		}
	}
	if err != nil {
		return found, fmt.Errorf("image %q: %w", ref, err)
	}
	digits, hasAlgorithm := strings.CutPrefix(ref, algorithm)
	switch {
	case isID(ref), !isHex(digits), hasName(found, ref):
		return found, nil
	// Otherwise Docker has taken ref for a prefix of an ID.
	case len(digits) < minPrefix:
		return image.InspectResponse{}, fmt.Errorf("image %q: %w", ref, errShortPrefix)
	case hasAlgorithm && allowed != byDigestPrefix:
		return image.InspectResponse{}, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	return found, nil
}

// hasName reports whether ref is a tag or digest of an image.
func hasName(found image.InspectResponse, ref string) bool {
	return slices.ContainsFunc(slices.Concat(found.RepoTags, found.RepoDigests), func(name string) bool { return sameName(name, ref) })
}

// sameName reports whether two image names refer to the same image, whether or not they
// are abbreviated (docker.io, library, latest) and have a tag besides a digest.
func sameName(a, b string) bool {
	refA, err := reference.ParseDockerRef(a)
	if err != nil {
		return false
	}
	refB, err := reference.ParseDockerRef(b)
	return err == nil && refA.String() == refB.String()
}

// algorithm is the digest algorithm of image IDs.
const algorithm = "sha256:"

// isID reports whether ref is a complete image ID, with or without its algorithm.
func isID(ref string) bool {
	digits := strings.TrimPrefix(ref, algorithm)
	return len(digits) == 64 && isHex(digits)
}

func isHex(text string) bool { return strings.Trim(text, "0123456789abcdef") == "" }
