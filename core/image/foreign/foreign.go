// Package foreign knows the containers that do not belong to pods, such as those of docker run and
// docker compose, and the images that they use.
//
// Run keeps a Containers current: by a list at first, by the Engine's events, and by another list
// from time to time, because an Engine drops events of a client that reads them too slowly. So a
// list of images needs no list of containers. A removal lists the users of its image itself.
package foreign

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"berth/core/engine"
	"berth/core/image/eventstream"
	"berth/core/labels"
)

// listInterval is how often all containers are listed.
const listInterval = 10 * time.Minute

// Containers are the containers outside of Kubernetes.
type Containers struct {
	engine *engine.Engine
	log    *slog.Logger

	mu       sync.Mutex         // guards following
	users    map[string]usedFor // by container ID
	byImage  map[string]string  // of ByImage, nil after a change
	revision uint64
}

// A usedFor is what is known of a container.
type usedFor struct{ name, image string }

// New returns a Containers without any, which Run fills.
func New(docker *engine.Engine, log *slog.Logger) *Containers {
	return &Containers{engine: docker, log: log, users: map[string]usedFor{}}
}

// ByImage returns the name of one container for each image that is in use, by image ID. The map must
// not be changed.
func (c *Containers) ByImage() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byImage != nil {
		return c.byImage
	}
	names := make(map[string]string, len(c.users))
	for _, user := range c.users {
		if known, ok := names[user.image]; !ok || user.name < known {
			names[user.image] = user.name
		}
	}
	c.byImage = names
	return names
}

// Revision returns a number that changes with the result of ByImage.
func (c *Containers) Revision() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.revision
}

// changedLocked notes a change of users.
func (c *Containers) changedLocked() {
	c.byImage = nil
	c.revision++
}

// Is reports whether row, an entry of the Engine's list, is a container outside of Kubernetes. The
// helper containers of berth are not.
func Is(row container.Summary) bool {
	if engine.IsHelper(row) {
		return false
	}
	set, err := labels.ReadSummary(row)
	return err != nil || set.Kind == ""
}

// Run keeps c current until ctx ends, and returns nil.
func (c *Containers) Run(ctx context.Context) error {
	return eventstream.Run(ctx, c.engine, c.log, func(level slog.Level, err error) {
		c.log.Log(ctx, level, "cannot follow the containers outside of kubernetes, will retry", slog.Any("err", err))
	}, c.follow)
}

// follow lists the containers and applies events until the stream breaks.
func (c *Containers) follow(ctx context.Context, conn *engine.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	// Subscribe before the list, so that no change between the two is missed.
	messages, errs := conn.Events(ctx, events.ListOptions{Filters: filters.NewArgs(
		filters.Arg("type", string(events.ContainerEventType)),
		filters.Arg("event", string(events.ActionCreate)),
		filters.Arg("event", string(events.ActionDestroy)),
	)})
	if err := c.list(ctx, conn); err != nil {
		return err
	}
	again := time.NewTicker(listInterval)
	defer again.Stop()
	for {
		select {
		case m := <-messages:
			if err := c.apply(ctx, conn, m); err != nil {
				return err
			}
		case err := <-errs:
			return errors.Join(eventstream.ErrEnded, err)
		case <-again.C:
			if err := c.list(ctx, conn); err != nil {
				return err
			}
		}
	}
}

// list replaces what is known by the Engine's list.
func (c *Containers) list(ctx context.Context, conn *engine.Conn) error {
	ctx, cancel := conn.WithRequestTimeout(ctx)
	defer cancel()
	rows, err := conn.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	users := map[string]usedFor{}
	for _, row := range rows {
		if Is(row) {
			users[row.ID] = usedFor{strings.TrimPrefix(labels.Name(row), "/"), row.ImageID}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !maps.Equal(users, c.users) {
		c.users = users
		c.changedLocked()
	}
	return nil
}

// apply applies an event.
func (c *Containers) apply(ctx context.Context, conn *engine.Conn, m events.Message) error {
	id := m.Actor.ID
	if m.Action == events.ActionDestroy {
		c.mu.Lock()
		defer c.mu.Unlock()
		if _, ok := c.users[id]; ok { // else it is of a pod
			delete(c.users, id)
			c.changedLocked()
		}
		return nil
	}
	// An event has the labels of the container among its attributes, and its name.
	if !Is(container.Summary{ID: id, Names: []string{"/" + m.Actor.Attributes["name"]}, Labels: m.Actor.Attributes}) {
		return nil
	}
	ctx, cancel := conn.WithRequestTimeout(ctx)
	defer cancel()
	found, err := conn.ContainerInspect(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("inspect %s: %w", id, err)
	case found.ContainerJSONBase == nil:
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users[id] = usedFor{strings.TrimPrefix(found.Name, "/"), found.Image}
	c.changedLocked()
	return nil
}
