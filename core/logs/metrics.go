package logs

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Export registers the metrics of s with reg.
func (s *Service) Export(reg prometheus.Registerer) error {
	return reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berthd_log_lag_seconds",
		Help: "Longest time for which a container's log has had output that is not in its CRI log file yet. Does not include logs that are read from Docker's log stream.",
	}, func() float64 { return s.lag().Seconds() }))
}

// lag returns for how long the log that is furthest behind has been behind.
func (s *Service) lag() (longest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pumps {
		if p.schedule == parked || p.schedule == retired || p.sourcePath == "" {
			continue // parked: nothing to copy; no path: a log stream
		}
		longest = max(longest, time.Since(p.caughtUp))
	}
	return longest
}
