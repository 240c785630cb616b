package criu

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"berth/core/criu/archive"
	"berth/core/sleep"
)

const (
	// resumeChecks is how often, and resumeInterval at which interval, the containers of a checkpoint that was interrupted are checked:
	// a runtime or CRIU that was killed can have a freeze under way, which is in effect some milliseconds later.
	resumeChecks, resumeInterval = 5, 100 * time.Millisecond
	// maxContainerName bounds the name of a container in the name of its archive, in bytes.
	maxContainerName = 200
	// nameCharacters are those that names of Docker's containers have.
	nameCharacters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-"
)

// A podRecord is what has to be undone after a crash for the checkpoint of a pod.
type podRecord struct {
	Containers []string      `json:"containers"`
	Output     archive.Place `json:"output"`
}

// A podJob is the checkpoint of a pod in progress.
type podJob struct {
	name string // of its directory, and the marker of its processes
	dir  string
	jobs []*job // one for each container, with directories below dir
	out  *archive.Dir
	// ended is set when the runtime and CRIU have ended by themselves since they were called last.
	ended bool
}

// CheckpointPod writes checkpoints of running containers of a pod, which are of one moment, to the empty directory path: an archive
// for each, and at the end the manifest, to which it adds what it knows. All containers are frozen by their runtimes before the first is
// captured, with its memory and its changed files, and go on when the last one was. When it returns all of them go on, also after an error;
// that takes some seconds if ctx ends while CRIU works. After an error the directory is empty.
//
// The error is of kind InvalidArgument for another path, and FailedPrecondition if CRIU is missing or cannot checkpoint a container.
func (c *Checkpointer) CheckpointPod(ctx context.Context, targets []Container, m Manifest, path string, inspect Inspector) (_ Manifest, err error) {
	out, err := archive.OpenDir(path)
	if err != nil {
		return m, err
	}
	defer out.Close()
	p := &podJob{out: out}
	if m.CRIU, err = c.preparePod(ctx, p, targets); err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, c.endPod(ctx, p, err)) }()
	if err := c.beginPod(p); err != nil {
		return m, err
	}
	for _, j := range p.jobs {
		if err := j.writeMetadata(); err != nil {
			return m, fmt.Errorf("container %s: %w", j.target.ID, err)
		}
	}
	for _, j := range p.jobs {
		if err := j.freeze(ctx, inspect); err != nil {
			return m, err
		}
	}
	m.CreatedAt = time.Now().UTC()
	for _, j := range p.jobs {
		if err := j.capture(ctx); err != nil {
			return m, fmt.Errorf("container %s: %w", j.target.ID, err)
		}
	}
	p.ended = true
	if err := p.resume(ctx); err != nil {
		return m, err
	}
	return p.write(ctx, m)
}

// preparePod finds out how the containers are called by their runtimes, and returns the version of CRIU.
func (c *Checkpointer) preparePod(ctx context.Context, p *podJob, targets []Container) (version string, err error) {
	names, shims := map[string]bool{}, map[int]bool{}
	for _, target := range targets {
		name := target.Config.Name
		if name == "" || len(name) > maxContainerName || strings.Trim(name, nameCharacters) != "" || names[name] {
			return "", fmt.Errorf("container name %.300q: must be unique in a checkpoint, and have at most %d letters, digits, and characters of _.-: %w", name, maxContainerName, errdefs.ErrFailedPrecondition)
		}
		names[name] = true
		j, err := c.prepare(target)
		if err != nil {
			return "", fmt.Errorf("container %s: %w", target.ID, err)
		}
		if !shims[j.runtime.Shim] {
			if version, err = j.host.probe(ctx); err != nil {
				return "", err
			}
			shims[j.runtime.Shim] = true
		}
		// Not one that was frozen by others: it would be resumed at the end.
		status, err := j.status(ctx)
		if err != nil {
			return "", fmt.Errorf("container %s: %w", target.ID, err)
		}
		if status != "running" {
			return "", fmt.Errorf("container %s is %q for its OCI runtime and cannot be checkpointed: %w", target.ID, status, errdefs.ErrFailedPrecondition)
		}
		p.jobs = append(p.jobs, j)
	}
	return version, nil
}

