package imagecache

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"

	"berth/core/engine"
)

// A scope says which images of a list are inspected. New images always are, and those whose last
// inspect has failed.
type scope int

const (
	// direct inspects no others: what an ID stands for never changes. The result does not become
	// that of the cache.
	direct scope = iota
	// changes also inspects images whose list entry has changed, and those that were named since
	// the last read.
	changes
	// everything inspects all images.
	everything
)

// A reader reads the images once.
type reader struct {
	*Cache
	conn       *engine.Conn
	scope      scope
	generation uint64
	previous   *Images  // to take inspect results from
	known      *Images  // to take users from
	named      []string // inspected again
	inspected  map[string]*image.InspectResponse
}

// read lists the images, inspects those in s, and puts the result into the cache unless that has the
// result of a later read.
func (c *Cache) read(ctx context.Context, conn *engine.Conn, s scope) (*Images, error) {
	ctx, cancel := conn.WithRequestTimeout(ctx)
	defer cancel()
	observed := c.observe()
	r := c.startRead(conn, s)
	c.metrics.syncs.Inc()
	list, err := conn.ImageList(ctx, image.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	observed(ctx, list)
	if err := r.inspectNamed(ctx); err != nil {
		return nil, err
	}
	rows := make([]*Image, 0, len(list))
	for _, row := range list {
		img, err := r.image(ctx, row)
		if err != nil {
			return nil, err
		}
		rows = append(rows, img)
	}
	images := r.previous
	if !slices.Equal(rows, images.Rows) {
		images = newImages(rows)
	}
	r.endRead(images)
	return images, nil
}

// startRead returns the reader of a read that begins now.
func (c *Cache) startRead(conn *engine.Conn, s scope) *reader {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation++
	r := &reader{Cache: c, conn: conn, scope: s, generation: c.generation, previous: c.known, known: c.known, inspected: map[string]*image.InspectResponse{}}
	switch {
	case s == direct:
	case s == changes && c.stream == conn && c.images != nil:
		r.previous = c.images
		for ref := range c.named {
			r.named = append(r.named, ref)
		}
	default:
		r.scope, r.previous = everything, newImages(nil)
	}
	return r
}

// endRead puts the images into the cache.
func (r *reader) endRead(images *Images) {
	c := r.Cache
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = images
	if r.scope == direct || c.stream != r.conn || r.generation < c.attached || r.generation < c.imagesRead {
		return
	}
	c.images, c.imagesRead = images, r.generation
	for ref, changed := range c.named {
		if changed < r.generation {
			delete(c.named, ref)
		}
	}
}

// inspectNamed inspects the images that were named by a tag or digest. Those named by ID are
// inspected with the list, if they are in it.
func (r *reader) inspectNamed(ctx context.Context) error {
	for _, ref := range r.named {
		if strings.HasPrefix(ref, algorithm) {
			continue
		}
		found, err := r.inspect(ctx, ref)
		if err != nil {
			return err
		}
		if found != nil {
			r.inspected[found.ID] = found
		}
	}
	return nil
}

// image returns the Image for a list entry.
func (r *reader) image(ctx context.Context, row image.Summary) (*Image, error) {
	listed, old := listedFacts(row), r.previous.byID[row.ID]
	if old != nil && !old.failed {
		switch same := listed.Equal(old.Listed); {
		case r.scope == direct && same:
			return old, nil
		case r.scope == direct:
			return &Image{ID: row.ID, User: old.User, Listed: listed}, nil
		case same && r.inspected[row.ID] == nil && !slices.Contains(r.named, row.ID):
			return old, nil
		}
	}
	found, ok := r.inspected[row.ID]
	if !ok {
		var err error
		if found, err = r.inspect(ctx, row.ID); err != nil {
			return nil, err
		}
		r.inspected[row.ID] = found // it may be listed again
	}
	img := &Image{ID: row.ID, Listed: listed, failed: found == nil}
	if found != nil {
		img.Inspected = InspectedFacts(*found)
		if found.Config != nil {
			img.User = found.Config.User
		}
	} else if known := r.known.byID[row.ID]; known != nil {
		img.User = known.User
	}
	return img, nil
}

// inspect inspects the image ref. It returns nil for one that was removed since the list was made,
// and for a damaged or half removed one, which must not hide the others.
func (r *reader) inspect(ctx context.Context, ref string) (*image.InspectResponse, error) {
	found, err := r.conn.ImageInspect(ctx, ref)
	switch {
	case errdefs.IsNotFound(err):
		return nil, nil
	case err != nil && (ctx.Err() != nil || engine.IsUnavailable(err)):
		return nil, fmt.Errorf("inspect image %s: %w", ref, err)
	case err != nil:
		r.log.Info("image listed without its user: it cannot be inspected", slog.String("image", ref), slog.Any("err", err))
		return nil, nil
	}
	return &found, nil
}
