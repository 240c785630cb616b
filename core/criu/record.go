package criu

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"berth/core/atomicfile"
	"berth/core/criu/archive"
)

// A record is what has to be undone after a crash.
type record struct {
	Container string `json:"container"`
	Archive   string `json:"archive"` // path of the archive that is not complete
	// Pod takes the place of the others for a checkpoint of a pod.
	Pod *podRecord `json:"pod,omitempty"`
}

// begin creates the directory of a job with its record. archive is where the archive will be written.
func (c *Checkpointer) begin(j *job, archive string) error {
	var err error
	j.name = rand.Text()
	j.dir, err = c.makeDir(j.name, record{Container: j.target.ID, Archive: archive})
	return err
}

// makeDir creates the directory name with a record. It is in progress until forget is called.
func (c *Checkpointer) makeDir(name string, r record) (dir string, err error) {
	dir = filepath.Join(c.dir, name)
	text, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	c.running[name] = true
	c.mu.Unlock()
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return dir, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return dir, err
	}
	return dir, atomicfile.Write(filepath.Join(dir, recordFile), text)
}

// forget is called when the checkpoint with the directory name has ended: from then on it is the subject of GC.
func (c *Checkpointer) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.running, name)
}

// end ends everything that a job has begun. What fails is tried again by GC.
func (c *Checkpointer) end(ctx context.Context, j *job) error {
	if j.dir == "" {
		return nil
	}
	defer c.forget(j.name)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	if j.dumping {
		if err := errors.Join(endProcesses(ctx, j.name), j.resume(ctx)); err != nil {
			c.log.Error("a container may be frozen by its checkpoint; it will be tried again", slog.String("container", j.target.ID), slog.Any("err", err))
			return err
		}
	}
	return os.RemoveAll(j.dir)
}

// An Inspector returns what Docker says of a container.
type Inspector func(ctx context.Context, id string) (container.InspectResponse, error)

// GC ends the checkpoints that a berthd before this one has begun.
func (c *Checkpointer) GC(ctx context.Context, inspect Inspector) error {
	entries, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		c.mu.Lock()
		running := c.running[e.Name()]
		c.mu.Unlock()
		if running {
			continue
		}
		if err := c.undo(ctx, e.Name(), inspect); err != nil {
			errs = append(errs, fmt.Errorf("interrupted checkpoint %s: %w", e.Name(), err))
		}
	}
	return errors.Join(errs...)
}

// undo ends the checkpoint with the directory name.
func (c *Checkpointer) undo(ctx context.Context, name string, inspect Inspector) error {
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	dir := filepath.Join(c.dir, name)
	if err := endProcesses(ctx, name); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) { // killed before it was written, and so before CRIU was started
		return os.RemoveAll(dir)
	}
	if err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("%s: %w", recordFile, err)
	}
	if r.Pod != nil {
		return c.undoPod(ctx, name, *r.Pod, inspect)
	}
	c.log.Info("undoing a checkpoint that was interrupted", slog.String("container", r.Container))
	j, err := c.interrupted(ctx, name, r.Container, inspect)
	if err != nil {
		return err
	}
	if j != nil {
		if err := j.resume(ctx); err != nil {
			return err
		}
	}
	return errors.Join(archive.RemoveTemp(r.Archive), os.RemoveAll(dir))
}

// interrupted returns the job of a container in the checkpoint with the directory name, which a berthd before this one has begun. It is
// nil for a container that cannot be frozen by it any more.
func (c *Checkpointer) interrupted(ctx context.Context, name, id string, inspect Inspector) (*job, error) {
	found, err := inspect(ctx, id)
	switch {
	case errdefs.IsNotFound(err), err == nil && (!found.State.Running || found.State.Paused): // one that was paused with Docker stays paused
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("inspect %s: %w", id, err)
	}
	runtime, err := c.runtimeOf(found.State.Pid, id)
	if err != nil {
		return nil, err
	}
	return &job{target: Container{ID: id}, name: name, runtime: runtime, host: c.hostOf(runtime.Shim)}, nil
}
