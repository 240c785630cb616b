package logs

import (
	"berth/core/logs/crifile"
	"berth/core/logs/logfile"
	"berth/core/logs/logstream"
	"berth/core/state"
)

// A Checkpoint is how far the log of a container was written, as stored in the state
// directory. After a crash copying continues there.
type Checkpoint struct {
	Source logfile.Position `json:"source,omitzero"` // how far Docker's log files were read
	File   crifile.Position `json:"file,omitzero"`   // how long the CRI log file was then

	// Follow is set if Docker's log stream is read, not its log files. Then Source is
	// zero and the embedded Position is used.
	Follow bool `json:"follow,omitempty"`
	logstream.Position

	// Dir is the log directory of the pod, as the CRI named it when the container was
	// created; "" if an older berth stored the checkpoint.
	Dir string `json:"dir,omitempty"`
	// Open are the lines that the CRI log file ends in the middle of.
	Open crifile.OpenLines `json:"open,omitzero"`

	// Complete is set when the container has exited and all of its log is written.
	Complete bool `json:"complete,omitempty"`
}

// Checkpoints stores the checkpoints of all logs by container ID.
type Checkpoints = state.Bucket[Checkpoint]

// OpenCheckpoints opens the bucket of checkpoints in store.
func OpenCheckpoints(store *state.Store) (*Checkpoints, error) {
	return state.OpenBucket[Checkpoint](store, "logs")
}
