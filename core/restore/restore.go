// Package restore reads checkpoints of containers, as core/criu, CRI-O and containerd write them, and keeps the files that CRIU and
// berth-oci need for a container that goes on from one.
//
// A checkpoint comes from an archive below a directory that only root can change, or from an image with a name that the operator has
// listed. What is read from it is not believed: sizes are bounded by that of the archive, names are flat, nothing but regular files is
// unpacked, and what the archive says about privileges, mounts and namespaces is only compared with those of the new container
// (core/ociedit, cmd/berth-oci). The memory itself, though, is what CRIU makes processes of as root: that is why the operator says which
// checkpoints there are.
//
// The files of a checkpoint have a directory with a random name below that of the Store. It belongs to a container from its creation until
// the end of its start, which succeeds or fails once and for all. GC removes those of containers that do not exist or have been started,
// and those that a berthd before this one was unpacking.
package restore

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"berth/core/atomicfile"
	"berth/core/cgroup"
	"berth/core/criu"
	"berth/core/image/pinning"
	"berth/core/ociedit"
	"berth/core/sleep"
)

// Names of the options, for messages.
const (
	ArchiveDirOption = "restore-archive-dir"
	ImagesOption     = "restore-images"
)

// ownerFile has the ID of the container that a directory belongs to.
const ownerFile = "container"

// Config says which checkpoints are restored.
type Config struct {
	ArchiveDir string            // directory of archives; "" for none
	Images     *pinning.Patterns // names of images; nil for none
	// Probe is criu.Checkpointer.ProbeRestore.
	Probe func(ctx context.Context, pid int, id, dir string) error
}

// A Store keeps the files of checkpoints for containers that have not been started. A nil Store has none. Its methods may be called
// from several goroutines, for different containers.
type Store struct {
	cfg Config
	dir string
	log *slog.Logger

	mu      sync.Mutex
	running map[string]bool // names of directories of which the container is being created
}

// New returns a Store with a directory that does not have to exist.
func New(cfg Config, dir string, log *slog.Logger) *Store {
	return &Store{cfg: cfg, dir: dir, log: log, running: map[string]bool{}}
}

// Probe returns an error of kind FailedPrecondition if containers of the pod whose pause container is id, with the first process pid, cannot
// be restored.
func (s *Store) Probe(ctx context.Context, pid int, id string) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	return s.cfg.Probe(ctx, pid, id, s.dir)
}

// Files are the files of a checkpoint in the directory of the Store. Nil stands for a container that is not restored.
type Files struct {
	store *Store
	name  string
}

// begin creates the directory of a checkpoint.
func (s *Store) begin() (*Files, error) {
	f := &Files{s, rand.Text()}
	s.mu.Lock()
	s.running[f.name] = true
	s.mu.Unlock()
	err := os.MkdirAll(s.dir, 0o700)
	if err == nil {
		err = os.Mkdir(f.path(), 0o700)
	}
	if err != nil {
		f.Release()
		return nil, err
	}
	return f, nil
}

func (f *Files) path() string { return filepath.Join(f.store.dir, f.name) }

// Bind gives the files to the container id, with which they are removed.
func (f *Files) Bind(id string) error {
	if f == nil {
		return nil
	}
	return atomicfile.Write(filepath.Join(f.path(), ownerFile), []byte(id))
}

// Release is called when the container has been created, or not: from then on GC removes the files if they are not needed.
func (f *Files) Release() {
	if f == nil {
		return
	}
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	delete(f.store.running, f.name)
}

// Remove removes the files.
func (f *Files) Remove() error {
	if f == nil {
		return nil
	}
	return os.RemoveAll(f.path())
}

// Started ends the restore of the container id, which has been started with the result startErr, and removes its files. It returns
// startErr, to which it adds what CRIU has logged. hide has pairs of what a reader may not know and of what takes its place.
func (s *Store) Started(ctx context.Context, id string, startErr error, hide []string) error {
	owned, err := s.owned(id)
	if len(owned) == 0 && err == nil {
		return startErr
	}
	if startErr == nil {
		// berth-oci and CRIU have ended. What cannot be removed now is removed by GC.
		for _, name := range owned {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, name)))
		}
		if err != nil {
			s.log.Warn("files of a restored checkpoint could not be removed; it will be tried again", slog.String("container", id), slog.Any("err", err))
		}
		return nil
	}
	for _, name := range owned {
		dir := filepath.Join(s.dir, name)
		if reason := criu.RestoreErrors(filepath.Join(dir, ociedit.RestoreWork, ociedit.RestoreLog)); reason != "" {
			startErr = fmt.Errorf("CRIU cannot restore the container: %s: %w", strings.NewReplacer(append(hide, dir, "")...).Replace(reason), startErr)
		}
	}
	if err := s.Remove(ctx, id); err != nil {
		s.log.Warn("files of a checkpoint that could not be restored are left; it will be tried again", slog.String("container", id), slog.Any("err", err))
		for _, name := range owned {
			s.abandon(name)
		}
	}
	return startErr
}

