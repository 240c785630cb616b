package container

import (
	"context"
	"time"
)

// RemoveLate removes what was set aside before then.
func (s *Service) RemoveLate(ctx context.Context, then time.Time) { s.removeLate(ctx, then) }
