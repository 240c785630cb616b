package sandbox

import (
	"context"
	"time"
)

// SetPatience changes for how long at least a network that cannot be taken back is
// tried.
func (s *Service) SetPatience(d time.Duration) { s.patience = d }

// GC does one round of garbage collection.
func (s *Service) GC(ctx context.Context) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	return s.clean(ctx, docker)
}

// PutIntent stores an intent as a daemon does that is killed right after.
func (s *Service) PutIntent(name string) error { return s.state.intents.Put(name, intent{Name: name}) }
