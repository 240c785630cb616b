package cache

// Hidden keeps containers that are being created out of every list, by their Docker
// names, so that the kubelet's garbage collection does not find incomplete ones. Their
// events are held back until they are revealed: the first event about a sandbox shows
// it ready. A Hidden must not be used by several goroutines at once.
type Hidden struct {
	cache *Cache
	names []string
}

// Hide hides the container with the Docker name until Reveal is called. Several callers
// may hide the same name; it is shown when all of them have revealed it.
func (c *Cache) Hide(name string) *Hidden {
	h := &Hidden{cache: c}
	h.Add(name)
	return h
}

// Add hides one more name.
func (h *Hidden) Add(name string) {
	h.cache.mu.Lock()
	defer h.cache.mu.Unlock()
	h.cache.hidden[name]++
	h.names = append(h.names, name)
}

// Transfer transfers the names to the Hidden that it returns: Reveal of h has no effect any
// more.
func (h *Hidden) Transfer() *Hidden {
	kept := &Hidden{cache: h.cache, names: h.names}
	h.names = nil
	return kept
}

// Reveal shows the containers and emits the events that were held back. Further calls
// have no effect.
func (h *Hidden) Reveal() {
	c := h.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	revealed := map[string]bool{}
	for _, name := range h.names {
		if c.hidden[name]--; c.hidden[name] <= 0 {
			delete(c.hidden, name)
			revealed[name] = true
		}
	}
	h.names = nil
	for id, e := range c.sandboxes {
		if revealed[e.value.Name] {
			emitChangesLocked(c, e, id, id)
		}
	}
	for id, e := range c.containers {
		if revealed[e.value.Name] {
			emitChangesLocked(c, e, id, e.value.Row.GetPodSandboxId())
		}
	}
}
