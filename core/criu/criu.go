// Package criu takes checkpoints of running containers with CRIU, and writes them to archives in the format of CRI-O and containerd,
// which checkpointctl reads.
//
// CRIU is run by the container's own OCI runtime, with the state that the runtime keeps for Docker: "runc checkpoint
// --leave-running". So Docker needs no experimental features, and does not notice it; runc and CRIU are those that containerd's
// shim of the container sees, in its mount namespace and PATH. CRIU freezes the container while it copies the memory; the changed files
// are copied right after it, while the container goes on. CRI-O and containerd pause it for both,
// which needs a record that outlives a crash of berthd at any moment, or the container stays paused.
//
// The containers of a pod are frozen by their runtimes before CRIU is called for the first, and until the last one is captured with its
// changed files (CheckpointPod): "runc pause", of which Docker knows nothing.
//
// A checkpoint in progress has a directory of its own below that of the Checkpointer: with a record of what has to be undone, and
// CRIU's files. It is on a disk because it holds the memory of the container. GC finds those of a berthd that was killed: it ends
// their processes, lets the container go on if CRIU has left it frozen, and removes the files.
package criu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"berth/core/bundle"
	"berth/core/criu/archive"
)

const (
	// cleanTimeout bounds the end of a checkpoint that has failed: its processes, the container, its files.
	cleanTimeout = time.Minute
	// runtimeTimeout bounds calls of the OCI runtime that only pause and resume.
	runtimeTimeout = 20 * time.Second

	recordFile = "record.json"
	// statsFile is what CRIU writes beside its log; checkpointctl shows it.
	statsFile = "stats-dump"
	// bindMountsFile is what CRI-O reads to find out whether a missing source of a bind mount was a file or a directory.
	bindMountsFile = "bind.mounts"
)

// archived are the names in an archive, the small ones first.
var archived = []string{
	metadata.ConfigDumpFile, metadata.SpecDumpFile, metadata.StatusDumpFile, bindMountsFile, metadata.DeletedFilesFile,
	metadata.DumpLogFile, statsFile, metadata.CheckpointDirectory, metadata.RootFsDiffTar,
}

// A Container is what a checkpoint is taken of.
type Container struct {
	ID  string
	PID int // first process
	// Upper is the directory of the writable layer and Lowers those of the image, the topmost first, as dockerd sees them. They are
	// searched in the mount table if the Engine does not report them.
	Upper  string
	Lowers []string
	// Roots are the directories that Upper may be below.
	Roots []string
	// Config and Status describe the container for a restore. Annotations are added to the OCI spec.
	Config      metadata.ContainerConfig
	Status      any
	Annotations map[string]string
}

// ContainerOf returns what Docker says of a container, whose files are below the roots. The error is of kind FailedPrecondition if it
// does not run.
func ContainerOf(found container.InspectResponse, roots ...string) (Container, error) {
	c := Container{ID: found.ID, PID: found.State.Pid, Upper: found.GraphDriver.Data["UpperDir"], Roots: roots}
	if list := found.GraphDriver.Data["LowerDir"]; list != "" {
		c.Lowers = strings.Split(list, ":")
	}
	switch {
	case !found.State.Running:
		return c, fmt.Errorf("container %s has exited and cannot be checkpointed: %w", c.ID, errdefs.ErrFailedPrecondition)
	case found.State.Paused:
		return c, fmt.Errorf("container %s is paused with Docker and cannot be checkpointed: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}

// A Checkpointer takes checkpoints. Its methods may be called from several goroutines, for different containers.
type Checkpointer struct {
	dir string
	log *slog.Logger

	mu      sync.Mutex
	running map[string]bool // names of the directories of checkpoints in progress

	runtimeOf func(pid int, id string) (bundle.Runtime, error) // bundle.RuntimeOf, except in tests
	specOf    func(pid int, id string) (json.RawMessage, error)
	hostOf    func(pid int) host
}

// New returns a Checkpointer with a directory that does not have to exist.
func New(dir string, log *slog.Logger) *Checkpointer {
	return &Checkpointer{dir: dir, log: log, running: map[string]bool{}, runtimeOf: bundle.RuntimeOf, specOf: bundle.Spec, hostOf: newHost}
}

// Checkpoint writes a checkpoint of a running container to an archive at location, and returns the size of the archive. When it returns
// the container goes on, also after an error; that takes some seconds if ctx ends while CRIU works.
//
// The error is of kind InvalidArgument for a location where no archive can be, and FailedPrecondition if CRIU is missing or cannot
// checkpoint the container.
func (c *Checkpointer) Checkpoint(ctx context.Context, target Container, location string) (size int64, err error) {
	out, err := archive.Open(location)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	j, err := c.prepare(target)
	if err != nil {
		return 0, err
	}
	if _, err := j.host.probe(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.end(ctx, j)) }()
	if err := c.begin(j, out.TempPath()); err != nil {
		return 0, err
	}
	if err := j.writeMetadata(); err != nil {
		return 0, err
	}
	if err := j.take(ctx); err != nil {
		return 0, err
	}
	return out.Write(ctx, j.dir, archived)
}

// prepare returns the job of a container, which needs a directory.
func (c *Checkpointer) prepare(target Container) (*job, error) {
	runtime, err := c.runtimeOf(target.PID, target.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("only containers of runc and runtimes like it have checkpoints: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("OCI runtime of the container: %w", err)
	}
	spec, err := c.specOf(target.PID, target.ID)
	if err != nil {
		return nil, fmt.Errorf("OCI spec of the container: %w", err)
	}
	return &job{target: target, runtime: runtime, host: c.hostOf(runtime.Shim), spec: spec}, nil
}
