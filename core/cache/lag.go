package cache

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A lag is how far the view is behind what the Engine has told of.
type lag struct {
	times prometheus.Histogram

	mu     sync.Mutex           // guards unseen
	unseen map[string]time.Time // when the first event was that has not been looked at yet, by ID
}

func newLag(reg prometheus.Registerer) *lag {
	l := &lag{unseen: map[string]time.Time{}}
	l.times = promauto.With(reg).NewHistogram(prometheus.HistogramOpts{
		Name:    "berthd_cache_lag_seconds",
		Help:    "Time from a change in Docker until it is in all answers.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 30},
	})
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berthd_cache_oldest_change_seconds",
		Help: "How old the oldest change is that Docker has told of and that is not in the answers yet.",
	}, func() float64 { return l.oldest().Seconds() })
	return l
}

// heard takes note of an event about id.
func (l *lag) heard(id string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, waits := l.unseen[id]; !waits {
		l.unseen[id] = at
	}
}

// seen takes note that id has been looked at since its last event.
func (l *lag) seen(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, waits := l.unseen[id]; waits {
		l.times.Observe(max(time.Since(at), 0).Seconds()) // the Engine's clock may be another one
		delete(l.unseen, id)
	}
}

// clear forgets all that was heard.
func (l *lag) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.unseen)
}

func (l *lag) oldest() (most time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.unseen {
		most = max(most, time.Since(at))
	}
	return most
}

// export lets reg know what v holds.
func (v *Cache) export(reg prometheus.Registerer) {
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berthd_cache_in_sync",
		Help: "Whether answers are given from what Docker has now.",
	}, func() float64 {
		conn, err := v.docker.Conn()
		v.mu.RLock()
		defer v.mu.RUnlock()
		if err != nil || v.synced != conn {
			return 0
		}
		return 1
	})
	for state := range runtimeapi.PodSandboxState_name {
		promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
			Name: "berthd_sandboxes", Help: "Pods that there are, by their state.",
			ConstLabels: prometheus.Labels{"state": runtimeapi.PodSandboxState(state).String()},
		}, func() float64 {
			return float64(count(v, v.sandboxes, func(s *Sandbox) int32 { return int32(s.Row.GetState()) }, state))
		})
	}
	for state := range runtimeapi.ContainerState_name {
		promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
			Name: "berthd_containers", Help: "Containers that there are, by their state.",
			ConstLabels: prometheus.Labels{"state": runtimeapi.ContainerState(state).String()},
		}, func() float64 {
			return float64(count(v, v.containers, func(c *Container) int32 { return int32(c.Row.GetState()) }, state))
		})
	}
}

// count returns how many of in are in that state.
func count[T any](v *Cache, in map[string]*entry[T], of func(T) int32, state int32) (n int) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, e := range in {
		if of(e.seen) == state {
			n++
		}
	}
	return n
}
