package stats

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// exportPatience is how long those who collect samples wait for them at most.
const exportPatience = 8 * time.Second

// Export lets reg know all that Metrics tells, with fractions of seconds. It
// is read when reg is, and not after ctx has ended.
func (s *Service) Export(ctx context.Context, reg prometheus.Registerer) error {
	e := &exporter{ctx: ctx, stats: s, known: map[*family]*prometheus.Desc{}}
	for _, f := range told(thisHost()) {
		e.known[f] = prometheus.NewDesc(f.name, f.help, f.labelKeys(), nil)
	}
	return reg.Register(e)
}

type exporter struct {
	ctx   context.Context //nolint:containedctx // a prometheus.Collector has no other way
	stats *Service
	known map[*family]*prometheus.Desc
}

// Describe tells what there will be.
func (e *exporter) Describe(to chan<- *prometheus.Desc) {
	for _, d := range e.known {
		to <- d
	}
}

// Collect reads all pods. While the Engine is away there are none to be read:
// that is told elsewhere, and no reason to tell nothing at all.
func (e *exporter) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(e.ctx, exportPatience)
	defer cancel()
	list, err := e.stats.sample(ctx)
	if err != nil {
		e.stats.log.Debug("no metrics of pods", slog.Any("err", err))
		return
	}
	for _, p := range list {
		e.send(to, p.own)
		for _, c := range p.containers {
			e.send(to, c.own)
		}
	}
}

func (e *exporter) send(to chan<- prometheus.Metric, list []sample) {
	for _, m := range list {
		kind, n := prometheus.CounterValue, float64(m.n)
		if m.family.kind == runtimeapi.MetricType_GAUGE {
			kind = prometheus.GaugeValue
		}
		if m.family.nanos {
			n /= float64(time.Second)
		}
		one, err := prometheus.NewConstMetric(e.known[m.family], kind, n, m.values...)
		if err != nil {
			one = prometheus.NewInvalidMetric(e.known[m.family], err)
		}
		to <- one
	}
}
