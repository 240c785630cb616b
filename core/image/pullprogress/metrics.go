package pullprogress

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// A Result is how a pull ended.
type Result string

// Results of a pull.
const (
	Success  Result = "success"
	Failure  Result = "error"
	Canceled Result = "canceled" // its callers have gone, or their deadlines have passed
	Stalled  Result = "stalled"  // no progress for too long
)

// metrics are those of all pulls.
type metrics struct {
	bytes   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

// newMetrics registers the metrics with reg, which may be nil. running returns the number of pulls.
func newMetrics(reg prometheus.Registerer, running func() float64) metrics {
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berthd_image_pulls_running",
		Help: "Number of images that are being pulled; requests that share a pull count once.",
	}, running)
	m := metrics{
		bytes: promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
			Name: "berthd_image_pull_bytes_total",
			Help: "Bytes of layers that ended pulls have downloaded, by result of the pull.",
		}, []string{"result"}),
		seconds: promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berthd_image_pull_seconds",
			Help:    "Time that pulls of images took, by result.",
			Buckets: []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600},
		}, []string{"result"}),
	}
	for _, result := range []Result{Success, Failure, Canceled, Stalled} {
		m.bytes.WithLabelValues(string(result)) // a rate needs the value before the first pull
		m.seconds.WithLabelValues(string(result))
	}
	return m
}

func (m metrics) observe(result Result, received int64, took time.Duration) {
	m.bytes.WithLabelValues(string(result)).Add(float64(received))
	m.seconds.WithLabelValues(string(result)).Observe(took.Seconds())
}
