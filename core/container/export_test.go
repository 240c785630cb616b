package container

import (
	"context"
	"time"
)

// ExpirePending removes the containers that wait for a retry since before cutoff.
func (s *Service) ExpirePending(ctx context.Context, cutoff time.Time) { s.pending.Expire(ctx, cutoff) }
