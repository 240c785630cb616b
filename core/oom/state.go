package oom

import "berth/core/state"

// Verdicts holds why containers have ended, by container ID.
type Verdicts = state.Bucket[verdict]

// OpenVerdicts opens the bucket of verdicts in store.
func OpenVerdicts(store *state.Store) (*Verdicts, error) {
	return state.OpenBucket[verdict](store, "oom")
}
