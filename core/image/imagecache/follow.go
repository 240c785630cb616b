package imagecache

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"berth/core/engine"
	"berth/core/image/eventstream"
	"berth/core/panics"
	"berth/core/sleep"
)

const (
	// auditInterval is how often the Engine's list is compared with the cache: an Engine drops
	// events of a client that reads them too slowly, without telling it, and some changes have no
	// event, such as a build without a tag (docker 20.10).
	auditInterval = 30 * time.Second
	// auditsPerSync is every how many audits all images are inspected again: after a lost event a
	// list of the containerd image store may be as it was, although the image has one digest more.
	auditsPerSync = 20
	// eventPause is how long a read waits after a change for further ones: a docker system prune
	// causes hundreds of events.
	eventPause = 100 * time.Millisecond
)

// Run keeps the cache current until ctx ends, and returns nil.
func (c *Cache) Run(ctx context.Context) error {
	return eventstream.Run(ctx, c.engine, c.log, func(level slog.Level, err error) {
		c.log.Log(ctx, level, "cannot follow the images of docker, will retry; until then each request for images is passed on to docker", slog.Any("err", err))
	}, c.follow)
}

// follow keeps the cache current over one connection. It returns when the event stream breaks, a
// read fails or the connection is replaced.
func (c *Cache) follow(ctx context.Context, conn *engine.Conn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Subscribe before the first read, so that no change between the two is missed.
	messages, errs := conn.Events(ctx, events.ListOptions{Filters: filters.NewArgs(filters.Arg("type", string(events.ImageEventType)))})
	c.attach(conn)
	ended := make(chan struct{})
	panics.Go(c.log, func() {
		defer close(ended)
		defer c.detach() // at once, while a read may be in progress
		for {
			select {
			case m := <-messages:
				c.Invalidate(m.Actor.ID)
			case err := <-errs:
				cancel(errors.Join(eventstream.ErrEnded, err))
				return
			}
		}
	})
	err := panics.Try(c.log, func() error { return c.readLoop(ctx, conn) })
	cancel(err) // ends the stream
	<-ended
	return context.Cause(ctx)
}

// readLoop reads at first, after each change, and for each audit.
func (c *Cache) readLoop(ctx context.Context, conn *engine.Conn) error {
	nextAudit := time.Now().Add(c.auditInterval)
	for audits := 1; ; {
		c.mu.Lock()
		valid, changed := c.validLocked(), c.changed
		c.mu.Unlock()
		if !valid {
			if _, err := c.readChange(ctx, conn, changed); err != nil {
				return err
			}
		}
		pause, cancel := context.WithDeadline(ctx, nextAudit)
		c.engine.WaitReplaced(pause, conn, c.wake)
		audit := pause.Err() != nil
		cancel()
		switch current, err := c.engine.Conn(); {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil || current != conn:
			return eventstream.ErrReplaced
		case !audit:
			if err := sleep.WithContext(ctx, eventPause); err != nil {
				return err
			}
			continue
		}
		nextAudit = time.Now().Add(c.auditInterval)
		s := changes
		if audits++; audits%auditsPerSync == 0 {
			s = everything
		}
		if _, err := c.read(ctx, conn, s); err != nil {
			return err
		}
	}
}
