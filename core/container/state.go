package container

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/state"
	"berth/core/tocri"
)

type (
	// FailedStarts holds when and why starts failed, by container ID: Docker does not record the time.
	FailedStarts = state.Bucket[tocri.FailedStart]
	// Updates holds the resources of updated containers, by container ID: they are in a label, which Docker cannot change.
	Updates = state.Bucket[*runtimeapi.LinuxContainerResources]
)

// OpenFailedStarts opens the bucket of failed starts in store.
func OpenFailedStarts(store *state.Store) (*FailedStarts, error) {
	return state.OpenBucket[tocri.FailedStart](store, "failed-starts")
}

// OpenUpdates opens the bucket of changed resources in store.
func OpenUpdates(store *state.Store) (*Updates, error) {
	return state.OpenProtoBucket[*runtimeapi.LinuxContainerResources](store, "updates")
}
