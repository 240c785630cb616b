// Package ociruntime writes the instructions of containers for berth-oci, the OCI runtime of berth, and
// removes them with their containers; and it finds out whether the kernel and the file system of
// images can do what pods with user namespaces need.
package ociruntime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/containerd/errdefs"

	"berth/core/engine"
	"berth/core/names"
	"berth/core/ociedit"
	"berth/core/userns"
)

// A Store is the directory of the instructions. A nil Store has none: no container can have instructions.
type Store struct {
	dir   string
	probe func(engine.Features) error
}

// New returns the Store in a directory that only root can enter, or that does not exist yet. probe says
// why pods with user namespaces are not possible (Prober.Probe).
func New(dir string, probe func(engine.Features) error) *Store { return &Store{dir, probe} }

// Write stores what berth-oci has to change in the container id; instructions that change nothing have no file. Their
// container and sandbox are set here. sandboxPID is the first process of its pause container, 0 for a pause container.
// It is called after Docker has created the container and before it is started: each start reads the instructions.
func (s *Store) Write(id string, sandboxPID int, instructions ociedit.Instructions) error {
	if !instructions.Changes() {
		return nil
	}
	if s == nil {
		return fmt.Errorf("container %s needs instructions for the OCI runtime, and there is no directory for them: %w", id, errdefs.ErrFailedPrecondition)
	}
	instructions.ContainerID = id
	if sandboxPID != 0 && (instructions.UserNamespace != nil || len(instructions.JoinNamespaces) > 0) {
		process, err := ociedit.FindProcess(sandboxPID)
		if err != nil {
			return fmt.Errorf("sandbox of container %s: %w: %w", id, err, errdefs.ErrFailedPrecondition)
		}
		instructions.Sandbox = &process
	}
	complete, err := withID(instructions, id)
	if err != nil {
		return fmt.Errorf("instructions of container %s: %w", id, err)
	}
	return ociedit.Write(s.dir, complete)
}

// withID returns instructions with the ID of the container in place of names.UnknownID.
func withID(instructions ociedit.Instructions, id string) (out ociedit.Instructions, err error) {
	text, err := json.Marshal(instructions)
	if err != nil || !bytes.Contains(text, []byte(names.UnknownID)) {
		return instructions, err
	}
	return out, json.Unmarshal(bytes.ReplaceAll(text, []byte(names.UnknownID), []byte(id)), &out)
}

// Remove removes the instructions of a container that does not exist any more, if it had any.
func (s *Store) Remove(id string) error {
	if s == nil {
		return nil
	}
	return ociedit.Remove(s.dir, id)
}

// GC removes the instructions of containers that do not exist. known reports whether berth knows the
// container; Docker is asked for the others, because berth may not know one that is being created.
func (s *Store) GC(ctx context.Context, docker *engine.Conn, known func(id string) bool, log *slog.Logger) error {
	if s == nil {
		return nil
	}
	ids, err := ociedit.List(s.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if known(id) {
			continue
		}
		short, cancel := docker.WithRequestTimeout(ctx)
		_, err := docker.ContainerInspect(short, id)
		cancel()
		switch {
		case err == nil:
		case errdefs.IsNotFound(err):
			log.Info("removing instructions for the OCI runtime of a container that does not exist", slog.String("container", id))
			errs = append(errs, s.Remove(id))
		default:
			return errors.Join(append(errs, fmt.Errorf("inspect %s: %w", id, err))...)
		}
	}
	return errors.Join(errs...)
}

// Support returns what the node has for pods with user namespaces.
func (s *Store) Support() userns.Support {
	if s == nil {
		return userns.Support{}
	}
	return userns.Support{Dir: s.dir, Probe: s.probe}
}
