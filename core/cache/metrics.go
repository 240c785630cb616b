package cache

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

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
