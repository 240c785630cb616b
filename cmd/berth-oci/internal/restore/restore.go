// Package restore has a container go on from a checkpoint: it applies the changed files of the checkpoint to the root file system, and
// says how the runtime below has to be called.
//
// A checkpoint is restored once. Prepare makes the directory for CRIU's log before it changes anything; where that exists, also because
// another call was killed at any moment, it refuses, because the files may be changed in part. Kubernetes creates a new container then.
package restore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth/cmd/berth-oci/internal/argv"
	"berth/cmd/berth-oci/internal/spec"
	"berth/core/ociedit"
	"berth/core/rootdiff"
	"berth/core/trust"
)

// Prepare applies the files of a checkpoint to the root file system of a container that is being created, and returns the
// arguments of the verb restore, with which the runtime below creates it. The calling goroutine must be locked to its thread, which gets
// a mount namespace of its own: only this thread may become the runtime below.
func Prepare(call *argv.Invocation, s *spec.Spec, r *ociedit.Restore) (args []string, err error) {
	if call.Verb != "create" {
		return nil, fmt.Errorf("a container cannot be restored by %s", call.Verb)
	}
	if call.Console != "" {
		return nil, errors.New("a container with a terminal cannot be restored")
	}
	if err := s.FitsCheckpoint(r); err != nil {
		return nil, err
	}
	path, err := s.Root()
	if err != nil {
		return nil, err
	}
	dir, err := open(r.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the files of the checkpoint are not there any more: create a new container: %w", err)
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := unix.Mkdirat(int(dir.Fd()), ociedit.RestoreWork, 0o700); errors.Is(err, unix.EEXIST) {
		return nil, errors.New("a checkpoint is restored once, and this one was: create a new container")
	} else if err != nil {
		return nil, fmt.Errorf("directory for the log of CRIU: %w", err)
	}
	if err := applyFiles(dir, path); err != nil {
		return nil, err
	}
	if cgroup := s.CgroupPath(); cgroup != "" {
		if err := os.WriteFile(filepath.Join(r.Dir, ociedit.RestoreCgroup), []byte(cgroup), 0o600); err != nil {
			return nil, err
		}
	}
	if err := enterMountNamespace(); err != nil {
		return nil, fmt.Errorf("mount namespace of the runtime: %w", err)
	}
	args = []string{"restore", "--detach", "--no-subreaper", "--image-path", filepath.Join(r.Dir, ociedit.RestoreImages), "--work-path", filepath.Join(r.Dir, ociedit.RestoreWork), "--bundle", call.Bundle}
	if call.PIDFile != "" {
		args = append(args, "--pid-file", call.PIDFile)
	}
	if call.NoPivot {
		args = append(args, "--no-pivot")
	}
	return append(append(args, s.RestoreFlags()...), call.ID), nil
}

const (
	// configFile is what CRIU reads besides its arguments, and runcConfig what it would read without the annotation.
	configFile, runcConfig = "criu.conf", "/etc/criu/runc.conf"
	// configAnnotation names it (handleCriuConfigurationFile in runc's libcontainer).
	configAnnotation = "org.criu.config"
	// ignoreCgroups keeps the processes in the cgroup of CRIU.
	ignoreCgroups = "manage-cgroups=ignore\n"
)

// Configure has CRIU leave the processes in its own cgroup, in which runc has put it. It would move them to that of the checkpointed
// container, with none of the new one's limits. With cgroup v1 runc says which cgroup takes its place (CgRoot); with cgroup v2 it
// does not, and 1.2 and older do not pass the mode "ignore" on. So CRIU gets it by a file, which the annotations of s name.
func Configure(s *spec.Spec, r *ociedit.Restore) error {
	unified, err := isUnified()
	if err != nil || !unified {
		return err
	}
	dir, err := open(r.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // as Prepare says
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	text, err := os.ReadFile(runcConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	path := filepath.Join(r.Dir, configFile)
	if err := os.WriteFile(path, append(append(text, '\n'), ignoreCgroups...), 0o600); err != nil {
		return err
	}
	return s.Annotate(configAnnotation, path)
}

// isUnified reports whether the node has cgroup v2.
func isUnified() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		return false, fmt.Errorf("/sys/fs/cgroup: %w", err)
	}
	return st.Type == unix.CGROUP2_SUPER_MAGIC, nil
}

// enterMountNamespace gives the calling thread, which must be locked to its goroutine and is the one that becomes the runtime below, a
// mount namespace of its own. "runc restore" mounts the root file system in its state directory, and volumes below the root file
// system. If it is killed, nobody unmounts them, and "runc delete --force" removes everything below the state directory, also what is
// mounted there. In a namespace of their own they end with the last process in it.
func enterMountNamespace() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make / a slave: %w", err)
	}
	return nil
}

// open opens the directory of a checkpoint, which only root can enter or change.
func open(path string) (*os.File, error) {
	if err := trust.Check(path); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	dir, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	if info, err := dir.Stat(); err != nil || info.Mode().Perm()&0o077 != 0 {
		return nil, errors.Join(fmt.Errorf("checkpoint: %s must have mode 0700", path), err, dir.Close())
	}
	return dir, nil
}

// applyFiles applies the changes of the root file system to the one at path.
func applyFiles(dir *os.File, path string) error {
	root, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	defer root.Close()
	deleted, _, err := openFile(dir, ociedit.RestoreDeleted)
	if err == nil {
		defer deleted.Close()
		text, err := io.ReadAll(io.LimitReader(deleted, rootdiff.MaxDeleted+1))
		if err != nil {
			return err
		}
		paths, err := rootdiff.ParseDeleted(text)
		if err == nil {
			err = rootdiff.Delete(root, paths)
		}
		if err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	changed, size, err := openFile(dir, ociedit.RestoreFiles)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer changed.Close()
	return rootdiff.Apply(root, changed, size)
}

// openFile opens a regular file of a checkpoint.
func openFile(dir *os.File, name string) (f *os.File, size int64, err error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f = os.NewFile(uintptr(fd), name)
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New(name + " is not a regular file")
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}
