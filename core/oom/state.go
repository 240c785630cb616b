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

// ExitReasons stores the exit reasons of exited containers, whose cgroups are gone, by
// container ID.
type ExitReasons = state.Bucket[exitReason]

// OpenExitReasons opens the bucket of exit reasons in store.
func OpenExitReasons(store *state.Store) (*ExitReasons, error) {
	return state.OpenBucket[exitReason](store, "oom")
}