// beginPod creates the directories of a checkpoint, with its record.
func (c *Checkpointer) beginPod(p *podJob) error {
	p.name = rand.Text()
	r := record{Pod: &podRecord{Output: p.out.Place}}
	for i, j := range p.jobs {
		j.name, j.dir = p.name, filepath.Join(c.dir, p.name, strconv.Itoa(i))
		r.Pod.Containers = append(r.Pod.Containers, j.target.ID)
		r.Pod.Output.Files = append(r.Pod.Output.Files, j.target.Config.Name+archiveSuffix)
	}
	r.Pod.Output.Files = append(r.Pod.Output.Files, ManifestFile)
	p.out.Place = r.Pod.Output
	dir, err := c.makeDir(p.name, r)
	p.dir = dir
	if err != nil {
		return err
	}
	for _, j := range p.jobs {
		if err := os.Mkdir(j.dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// freeze has the OCI runtime freeze the container. Docker does not notice it.
func (j *job) freeze(ctx context.Context, inspect Inspector) error {
	short, cancel := context.WithTimeout(ctx, runtimeTimeout)
	defer cancel()
	j.dumping = true
	output, err := j.callRuntime(short, "pause", j.target.ID)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("freeze container %s: %w: %s: %w", j.target.ID, err, lastLine(output), errdefs.ErrFailedPrecondition)
	// Somebody can have paused it with Docker meanwhile: then it stays so.
	clean, cancelClean := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancelClean()
	if found, inspectErr := inspect(clean, j.target.ID); inspectErr == nil {
		j.dumping = !found.State.Paused
	}
	return err
}

// capture writes the memory and the changed files of the frozen container to its directory. CRIU thaws the cgroup when it has
// stopped all processes, and leaves it frozen if it was (freezer_restore_state in criu/seize.c, CRIU >= 3.14).
func (j *job) capture(ctx context.Context) error {
	if err := j.take(ctx); err != nil {
		j.dumping = true
		return err
	}
	j.dumping = true
	status, err := j.status(ctx)
	if err == nil && status != "paused" {
		err = fmt.Errorf("CRIU has not kept the container frozen: it is %q, so that the checkpoint is not of one moment: %w", status, errdefs.ErrFailedPrecondition)
	}
	return err
}

// resume lets the containers go on.
func (p *podJob) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	var errs []error
	for _, j := range p.jobs {
		if !j.dumping {
			continue
		}
		err := j.resume(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", j.target.ID, err))
		}
		j.dumping = err != nil
	}
	return errors.Join(errs...)
}

// resumeInterrupted lets the containers go on after the runtime or CRIU was killed.
func (p *podJob) resumeInterrupted(ctx context.Context) error {
	frozen := p.jobs[:0:0]
	for _, j := range p.jobs {
		if j.dumping {
			frozen = append(frozen, j)
		}
	}
	if len(frozen) == 0 {
		return nil
	}
	for range resumeChecks {
		for _, j := range frozen {
			j.dumping = true
		}
		if err := p.resume(ctx); err != nil {
			return err
		}
		if err := sleep.WithContext(ctx, resumeInterval); err != nil {
			return err
		}
	}
	return nil
}

// write writes the archives and the manifest.
func (p *podJob) write(ctx context.Context, m Manifest) (Manifest, error) {
	m.Version, m.Kernel = ManifestVersion, kernelRelease()
	for _, j := range p.jobs {
		name := j.target.Config.Name
		size, err := p.out.File(name+archiveSuffix).Write(ctx, j.dir, archived)
		if err != nil {
			return m, fmt.Errorf("container %s: %w", j.target.ID, err)
		}
		m.Containers = append(m.Containers, ManifestContainer{Name: name, ID: j.target.ID, Archive: name + archiveSuffix, Bytes: size})
	}
	text, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return m, err
	}
	_, err = p.out.File(ManifestFile).Create(ctx, func(f *os.File) error {
		_, err := f.Write(append(text, '\n'))
		return err
	})
	return m, errors.Join(err, p.out.Sync())
}

// endPod ends everything that a checkpoint with the result failed has begun. What fails is tried again by GC.
func (c *Checkpointer) endPod(ctx context.Context, p *podJob, failed error) error {
	if p.dir == "" {
		return nil
	}
	defer c.forget(p.name)
	var err, late error
	if failed == nil {
		for _, j := range p.jobs {
			err = errors.Join(err, os.RemoveAll(j.dir)) // it may take a while
		}
		late = ctx.Err() // the caller must not find files of a call that has failed for it
		if err == nil && late == nil {
			if err = os.RemoveAll(p.dir); err == nil {
				return nil
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	if !p.ended {
		err = endProcesses(ctx, p.name)
	}
	err = errors.Join(err, p.resumeInterrupted(ctx), p.out.Clear())
	if err != nil {
		c.log.Error("containers may be frozen by the checkpoint of their pod, or files left; it will be tried again", slog.String("location", p.out.Place.Path), slog.Any("err", err))
		return errors.Join(err, late)
	}
	return errors.Join(os.RemoveAll(p.dir), late)
}

// undoPod ends the checkpoint of a pod that a berthd before this one has begun. Its processes have ended.
func (c *Checkpointer) undoPod(ctx context.Context, name string, r podRecord, inspect Inspector) error {
	p := &podJob{name: name, dir: filepath.Join(c.dir, name)}
	c.log.Info("undoing a checkpoint of a pod that was interrupted", slog.Any("containers", r.Containers), slog.String("location", r.Output.Path))
	var errs []error
	for _, id := range r.Containers {
		j, err := c.interrupted(ctx, name, id, inspect)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("container %s: %w", id, err)) // the others go on
		case j != nil:
			j.dumping = true
			p.jobs = append(p.jobs, j)
		}
	}
	if err := errors.Join(append(errs, p.resumeInterrupted(ctx), r.Output.Clear())...); err != nil {
		return err // with the record, so that it is tried again
	}
	return os.RemoveAll(p.dir)
}
