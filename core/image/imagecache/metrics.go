package imagecache

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are the counters of a Cache.
type metrics struct {
	fromCache, fromDocker prometheus.Counter // requests
	syncs                 prometheus.Counter
}

// count counts a request.
func (c *Cache) count(fromCache bool) {
	if fromCache {
		c.metrics.fromCache.Inc()
	} else {
		c.metrics.fromDocker.Inc()
	}
}

// registerMetrics registers the metrics of c. A nil reg is allowed.
func (c *Cache) registerMetrics(reg prometheus.Registerer) {
	requests := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "berthd_image_cache_requests_total",
		Help: "Number of CRI requests for images, by whether they were answered from the cache or by a call of Docker.",
	}, []string{"source"})
	c.metrics = metrics{
		fromCache: requests.WithLabelValues("cache"), fromDocker: requests.WithLabelValues("docker"),
		syncs: promauto.With(reg).NewCounter(prometheus.CounterOpts{
			Name: "berthd_image_cache_syncs_total", Help: "Number of lists of all images that were requested from Docker.",
		}),
	}
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berthd_image_cache_in_sync",
		Help: "Whether the cache of images follows Docker's events and CRI requests are answered from it.",
	}, func() float64 {
		conn, err := c.engine.Conn()
		c.mu.Lock()
		defer c.mu.Unlock()
		if err != nil || c.stream != conn || c.images == nil {
			return 0
		}
		return 1
	})
}
