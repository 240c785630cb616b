package image

import (
	"container/list"
	"sync"

	"berth/core/identity"
)

const (
	// maxCachedAccounts bounds the accounts of all images in memory together.
	maxCachedAccounts = 8 << 20
	// maxCachedAccount is the most that is kept of one image: the files of an image with
	// more are read for each container, so that it does not evict those of the others.
	maxCachedAccount = 256 << 10
	// accountsOverhead is what an entry takes besides its files.
	accountsOverhead = 512
)

// An accountsCache keeps the accounts of the images that were used last. The zero value is
// ready to use.
type accountsCache struct {
	mu      sync.Mutex // guards following
	entries map[string]*list.Element
	recent  list.List // of *cachedAccounts, the most recently used first
	size    int       // bytes of all entries
}

type cachedAccounts struct {
	image string // ID
	identity.PasswdFiles
}

func (c *cachedAccounts) size() int { return accountsOverhead + len(c.Passwd) + len(c.Group) }

// get returns the accounts of an image if they are in the cache.
func (c *accountsCache) get(id string) (identity.PasswdFiles, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	entry, ok := c.entries[id]
	if !ok {
		return identity.PasswdFiles{}, false
	}
	c.recent.MoveToFront(entry)
	return entry.Value.(*cachedAccounts).PasswdFiles, true //nolint:forcetypeassert // nothing else is in the list
}

// put adds the accounts of an image and evicts others as needed.
func (c *accountsCache) put(id string, a identity.PasswdFiles) {
	added := &cachedAccounts{id, a}
	if added.size() > maxCachedAccount {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeLocked(c.entries[id])
	if c.entries == nil {
		c.entries = map[string]*list.Element{}
	}
	c.entries[id] = c.recent.PushFront(added)
	for c.size += added.size(); c.size > maxCachedAccounts; {
		c.removeLocked(c.recent.Back())
	}
}

// retain removes the accounts of images that are not in images.
func (c *accountsCache) retain(images map[string]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, entry := range c.entries {
		if _, ok := images[id]; !ok {
			c.removeLocked(entry)
		}
	}
}

func (c *accountsCache) removeLocked(entry *list.Element) {
	if entry == nil {
		return
	}
	removed := c.recent.Remove(entry).(*cachedAccounts) //nolint:forcetypeassert // nothing else is in the list
	delete(c.entries, removed.image)
	c.size -= removed.size()
}
