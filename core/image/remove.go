package image

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"

	"berth/core/changes"
	"berth/core/engine"
	"berth/core/image/foreign"
	"berth/core/image/pinning"
	"berth/core/labels"
)

// Remove removes the image that ref refers to, with all its tags and digests. It succeeds if
// there is no such image. If a running container uses the image, or one outside of Kubernetes,
// the error is of kind Conflict.
//
// A pinned image is removed by name only: the call removes that name, and the image with its last
// one, as docker rmi does. By ID, as the kubelet's garbage collection asks, the error is of kind
// FailedPrecondition.
//
// Of an image that is the parent of others only the names are removed. Docker keeps its
// layers for the children, does not list it any more and removes it with its last child.
func (s *Service) Remove(ctx context.Context, ref string) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	ctx, cancel := docker.WithRequestTimeout(context.WithoutCancel(ctx))
	defer cancel()
	found, err := s.find(ctx, docker, ref, byDigestPrefix)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	unlock, err := s.removals.Lock(ctx, found.ID)
	if err != nil {
		return err
	}
	defer unlock()
	defer s.cache.Invalidate(found.ID)
	start := time.Now()
	reason, kept := s.pinReasonNow(ctx, docker, inspectFacts(found)), false
	switch {
	case reason == pinning.None:
		err = s.removeAll(ctx, docker, found.ID)
	case isID(ref) || !hasName(found, ref):
		return fmt.Errorf("remove image %q: it is pinned, because %s; remove it by its name, or with docker rmi: %w", ref, reason.Explain(), errdefs.ErrFailedPrecondition)
	default:
		kept, err = s.removeName(ctx, docker, found, ref)
	}
	switch {
	case errdefs.IsNotFound(err): // removed meanwhile
	case err != nil:
		return fmt.Errorf("remove image %q: %w", ref, err)
	case kept:
		s.log.Info("name of an image removed", changes.Image(ref, found.ID), changes.Took(start))
	default:
		s.log.Info("image removed", changes.Image(ref, found.ID), slog.Int64("bytes", found.Size), changes.Took(start))
	}
	if kept {
		return nil
	}
	if err := s.Aliases.Forget(ctx, found.RepoDigests); err != nil {
		return fmt.Errorf("remove image %q: %w", ref, err)
	}
	return nil
}

// removeAll removes an image with all its names.
func (s *Service) removeAll(ctx context.Context, docker *engine.Conn, id string) error {
	_, err := docker.ImageRemove(ctx, id, image.RemoveOptions{PruneChildren: true})
	if !errdefs.IsConflict(err) {
		return err
	}
	// Docker refuses because of several names, of children, or of containers.
	force, err := s.mayForce(ctx, docker, id, err)
	if err != nil {
		return err
	}
	found, err := docker.ImageInspect(ctx, id)
	if err != nil {
		return err
	}
	names := slices.DeleteFunc(slices.Concat(found.RepoTags, found.RepoDigests), func(name string) bool { return strings.Contains(name, "<none>") })
	if len(names) == 0 && force {
		names = []string{id}
	}
	for _, name := range names {
		// NotFound is expected: with the last tag of a repository Docker removes its digests.
		if _, err := docker.ImageRemove(ctx, name, image.RemoveOptions{Force: force, PruneChildren: true}); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// removeName removes one name of an image, and the image with its last name. It returns whether
// the image is kept.
func (s *Service) removeName(ctx context.Context, docker *engine.Conn, found image.InspectResponse, ref string) (kept bool, err error) {
	for _, name := range slices.Concat(found.RepoTags, found.RepoDigests) {
		if !sameName(name, ref) {
			continue
		}
		removed, err := docker.ImageRemove(ctx, name, image.RemoveOptions{PruneChildren: true})
		if errdefs.IsConflict(err) {
			var force bool
			if force, err = s.mayForce(ctx, docker, found.ID, err); err == nil {
				removed, err = docker.ImageRemove(ctx, name, image.RemoveOptions{Force: force, PruneChildren: true})
			}
		}
		kept := !slices.ContainsFunc(removed, func(r image.DeleteResponse) bool { return r.Deleted == found.ID })
		return kept, err
	}
	return true, nil // another caller has removed the name
}

// mayForce returns whether the removal of an image, which Docker has refused with the error
// conflict, may be forced: containers of pods that have exited use the image, and no others. If
// others do, it returns conflict.
func (s *Service) mayForce(ctx context.Context, docker *engine.Conn, id string, conflict error) (bool, error) {
	// The filter also matches containers of the image's children.
	users, err := docker.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("ancestor", id))})
	if err != nil {
		return false, err
	}
	users = slices.DeleteFunc(users, func(c container.Summary) bool { return c.ImageID != id })
	for _, c := range users {
		switch {
		case foreign.Is(c):
			return false, fmt.Errorf("the container %s, which is not of a pod, uses it: %w", strings.TrimPrefix(labels.Name(c), "/"), conflict)
		case engine.BaseState(c.State) == container.StateRunning:
			return false, conflict
		}
	}
	return len(users) > 0, nil
}
