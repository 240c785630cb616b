package logs

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Export lets reg know how s does.
func (s *Service) Export(reg prometheus.Registerer) error {
	return reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berthd_log_lag_seconds",
		Help: "How far the log that is furthest behind is: for how long there has been output that is not in the kubelet's file. Not of logs that are read from Docker's log stream.",
	}, func() float64 { return s.lag().Seconds() }))
}

// lag returns for how long the log that is furthest behind has been so.
func (s *Service) lag() (most time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pumps {
		// One that is at rest has nothing to do.
		if p.running && !p.follows {
			most = max(most, time.Since(p.caughtUp))
		}
	}
	return most
}
