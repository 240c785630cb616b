// Package imagecache holds what the Engine says of its images in memory, so that list and status
// requests of the CRI need no call of the Engine.
//
// Its main type is Cache. Run fills it by a list of all images and an inspect of each, and keeps it
// current: by the Engine's events, by Invalidate after each change that berth makes itself, and by
// a periodic audit against the Engine's list. A change does not update the cache. It makes it
// invalid until a list that was requested after the change has been read, which Run does soon and
// List at once. So the order of events, and what each version of the Engine says in them, does not
// matter.
//
// Every read has a generation. The cache is valid if its read began after the newest change and
// over the current event stream. Without an event stream, and until the first read over a new one
// has finished, List reads from the Engine each time and Find finds nothing. Nothing in the cache
// is persistent.
package imagecache

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/docker/docker/api/types/image"
	"github.com/prometheus/client_golang/prometheus"

	"berth/core/engine"
	"berth/core/singleflight"
)

// Config is what New needs besides the Engine.
type Config struct {
	// Observe is called before each list is requested, and what it returns is called with the
	// list once it is there. It may be nil.
	Observe func() func(ctx context.Context, rows []image.Summary)
	// Metrics is where the metrics of the cache are registered. It may be nil.
	Metrics prometheus.Registerer
}

// maxNamed bounds Cache.named; with more names all images are inspected again.
const maxNamed = 1024

// A Cache holds the images of the node. Run keeps it current. All methods may be called from
// several goroutines.
type Cache struct {
	observe func() func(ctx context.Context, rows []image.Summary)
	engine  *engine.Engine
	log     *slog.Logger
	metrics metrics
	reads   singleflight.Group[*Images] // by connection and newest change
	wake    chan struct{}               // has an element if Run may have to read

	auditInterval time.Duration // changed by tests only

	mu         sync.Mutex        // guards following
	generation uint64            // of the newest read or change
	changed    uint64            // generation of the newest change
	named      map[string]uint64 // images to inspect again, IDs or names, with the generation of their newest change
	stream     *engine.Conn      // connection of the event stream, nil without one
	attached   uint64            // generation in which the event stream began
	images     *Images           // of the newest read over the event stream, nil before the first
	imagesRead uint64            // generation of that read
	known      *Images           // of the newest read of all; it may be older than the Engine's state
}

// New returns an empty Cache, which Run fills.
func New(cfg Config, docker *engine.Engine, log *slog.Logger) *Cache {
	c := &Cache{
		observe: cfg.Observe, engine: docker, log: log,
		reads:         singleflight.Group[*Images]{Log: log},
		wake:          make(chan struct{}, 1),
		named:         map[string]uint64{},
		auditInterval: auditInterval,
		known:         newImages(nil),
	}
	if c.observe == nil {
		c.observe = func() func(context.Context, []image.Summary) { return func(context.Context, []image.Summary) {} }
	}
	c.registerMetrics(cfg.Metrics)
	return c
}

// Find returns the image that has the ID or the name ref, and the images that it is one of, if the
// cache is valid for conn, the current connection. Else it returns nil, and the Engine has to answer.
func (c *Cache) Find(conn *engine.Conn, ref string) (*Images, *Image) {
	images := c.current(conn)
	if images == nil {
		c.count(false)
		return nil, nil
	}
	found := images.find(ref)
	c.count(found != nil)
	return images, found
}

// List returns the images: those of the cache if it is valid for conn, the current connection, and
// else those of a list that is requested now. Callers that wait for the same change share one list.
func (c *Cache) List(ctx context.Context, conn *engine.Conn) (*Images, error) {
	images := c.current(conn)
	c.count(images != nil)
	if images != nil {
		return images, nil
	}
	c.mu.Lock()
	follows, changed := c.stream == conn && c.images != nil, c.changed
	c.mu.Unlock()
	if !follows {
		return c.read(ctx, conn, direct)
	}
	return c.readChange(ctx, conn, changed)
}

// current returns the images of the cache if it is valid for conn, and else nil.
func (c *Cache) current(conn *engine.Conn) *Images {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stream != conn || !c.validLocked() {
		return nil
	}
	return c.images
}

// validLocked reports whether images has every change that is known over the current stream.
func (c *Cache) validLocked() bool {
	return c.stream != nil && c.images != nil && c.imagesRead > c.changed
}

// readChange returns the result of a read that began after the change with that generation.
func (c *Cache) readChange(ctx context.Context, conn *engine.Conn, changed uint64) (*Images, error) {
	return c.reads.Do(ctx, fmt.Sprintf("%p %d", conn, changed), func(ctx context.Context) (*Images, error) {
		return c.read(ctx, conn, changes)
	})
}

// Invalidate makes the cache invalid after a change of the image ref, an ID or a name. Callers of
// berth that made the change must call it before they return.
func (c *Cache) Invalidate(ref string) {
	c.mu.Lock()
	c.generation++
	c.changed = c.generation
	if c.named[ref] = c.generation; len(c.named) > maxNamed {
		clear(c.named)
		c.images = nil // the next read inspects all images
	}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// attach notes that events arrive over conn from now on.
func (c *Cache) attach(conn *engine.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation++
	c.stream, c.images = conn, nil
	c.attached, c.changed = c.generation, c.generation
	clear(c.named)
}

// detach notes that events may be lost from now on.
func (c *Cache) detach() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stream, c.images = nil, nil
	clear(c.named)
}
