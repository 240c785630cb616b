package passwd

import (
	"container/list"
	"sync"

	"berth/core/identity"
)

const (
	// maxCache bounds the cache, in bytes.
	maxCache = 8 << 20
	// maxEntry is the largest entry, in bytes. The files of an image with more are read
	// again for each container, so that it does not evict those of others.
	maxEntry = 256 << 10
	// entryOverhead is the size of an entry without its files.
	entryOverhead = 512
)

// A cache caches the users and groups of images by image ID and evicts the least
// recently used. The zero value is an empty cache.
type cache struct {
	mu      sync.Mutex // guards following
	entries map[string]*list.Element
	recent  list.List // of *entry, the most recently used first
	size    int       // bytes of all entries
}

type entry struct {
	image string // ID
	identity.PasswdFiles
}

func (e *entry) size() int { return entryOverhead + len(e.Passwd) + len(e.Group) }

func (c *cache) get(image string) (identity.PasswdFiles, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	element, ok := c.entries[image]
	if !ok {
		return identity.PasswdFiles{}, false
	}
	c.recent.MoveToFront(element)
	return element.Value.(*entry).PasswdFiles, true //nolint:forcetypeassert // the list has no other values
}

// put adds an entry, if it is not too large, and evicts others as needed.
func (c *cache) put(image string, files identity.PasswdFiles) {
	added := &entry{image, files}
	if added.size() > maxEntry {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeLocked(c.entries[image])
	if c.entries == nil {
		c.entries = map[string]*list.Element{}
	}
	c.entries[image] = c.recent.PushFront(added)
	for c.size += added.size(); c.size > maxCache; {
		c.removeLocked(c.recent.Back())
	}
}

// retain removes the entries of images that are not keys of images.
func (c *cache) retain(images map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for image, element := range c.entries {
		if !images[image] {
			c.removeLocked(element)
		}
	}
}

func (c *cache) removeLocked(element *list.Element) {
	if element == nil {
		return
	}
	removed := c.recent.Remove(element).(*entry) //nolint:forcetypeassert // the list has no other values
	delete(c.entries, removed.image)
	c.size -= removed.size()
}
