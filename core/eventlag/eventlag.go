// Package eventlag measures how far the cache is behind Docker's events, for the metrics
// berthd_cache_lag_seconds and berthd_cache_oldest_change_seconds.
package eventlag

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// A Lag measures how long it takes from an event of Docker until the cache has the state
// after it. Its methods may be called concurrently.
type Lag struct {
	seconds prometheus.Histogram

	mu      sync.Mutex           // guards pending
	pending map[string]time.Time // time of the first event that is not in the cache yet, by container ID
}

// New returns a Lag whose metrics are registered with reg, which may be nil.
func New(reg prometheus.Registerer) *Lag {
	l := &Lag{pending: map[string]time.Time{}}
	l.seconds = promauto.With(reg).NewHistogram(prometheus.HistogramOpts{
		Name:    "berthd_cache_lag_seconds",
		Help:    "Time from a change of a container in Docker until the cache has it.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 30},
	})
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berthd_cache_oldest_change_seconds",
		Help: "Age of the oldest event of Docker whose change is not in the cache yet.",
	}, func() float64 { return l.oldest().Seconds() })
	return l
}

// Event records an event of the container id.
func (l *Lag) Event(id string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.pending[id]; !ok {
		l.pending[id] = at
	}
}

// Applied records that the container id has been inspected since its last event.
func (l *Lag) Applied(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.pending[id]; ok {
		l.seconds.Observe(max(time.Since(at), 0).Seconds()) // a remote Engine's clock may be ahead
		delete(l.pending, id)
	}
}

// Reset forgets all events.
func (l *Lag) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.pending)
}

// oldest returns the age of the oldest pending event.
func (l *Lag) oldest() (age time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.pending {
		age = max(age, time.Since(at))
	}
	return age
}
