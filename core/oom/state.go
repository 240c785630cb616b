package oom

import (
	"time"

	"berth/core/state"
)

// An exitReason is the stored result for one exit of a container.
type exitReason struct {
	Finished  time.Time `json:"finished"`
	OOMKilled bool      `json:"oomKilled"`
}

// Verdicts stores the exit reasons of exited containers, whose cgroups are gone, by
// container ID.
type Verdicts = state.Bucket[exitReason]

// OpenVerdicts opens the bucket of exit reasons in store.
func OpenVerdicts(store *state.Store) (*Verdicts, error) {
	return state.OpenBucket[exitReason](store, "oom")
}
