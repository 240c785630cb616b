package stats

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/stats/cgroupstats"
)

// collectTimeout is how long a Prometheus scrape waits for the metrics of pods. The
// default scrape_timeout is 10 s.
const collectTimeout = 8 * time.Second

// RegisterMetrics registers a collector for all metrics of Metrics with reg; times have fractions
// of seconds there. It collects nothing after ctx has ended.
func (s *Service) RegisterMetrics(ctx context.Context, reg prometheus.Registerer) error {
	c := &collector{ctx: ctx, stats: s, descs: map[*family]*prometheus.Desc{}}
	for _, f := range supportedFamilies(cgroupstats.ThisHost()) {
		c.descs[f] = prometheus.NewDesc(f.name, f.help, f.labelKeys(), nil)
	}
	return reg.Register(c)
}

// A collector is a prometheus.Collector.
type collector struct {
	ctx   context.Context //nolint:containedctx // prometheus.Collector has no context parameter
	stats *Service
	descs map[*family]*prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		to <- d
	}
}

// Collect implements prometheus.Collector. Without a connection to Docker it collects
// nothing: that must not fail the scrape of the other metrics of berthd, which report it.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(c.ctx, collectTimeout)
	defer cancel()
	list, err := c.stats.scrapeAll(ctx)
	if err != nil {
		c.stats.log.Debug("no metrics of pods", slog.Any("err", err))
		return
	}
	for _, p := range list {
		c.send(to, p.pod)
		for _, container := range p.containers {
			c.send(to, container.metrics)
		}
	}
}

func (c *collector) send(to chan<- prometheus.Metric, list []metric) {
	for _, m := range list {
		valueType, value := prometheus.CounterValue, float64(m.value)
		if m.family.kind == runtimeapi.MetricType_GAUGE {
			valueType = prometheus.GaugeValue
		}
		if m.family.nanos {
			value /= float64(time.Second)
		}
		desc := c.descs[m.family]
		out, err := prometheus.NewConstMetric(desc, valueType, value, m.labelValues...)
		if err != nil {
			out = prometheus.NewInvalidMetric(desc, err)
		}
		to <- out
	}
}
