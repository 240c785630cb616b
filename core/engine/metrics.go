package engine

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// newCallDuration returns the histogram of the Engine's response times and registers it
// with reg, which may be nil.
func newCallDuration(reg prometheus.Registerer) *prometheus.HistogramVec {
	return promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "berthd_engine_call_duration_seconds",
		Help:    "Time until Docker begins to answer a call of its API, by method, path and status; the status is error if there was no answer.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120},
	}, []string{"method", "path", "status"})
}

// apiPathSegments are the fixed segments of paths of the Engine API.
var apiPathSegments = []string{
	"_ping", "archive", "attach", "auth", "build", "commit", "containers", "copy", "create", "df", "distribution", "events", "exec",
	"export", "get", "history", "images", "info", "json", "kill", "load", "logs", "networks", "pause", "plugins", "prune", "push",
	"rename", "resize", "restart", "search", "services", "start", "stats", "stop", "system", "tag", "top", "unpause", "update",
	"version", "volumes", "wait", "changes",
}

// apiPath returns the path of a request without API version and with {id} in place of IDs
// and names, so that a metric has few series: /v1.41/containers/0123/json is
// /containers/{id}/json. A path of none of Docker's APIs is "other".
func apiPath(path string) string {
	var parts []string
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if len(parts) == 0 && len(part) > 1 && part[0] == 'v' && part[1] >= '0' && part[1] <= '9' {
			continue
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 || !slices.Contains(apiPathSegments, parts[0]) {
		return "other"
	}
	// Between the first and the last segment is a name, which has slashes if it is that of
	// an image. The last segment is a name if it is not a fixed segment.
	first, rest := "/"+parts[0], parts[1:]
	if len(rest) == 0 {
		return first
	}
	last := rest[len(rest)-1]
	switch fixed := slices.Contains(apiPathSegments, last); {
	case !fixed:
		return first + "/{id}"
	case len(rest) == 1:
		return first + "/" + last
	default:
		return first + "/{id}/" + last
	}
}
