package image

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"

	"berth/core/changes"
	"berth/core/engine"
)

// Remove removes the image that ref refers to, with all its tags and digests. It succeeds if
// there is no such image. If a running container uses the image, the error is of kind
// Conflict.
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
	start := time.Now()
	_, err = docker.ImageRemove(ctx, found.ID, image.RemoveOptions{Force: true, PruneChildren: true})
	if errdefs.IsConflict(err) {
		err = s.untag(ctx, docker, found.ID, err)
	}
	switch {
	case errdefs.IsNotFound(err): // removed meanwhile
	case err != nil:
		return fmt.Errorf("remove image %q: %w", ref, err)
	default:
		s.log.Info("image removed", changes.Image(ref, found.ID), slog.Int64("bytes", found.Size), changes.Took(start))
	}
	return nil
}

// untag removes all names of an image that Docker refuses to remove by its ID. If the reason
// is a running container, it returns conflict, the error of the refusal.
func (s *Service) untag(ctx context.Context, docker *engine.Conn, id string, conflict error) error {
	// The filter also matches containers of the image's children.
	running, err := docker.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("ancestor", id))})
	if err != nil {
		return err
	}
	if slices.ContainsFunc(running, func(c container.Summary) bool { return c.ImageID == id }) {
		return conflict
	}
	found, err := docker.ImageInspect(ctx, id)
	if err != nil {
		return err
	}
	for _, name := range slices.Concat(found.RepoTags, found.RepoDigests) {
		// NotFound is expected: with the last tag of a repository Docker removes its digests.
		if _, err := docker.ImageRemove(ctx, name, image.RemoveOptions{Force: true, PruneChildren: true}); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}
