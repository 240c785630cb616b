package sandbox

import (
	"encoding/json"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/state"
)

// State holds the records that a Service owns.
type State struct {
	// intents holds the sandboxes that are being created or cleaned up, by Docker
	// name without a suffix.
	intents *state.Bucket[intent]
	// Updates holds the last UpdatePodSandboxResources of each sandbox, by sandbox ID.
	Updates *Updates
}

// Updates are the last UpdatePodSandboxResources of sandboxes.
type Updates = state.Bucket[*runtimeapi.UpdatePodSandboxResourcesRequest]

const (
	intentsBucket = "sandboxes"
	updatesBucket = "sandbox-updates"
	// oldUpdatesBucket is where berth before 1.1 kept the updates of sandboxes, beside those of
	// containers, which still are there.
	oldUpdatesBucket = "updates"
)

// OpenState opens the records of sandboxes in store. Records of earlier releases are moved, so
// it must be called before package container opens its buckets.
func OpenState(store *state.Store) (s State, err error) {
	if err := store.MoveRecords(oldUpdatesBucket, updatesBucket, isSandboxUpdate); err != nil {
		return State{}, err
	}
	if s.intents, err = state.OpenBucket[intent](store, intentsBucket); err != nil {
		return State{}, err
	}
	s.Updates, err = state.OpenProtoBucket[*runtimeapi.UpdatePodSandboxResourcesRequest](store, updatesBucket)
	return s, err
}

// isSandboxUpdate reports whether data is an UpdatePodSandboxResourcesRequest, not the
// LinuxContainerResources of a container. Only the former has a sandbox ID, and always
// has one: a request without it is NotFound.
func isSandboxUpdate(data []byte) bool {
	var update struct{ PodSandboxID string }
	return json.Unmarshal(data, &update) == nil && update.PodSandboxID != ""
}