// Remove ends what is left of the restore of the container id, which does not run, and removes its files. It is no error if there is
// nothing.
func (s *Store) Remove(ctx context.Context, id string) error {
	owned, err := s.owned(id)
	for _, name := range owned {
		err = errors.Join(err, s.end(ctx, name, id))
	}
	return err
}

// end ends what works for the directory name, with the processes that CRIU has made for the container id, and removes the files. id
// is "" if there is no container, or if it runs.
func (s *Store) end(ctx context.Context, name, id string) error {
	if id == "" {
		if err := criu.EndRestore(ctx, name); err != nil {
			return err // with the directory, so that it is tried again
		}
		return os.RemoveAll(filepath.Join(s.dir, name))
	}
	// Both at the same time, because CRIU makes processes until it ends; those that are left have it in the container's cgroup.
	err := criu.KillProcesses(ctx, func(pid int) bool {
		if criu.WorksFor(pid, name) {
			return true
		}
		_, err := cgroup.ForContainer(pid, id)
		return err == nil
	})
	if err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	if err := s.removeCgroup(ctx, name, id); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(s.dir, name))
}

const (
	// cgroupTimeout bounds the wait for a cgroup whose last process has been killed; rmdir fails until the kernel has released it.
	cgroupTimeout = 2 * time.Second
	pollInterval  = 20 * time.Millisecond
)

// removeCgroup removes the cgroup of the container id, which a runc that was killed has left.
func (s *Store) removeCgroup(ctx context.Context, name, id string) error {
	path, err := os.ReadFile(filepath.Join(s.dir, name, ociedit.RestoreCgroup))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if filepath.Base(string(path)) != id {
		return fmt.Errorf("cgroup %.200q is not that of container %s", path, id)
	}
	group, err := cgroup.At(string(path))
	if err != nil {
		return err
	}
	for end := time.Now().Add(cgroupTimeout); ; {
		err := group.Remove()
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
		if sleep.WithContext(ctx, pollInterval) != nil {
			return err
		}
	}
}

// directories returns the names of the directories.
func (s *Store) directories() (names []string, err error) {
	if s == nil {
		return nil, nil
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// owner returns the container that a directory belongs to, "" if there is none.
func (s *Store) owner(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, name, ownerFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return string(text), err
}

// owned returns the names of the directories of the container id.
func (s *Store) owned(id string) (owned []string, err error) {
	names, err := s.directories()
	for _, name := range names {
		owner, ownerErr := s.owner(name)
		err = errors.Join(err, ownerErr)
		if owner == id {
			owned = append(owned, name)
		}
	}
	return owned, err
}

// abandonedAfter is how long after its begin a restore is over, also if the Engine has died and shows the container as if it had never
// been started. It is longer than a start may take (core/container).
const abandonedAfter = 10 * time.Minute

// abandoned reports whether a restore has begun so long ago that it must have failed.
func (s *Store) abandoned(name string) bool {
	info, err := os.Stat(filepath.Join(s.dir, name, ociedit.RestoreWork))
	return err == nil && time.Since(info.ModTime()) > abandonedAfter
}

// abandon has GC remove the files of a restore that has failed: Docker shows its container as one that was never started.
func (s *Store) abandon(name string) {
	longAgo := time.Unix(0, 0)
	_ = os.Chtimes(filepath.Join(s.dir, name, ociedit.RestoreWork), longAgo, longAgo) // removed, or later by the clock
}

// GC removes the files of containers that Docker does not have, or that have been started, and those that have no container.
func (s *Store) GC(ctx context.Context, inspect func(ctx context.Context, id string) (container.InspectResponse, error)) error {
	names, err := s.directories()
	errs := []error{err}
	for _, name := range names {
		s.mu.Lock()
		running := s.running[name]
		s.mu.Unlock()
		if running {
			continue
		}
		id, err := s.owner(name)
		needed, alive := false, false
		if err == nil && id != "" {
			var found container.InspectResponse
			found, err = inspect(ctx, id)
			switch {
			case errdefs.IsNotFound(err):
				err = nil
			case err == nil:
				needed, alive = found.State.Status == container.StateCreated && !s.abandoned(name), found.State.Running
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("checkpoint %s of container %q: %w", name, id, err))
			continue
		}
		if needed {
			continue
		}
		s.log.Info("removing the files of a checkpoint that no container needs", slog.String("container", cmp.Or(id, "none")))
		if alive {
			id = "" // its processes stay
		}
		errs = append(errs, s.end(ctx, name, id))
	}
	return errors.Join(errs...)
}
