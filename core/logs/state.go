package logs

import "berth/core/state"

// Positions holds how far the log of each container has been written, by container ID.
type Positions = state.Bucket[position]

// OpenPositions opens the bucket of positions in store.
func OpenPositions(store *state.Store) (*Positions, error) {
	return state.OpenBucket[position](store, "logs")
}
