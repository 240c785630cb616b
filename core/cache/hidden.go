package cache

// Hidden keeps containers that are being created out of every list, by their
// Docker names: what is not complete must not be found by the kubelet's garbage
// collection. Their events are held back until they are revealed, so that the
// first event about a sandbox shows it ready.
//
// It is for one goroutine.
type Hidden struct {
	view  *Cache
	names []string
}

// Hide hides what has the Docker name until Reveal is called. Several callers may
// hide the same name.
func (v *Cache) Hide(name string) *Hidden {
	h := &Hidden{view: v}
	h.Add(name)
	return h
}

// Add hides one more name.
func (h *Hidden) Add(name string) {
	h.view.mu.Lock()
	defer h.view.mu.Unlock()
	h.view.hidden[name]++
	h.names = append(h.names, name)
}

// Keep returns what h hides and leaves nothing for h.Reveal to reveal.
func (h *Hidden) Keep() *Hidden {
	kept := &Hidden{view: h.view, names: h.names}
	h.names = nil
	return kept
}

// Reveal ends the hiding and emits the events that were held back. It can be
// called any number of times.
func (h *Hidden) Reveal() {
	v := h.view
	v.mu.Lock()
	defer v.mu.Unlock()
	revealed := map[string]bool{}
	for _, name := range h.names {
		if v.hidden[name]--; v.hidden[name] <= 0 {
			delete(v.hidden, name)
			revealed[name] = true
		}
	}
	h.names = nil
	for id, e := range v.sandboxes {
		if revealed[e.seen.Name] {
			emit(v, e, id, id)
		}
	}
	for id, e := range v.containers {
		if revealed[e.seen.Name] {
			emit(v, e, id, e.seen.Row.GetPodSandboxId())
		}
	}
}
