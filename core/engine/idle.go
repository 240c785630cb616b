package engine

import (
	"context"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"berth/core/labels"
)

// Idle makes a container of an image that never runs and is no pod's, with a
// label that tells what it is for, and returns its ID.
func (c *Conn) Idle(ctx context.Context, image, key, value string) (string, error) {
	made, err := c.ContainerCreate(ctx, &container.Config{
		Image: image, Entrypoint: []string{"/"}, NetworkDisabled: true, Labels: labels.Idle(key, value),
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}, &container.HostConfig{NetworkMode: "none", LogConfig: container.LogConfig{Type: "none"}}, nil, nil, "")
	return made.ID, err
}

// Labelled returns the values of the label key of all containers that have it,
// running or not, by ID.
func (c *Conn) Labelled(ctx context.Context, key string) (map[string]string, error) {
	ctx, cancel := c.Short(ctx)
	defer cancel()
	list, err := c.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", key))})
	if err != nil {
		return nil, err
	}
	found := make(map[string]string, len(list))
	for _, row := range list {
		found[row.ID] = row.Labels[key]
	}
	return found, nil
}
