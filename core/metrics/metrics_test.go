package metrics

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// served returns a Server that runs, and how to ask it.
func served(t *testing.T, cfg Config) func(path string) (int, string) {
	t.Helper()
	if cfg.Gatherer == nil {
		cfg.Gatherer = prometheus.NewRegistry()
	}
	s, err := Listen("127.0.0.1:0", cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := http.Get("http://" + s.Addr().String()); err == nil {
			t.Error("served after its end")
		}
	})
	return func(path string) (int, string) {
		resp, err := http.Get("http://" + s.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
}

func TestHealth(t *testing.T) {
	var wrong error
	get := served(t, Config{Healthy: func(context.Context) error { return wrong }})
	if code, body := get("/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("%d %q", code, body)
	}
	wrong = errors.New("docker: away:\nno such file")
	if code, body := get("/healthz"); code != http.StatusServiceUnavailable || body != "docker: away: no such file\n" {
		t.Errorf("%d %q", code, body)
	}
}

// broken is a collector that cannot tell one of its metrics.
type broken struct{ good, bad *prometheus.Desc }

func (b broken) Describe(to chan<- *prometheus.Desc) { to <- b.good; to <- b.bad }

func (b broken) Collect(to chan<- prometheus.Metric) {
	to <- prometheus.MustNewConstMetric(b.good, prometheus.GaugeValue, 7)
	to <- prometheus.NewInvalidMetric(b.bad, errors.New("no"))
}

// One that cannot be told does not hide the others.
func TestMetricsAsFarAsTheyGo(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(broken{prometheus.NewDesc("good", "Good.", nil, nil), prometheus.NewDesc("bad", "Bad.", nil, nil)})
	get := served(t, Config{Gatherer: reg})
	if code, body := get("/metrics"); code != http.StatusOK || !strings.Contains(body, "good 7") {
		t.Errorf("%d %s", code, body)
	}
	for _, path := range []string{"/", "/debug/pprof/", "/debug/pprof/cmdline", "/metrics/x"} {
		if code, _ := get(path); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
}

func TestProfiles(t *testing.T) {
	get := served(t, Config{Profiles: true})
	for path, want := range map[string]string{"/debug/pprof/": "goroutine", "/debug/pprof/cmdline": "test", "/debug/pprof/goroutine?debug=1": "goroutine profile"} {
		if code, body := get(path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

// Two at one address is one line about that address.
func TestListenTwice(t *testing.T) {
	first, err := Listen("127.0.0.1:0", Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer first.listener.Close()
	if _, err := Listen(first.Addr().String(), Config{}, slog.New(slog.DiscardHandler)); err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "in use") {
		t.Errorf("%v", err)
	}
}
