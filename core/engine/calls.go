package engine

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// newCalls makes the measure of how long the Engine takes for each kind of
// call, known to reg unless that is nil.
func newCalls(reg prometheus.Registerer) *prometheus.HistogramVec {
	return promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "berthd_engine_call_duration_seconds",
		Help:    "Time until Docker begins to answer a call, by what is called; the status is error where there was no answer.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120},
	}, []string{"method", "path", "status"})
}

// words are what the paths of the Engine's API consist of, but for names.
var words = []string{
	"_ping", "archive", "attach", "auth", "build", "commit", "containers", "copy", "create", "df", "distribution", "events", "exec",
	"export", "get", "history", "images", "info", "json", "kill", "load", "logs", "networks", "pause", "plugins", "prune", "push",
	"rename", "resize", "restart", "search", "services", "start", "stats", "stop", "system", "tag", "top", "unpause", "update",
	"version", "volumes", "wait", "changes",
}

// pattern returns the path of a request with {id} for what it is about, so
// that there are few of them: /v1.41/containers/0123/json is /containers/{id}/json.
func pattern(path string) string {
	var parts []string
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if len(parts) == 0 && len(part) > 1 && part[0] == 'v' && part[1] >= '0' && part[1] <= '9' {
			continue
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 || !slices.Contains(words, parts[0]) {
		return "other"
	}
	// What is in the middle is a name, of an image with slashes too; what is at
	// the end is one where it is no word.
	out := "/" + parts[0]
	rest := parts[1:]
	switch {
	case len(rest) == 0:
		return out
	case len(rest) == 1 && !slices.Contains(words, rest[0]):
		return out + "/{id}"
	case len(rest) == 1:
		return out + "/" + rest[0]
	}
	if last := rest[len(rest)-1]; slices.Contains(words, last) {
		return out + "/{id}/" + last
	}
	return out + "/{id}"
}
