package container

import (
	"context"
	"time"
)

// RemoveLate removes what was set aside before then.
func (s *Service) RemoveLate(ctx context.Context, then time.Time) { s.removeLate(ctx, then) }

// IsGone reports whether err says that a process has ended, and its cgroup with it.
func IsGone(err error) bool { return gone(err) == nil }
