package sandbox

import (
	"context"
	"time"
)

// SetDetachGrace changes for how long at least a network that cannot be released is
// tried.
func (s *Service) SetDetachGrace(d time.Duration) { s.detachGrace = d }

// GC does one pass of RunGC.
func (s *Service) GC(ctx context.Context) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	return s.gcOnce(ctx, docker)
}

// PutIntent stores an intent as a daemon does that is killed right after.
func (s *Service) PutIntent(name string) error { return s.state.intents.Put(name, intent{Name: name}) }

// ExpirePending removes all sandboxes that wait for a retry.
func (s *Service) ExpirePending(ctx context.Context) { s.pending.Expire(ctx, time.Now()) }
