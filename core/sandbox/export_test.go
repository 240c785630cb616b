package sandbox

import "time"

// SetPatience changes for how long at least a network that cannot be taken back is
// tried.
func (s *Service) SetPatience(d time.Duration) { s.patience = d }
