package image

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/core/engine"
	"berth/core/image/mirror"
	"berth/core/image/pullerror"
	"berth/core/image/verify"
	"berth/core/shorten"
)

// A PullPolicy says from where images are pulled, and who must agree.
type PullPolicy struct {
	Mirrors  mirror.Table     // tried before the registry itself
	Verifier *verify.Verifier // nil for nobody
}

// SetPullPolicy replaces the policy. A pull that has begun keeps the one that it began with.
func (s *Service) SetPullPolicy(p PullPolicy) { s.pullPolicy.Store(&p) }

// A pullRequest is one caller's request to pull an image.
type pullRequest struct {
	ref             string // as requested
	header          string // the credentials for the registry in ref, for no other one
	pod             verify.Pod
	nodeCredentials bool
	policy          PullPolicy
}

// pullFromSources pulls an image from the first mirror that has it or, if there is none, from the
// registry that its name names.
func (s *Service) pullFromSources(ctx context.Context, docker *engine.Conn, r *pullRequest) (string, error) {
	requested, err := reference.ParseDockerRef(r.ref)
	if err != nil {
		return "", fmt.Errorf("image %q: %w: %w", r.ref, err, errdefs.ErrInvalidArgument)
	}
	var failures []string
	for _, source := range r.policy.Mirrors.Sources(requested) {
		id, err := s.pullFromMirror(ctx, docker, r, requested, source)
		if err == nil || ctx.Err() != nil || engine.OutcomeUnknown(err) || pullerror.IsRefused(err) {
			return id, err
		}
		s.log.Warn("image cannot be pulled from a mirror, trying the next source", slog.String("image", r.ref), slog.String("mirror", source.String()), slog.Any("err", err))
		failures = append(failures, fmt.Sprintf("mirror %s: %v", reference.Domain(source), err))
	}
	var id string
	if r.policy.Verifier == nil {
		id, err = s.pulls.Do(ctx, r.ref+"\x00"+r.header, func(ctx context.Context) (string, error) {
			return s.pull(ctx, docker, r.ref, r.header)
		})
	} else {
		id, err = s.pullByDigest(ctx, docker, r, requested, requested, r.header)
	}
	if err != nil && len(failures) > 0 {
		err = shorten.Error(fmt.Errorf("%w; before that, %s", err, strings.Join(failures, "; ")))
	}
	return id, err
}

// pullFromMirror pulls an image by its name at a mirror. The kubelet's credentials are for the
// registry and not for the mirror, so only those of the node are used.
func (s *Service) pullFromMirror(ctx context.Context, docker *engine.Conn, r *pullRequest, requested, source reference.Named) (string, error) {
	auth, err := s.credentials.Credentials(ctx, source.String(), nil, r.nodeCredentials)
	if err != nil {
		return "", err
	}
	header, err := registry.EncodeAuthConfig(auth)
	if err != nil {
		return "", err
	}
	id, err := s.pullByDigest(ctx, docker, r, requested, source, header)
	if err != nil && (strings.Contains(err.Error(), "server gave HTTP response") || strings.Contains(err.Error(), "x509:")) {
		host := reference.Domain(source)
		err = fmt.Errorf("%w (Docker decides which registries may be insecure: add %s to insecure-registries in daemon.json, or its CA as /etc/docker/certs.d/%s/ca.crt)", err, host, host)
	}
	return id, err
}

