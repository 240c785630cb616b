package nri

import (
	"os"
	"path/filepath"

	"github.com/docker/docker/api/types/container"

	"berth/core/blockio"
	"berth/core/engine"
	"berth/core/nri/adjust"
	"berth/core/state"
)

// A Record is what plugins have changed in a container when it was created.
type Record struct {
	Plugins []string `json:"plugins"`
	Fields  []string `json:"fields"` // as in api.proto of NRI: "env", "linux.resources"
}

// Records holds records by container ID.
type Records = state.Bucket[Record]

// OpenRecords opens the bucket of records in store.
func OpenRecords(store *state.Store) (*Records, error) {
	return state.OpenBucket[Record](store, "nri")
}

// AddFacts adds to facts what plugins have changed in a container, under the key nri.
func AddFacts(records *Records, id string, facts map[string]any) {
	record, ok, err := records.Get(id)
	switch {
	case err != nil:
		facts["nriError"] = err.Error()
	case ok:
		facts["nri"] = record
	}
}

// Env returns what the node has for changes by plugins. dir is the directory of instructions for berth's OCI runtime, runtime the
// HostConfig.Runtime of the sandbox.
func (r *Runtime) Env(docker *engine.Conn, dir, runtime string) adjust.Env {
	return adjust.Env{Features: Features(docker), Dir: dir, Runtime: runtime, Node: HostNode, BlockIO: r.blockIO, RdtClass: func(class string) bool {
		st, err := os.Stat(filepath.Join("/sys/fs/resctrl", class, "schemata"))
		return err == nil && st.Mode().IsRegular()
	}}
}

// Features returns the features of Docker with the lowest oom_score_adj that has turned out to be possible.
func Features(docker *engine.Conn) engine.Features {
	f := docker.Features
	f.LowestOOMScore = docker.OOMFloor()
	return f
}

// blockIO sets what a block I/O class has. The file is read each time: it is small, and needed only when a plugin names a class.
func (r *Runtime) blockIO(class string, resources *container.Resources) error {
	classes, err := blockio.Load(r.BlockIOFile)
	if err != nil {
		return err
	}
	return classes.Apply(class, resources)
}
