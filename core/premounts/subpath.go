package premounts

import (
	"context"
	"errors"
	"slices"

	"github.com/docker/docker/api/types/mount"

	"berth/core/engine"
)

// CheckImageSubPaths fails if an image that Docker itself mounts does not have the sub-path that a mount asks
// for. Docker 28.5 resolves sub-paths when it starts a container, and when it is asked for a file of one, but not
// when it creates it.
func CheckImageSubPaths(ctx context.Context, docker *engine.Conn, id string, mounts []mount.Mount) error {
	if !slices.ContainsFunc(mounts, func(m mount.Mount) bool { return m.ImageOptions != nil && m.ImageOptions.Subpath != "" }) {
		return nil
	}
	const file = "/" // any file: Docker sets up all mounts to find it
	short, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	_, err := docker.ContainerStatPath(short, id, file)
	if err == nil {
		return nil
	}
	// The response to HEAD has no body with the reason. The one to GET has.
	content, _, reason := docker.CopyFromContainer(short, id, file)
	if reason == nil {
		return errors.Join(err, content.Close())
	}
	return reason
}
