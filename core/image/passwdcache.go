package image

import (
	"container/list"
	"sync"

	"berth/core/identity"
)

const (
	// maxPasswdCache bounds the cache, in bytes.
	maxPasswdCache = 8 << 20
	// maxPasswdEntry is the largest entry, in bytes. The files of an image with more are read
	// again for each container, so that it does not evict those of others.
	maxPasswdEntry = 256 << 10
	// passwdOverhead is the size of an entry without its files.
	passwdOverhead = 512
)

// A passwdCache caches the users and groups of images by image ID and evicts the least
// recently used. The zero value is an empty cache.
type passwdCache struct {
	mu      sync.Mutex // guards following
	entries map[string]*list.Element
	recent  list.List // of *passwdEntry, the most recently used first
	size    int       // bytes of all entries
}

type passwdEntry struct {
	image string // ID
	identity.PasswdFiles
}

func (e *passwdEntry) size() int { return passwdOverhead + len(e.Passwd) + len(e.Group) }

func (c *passwdCache) get(image string) (identity.PasswdFiles, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	element, ok := c.entries[image]
	if !ok {
		return identity.PasswdFiles{}, false
	}
	c.recent.MoveToFront(element)
	return element.Value.(*passwdEntry).PasswdFiles, true //nolint:forcetypeassert // the list has no other values
}

// put adds an entry, if it is not too large, and evicts others as needed.
func (c *passwdCache) put(image string, files identity.PasswdFiles) {
	entry := &passwdEntry{image, files}
	if entry.size() > maxPasswdEntry {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeLocked(c.entries[image])
	if c.entries == nil {
		c.entries = map[string]*list.Element{}
	}
	c.entries[image] = c.recent.PushFront(entry)
	for c.size += entry.size(); c.size > maxPasswdCache; {
		c.removeLocked(c.recent.Back())
	}
}

// retain removes the entries of images that are not keys of images.
func (c *passwdCache) retain(images map[string]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for image, element := range c.entries {
		if _, ok := images[image]; !ok {
			c.removeLocked(element)
		}
	}
}

func (c *passwdCache) removeLocked(element *list.Element) {
	if element == nil {
		return
	}
	removed := c.recent.Remove(element).(*passwdEntry) //nolint:forcetypeassert // the list has no other values
	delete(c.entries, removed.image)
	c.size -= removed.size()
}