// pullByDigest pulls, from source, the image that a caller has requested. It asks the registry for the
// digest, and the verifiers whether they allow it, and pulls by that digest: what is pulled is
// what was verified, and a mirror's name gets no tag in Docker. Pulls are shared, verdicts are not:
// they can depend on the pod.
func (s *Service) pullByDigest(ctx context.Context, docker *engine.Conn, r *pullRequest, requested, source reference.Named, header string) (string, error) {
	pinned, ok := source.(reference.Canonical)
	if !ok || r.policy.Verifier != nil {
		descriptor, err := s.resolve(ctx, docker, source, header)
		if err != nil {
			return "", err
		}
		if ok && descriptor.Digest != pinned.Digest() {
			return "", pullerror.New(source.String(), fmt.Errorf("the registry has %s under this digest", descriptor.Digest))
		}
		if pinned, err = reference.WithDigest(reference.TrimNamed(source), descriptor.Digest); err != nil {
			return "", pullerror.New(source.String(), err)
		}
		if r.policy.Verifier != nil {
			err := r.policy.Verifier.Verify(ctx, requested.String(), descriptor, r.pod)
			if err != nil {
				return "", pullerror.Refused(requested.String(), descriptor.Digest.String(), err)
			}
		}
	}
	return s.pulls.Do(ctx, strings.Join([]string{requested.String(), pinned.String(), header}, "\x00"), func(ctx context.Context) (string, error) {
		if _, err := s.pull(ctx, docker, pinned.String(), header); err != nil {
			return "", err
		}
		return s.nameAsRequested(ctx, docker, requested, pinned)
	})
}

// resolve returns the descriptor of the manifest or index that a registry has under a name. On
// Docker Hub it counts as a pull.
func (s *Service) resolve(ctx context.Context, docker *engine.Conn, ref reference.Named, header string) (ocispec.Descriptor, error) {
	return s.resolves.Do(ctx, ref.String()+"\x00"+header, func(ctx context.Context) (ocispec.Descriptor, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, s.PullProgressTimeout, errStalled)
		defer cancel()
		found, err := docker.DistributionInspect(ctx, ref.String(), header)
		if err != nil {
			return ocispec.Descriptor{}, s.pullFailure(ctx, ref.String(), err)
		}
		if err := found.Descriptor.Digest.Validate(); err != nil {
			return ocispec.Descriptor{}, pullerror.New(ref.String(), fmt.Errorf("digest %q of the registry: %w", shorten.Text(found.Descriptor.Digest.String()), err))
		}
		return found.Descriptor, nil
	})
}

// nameAsRequested gives an image that was pulled by a digest the name that was requested. Until then, and
// after a crash, it is an image without a tag, which the next pull finds and the kubelet may remove.
func (s *Service) nameAsRequested(ctx context.Context, docker *engine.Conn, requested reference.Named, pinned reference.Canonical) (string, error) {
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	found, err := s.find(ctx, docker, pinned.String(), byHexPrefix)
	if err != nil {
		return "", err
	}
	if !hasName(found, pinned.String()) {
		return "", fmt.Errorf("pull image %q: docker has pulled image %s, which has not that digest: %w", pinned, found.ID, errdefs.ErrFailedPrecondition)
	}
	if pinned.Name() != requested.Name() {
		name, err := reference.WithDigest(reference.TrimNamed(requested), pinned.Digest())
		if err == nil {
			err = s.Aliases.Add(ctx, pinned, name)
		}
		if err != nil {
			return "", fmt.Errorf("pull image %q: %w", requested, err)
		}
	}
	if _, ok := requested.(reference.Tagged); ok {
		defer s.cache.Invalidate(found.ID)
		if err := docker.ImageTag(ctx, found.ID, reference.FamiliarString(requested)); err != nil {
			return "", fmt.Errorf("tag image %s as %q: %w", found.ID, requested, err)
		}
	}
	return found.ID, nil
}

// forgetAliases forgets the names of images that are in no list any more.
func (s *Service) forgetAliases(ctx context.Context, known map[string]int64, list []image.Summary) {
	if len(known) == 0 {
		return
	}
	present := map[string]bool{}
	for _, row := range list {
		present[row.ID] = true
		for _, digest := range row.RepoDigests {
			present[digest] = true
		}
	}
	if err := s.Aliases.Retain(ctx, known, present); err != nil {
		s.log.Warn("names of images that were removed cannot be forgotten", slog.Any("err", err))
	}
}
