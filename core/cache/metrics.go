package cache

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventLag measures how long it takes from an event of Docker until the cache has the
// state after it.
type eventLag struct {
	seconds prometheus.Histogram

	mu      sync.Mutex           // guards pending
	pending map[string]time.Time // time of the first event that is not in the cache yet, by container ID
}

func newEventLag(reg prometheus.Registerer) *eventLag {
	l := &eventLag{pending: map[string]time.Time{}}
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

// observeEvent records an event of the container id.
func (l *eventLag) observeEvent(id string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.pending[id]; !ok {
		l.pending[id] = at
	}
}

// observeApplied records that the container id has been inspected since its last event.
func (l *eventLag) observeApplied(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.pending[id]; ok {
		l.seconds.Observe(max(time.Since(at), 0).Seconds()) // a remote Engine's clock may be ahead
		delete(l.pending, id)
	}
}

// reset forgets all events.
func (l *eventLag) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.pending)
}

// oldest returns the age of the oldest pending event.
func (l *eventLag) oldest() (age time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.pending {
		age = max(age, time.Since(at))
	}
	return age
}

// registerGauges registers the gauges of what the cache holds. A nil reg is allowed.
func (c *Cache) registerGauges(reg prometheus.Registerer) {
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berthd_cache_in_sync",
		Help: "Whether the cache is in sync with Docker and CRI requests are answered from it.",
	}, func() float64 {
		conn, err := c.engine.Conn()
		c.mu.RLock()
		defer c.mu.RUnlock()
		if err != nil || c.synced != conn {
			return 0
		}
		return 1
	})
	gauge := func(name, help, state string, count func() int) {
		promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
			Name: name, Help: help, ConstLabels: prometheus.Labels{"state": state},
		}, func() float64 {
			c.mu.RLock()
			defer c.mu.RUnlock()
			return float64(count())
		})
	}
	for state, name := range runtimeapi.PodSandboxState_name {
		gauge("berthd_sandboxes", "Number of pod sandboxes by state.", name, func() int {
			return countEntries(c.sandboxes, func(s *Sandbox) bool { return int32(s.Row.GetState()) == state })
		})
	}
	for state, name := range runtimeapi.ContainerState_name {
		gauge("berthd_containers", "Number of containers of pods by state.", name, func() int {
			return countEntries(c.containers, func(ctr *Container) bool { return int32(ctr.Row.GetState()) == state })
		})
	}
}

func countEntries[T any](entries map[string]*entry[T], match func(T) bool) (n int) {
	for _, e := range entries {
		if match(e.value) {
			n++
		}
	}
	return n
}
