package network

// maxRecentIDs is how many IDs a recentIDs remembers.
const maxRecentIDs = 1024

// recentIDs is a set of the IDs that were added last. The zero value is empty.
type recentIDs struct {
	ring  [maxRecentIDs]string
	next  int            // the place in ring that is overwritten next
	index map[string]int // ID to place in ring
}

func (r *recentIDs) add(id string) {
	r.remove(id)
	if r.index == nil {
		r.index = map[string]int{}
	}
	delete(r.index, r.ring[r.next])
	r.ring[r.next], r.index[id] = id, r.next
	r.next = (r.next + 1) % maxRecentIDs
}

func (r *recentIDs) remove(id string) {
	if i, ok := r.index[id]; ok {
		r.ring[i] = ""
		delete(r.index, id)
	}
}

func (r *recentIDs) has(id string) bool {
	_, ok := r.index[id]
	return ok
}
