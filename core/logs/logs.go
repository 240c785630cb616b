// Package logs is the room of the kubelet's log files.
//
// In this form a log file is a link to the json-file of the Engine, as
// cri-dockerd makes it: the kubelet reads it, and the Engine bounds it by the
// log-opts of daemon.json.
package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
)

// A Service keeps the links.
type Service struct {
	mu    sync.Mutex        // guards paths
	paths map[string]string // of links, by container ID
}

// New returns a Service without links.
func New() *Service {
	return &Service{paths: map[string]string{}}
}

// Open links path to source, the Engine's own file of the container id, which
// need not be there yet. What was at path is replaced.
func (s *Service) Open(id, source, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paths[id] = path
	if target, err := os.Readlink(path); err == nil && target == source {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(source, path)
}

// Reopen refuses: a link to a file that the Engine writes cannot be rotated.
func (s *Service) Reopen(id string) error {
	return fmt.Errorf("the log of container %s is Docker's json-file and rotated by Docker (max-size in log-opts of daemon.json): %w", id, errdefs.ErrFailedPrecondition)
}

// Close removes the link of the container id, if there is one and it still is
// a link: it leads nowhere once the container is gone.
func (s *Service) Close(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	path, ok := s.paths[id]
	if !ok {
		return nil
	}
	delete(s.paths, id)
	if _, err := os.Readlink(path); err != nil {
		return nil // moved away, or the kubelet's own
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
