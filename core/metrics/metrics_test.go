package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"berth/core/httpserver"
)

// serve runs a Server until the test ends and returns a function that requests a path.
func serve(t *testing.T, cfg Config) func(path string) (int, string) {
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
			t.Error("the server still listens after Run")
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

func TestHealthIsOneLine(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		body string
	}{
		{nil, http.StatusOK, "ok\n"},
		{errors.New("docker: not available:\nno such file"), http.StatusServiceUnavailable, "docker: not available: no such file\n"},
	} {
		get := serve(t, Config{CheckHealth: func(context.Context) error { return tt.err }})
		if code, body := get("/healthz"); code != tt.code || body != tt.body {
			t.Errorf("%d %q", code, body)
		}
	}
}

// brokenCollector is a collector of one valid and one invalid metric.
type brokenCollector struct{ good, bad *prometheus.Desc }

func (b brokenCollector) Describe(to chan<- *prometheus.Desc) { to <- b.good; to <- b.bad }

func (b brokenCollector) Collect(to chan<- prometheus.Metric) {
	to <- prometheus.MustNewConstMetric(b.good, prometheus.GaugeValue, 7)
	to <- prometheus.NewInvalidMetric(b.bad, errors.New("no"))
}

func TestInvalidMetricDoesNotBlankTheOthers(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(brokenCollector{prometheus.NewDesc("good", "Good.", nil, nil), prometheus.NewDesc("bad", "Bad.", nil, nil)})
	get := serve(t, Config{Gatherer: reg})
	if code, body := get("/metrics"); code != http.StatusOK || !strings.Contains(body, "good 7") {
		t.Errorf("%d %s", code, body)
	}
	for _, path := range []string{"/", "/debug/pprof/", "/debug/pprof/cmdline", "/metrics/x"} {
		if code, _ := get(path); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
}

func TestProfilesAreServedIfEnabled(t *testing.T) {
	get := serve(t, Config{EnablePprof: true})
	for path, want := range map[string]string{"/debug/pprof/": "goroutine", "/debug/pprof/cmdline": "test", "/debug/pprof/goroutine?debug=1": "goroutine profile"} {
		if code, body := get(path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

func TestListenOnAddressInUseFailsWithOneLine(t *testing.T) {
	first, err := Listen("127.0.0.1:0", Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer first.listener.Close()
	if _, err := Listen(first.Addr().String(), Config{}, slog.New(slog.DiscardHandler)); err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "in use") {
		t.Errorf("%v", err)
	}
}

func TestConcurrentHealthRequestsShareOneCheck(t *testing.T) {
	var checks atomic.Int64
	release := make(chan struct{})
	get := serve(t, Config{CheckHealth: func(context.Context) error {
		checks.Add(1)
		<-release
		return nil
	}})
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			if code, body := get("/healthz"); code != http.StatusOK {
				t.Errorf("%d %q", code, body)
			}
		})
	}
	for checks.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	close(release)
	all.Wait()
	// Requests that came after the first check may have caused another.
	if n := checks.Load(); n > 2 {
		t.Errorf("checked %d times", n)
	}
}

func TestClientsThatDoNotReadDoNotBlockOthers(t *testing.T) {
	reg := prometheus.NewRegistry()
	for i := range 8 { // together more than the buffers of a socket hold
		reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: fmt.Sprintf("metric_%d", i), Help: strings.Repeat("y", 1<<20)}))
	}
	s, err := Listen("127.0.0.1:0", Config{Gatherer: reg, CheckHealth: func(context.Context) error { return nil }}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for range 2 * maxScrapes {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil { // the response has begun and is read no further
			t.Fatal(err)
		}
	}
	resp, err := http.Get("http://" + s.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestConnectionBeyondTheLimitWaitsForAnotherToClose(t *testing.T) {
	s, err := Listen("127.0.0.1:0", Config{Gatherer: prometheus.NewRegistry(), CheckHealth: func(context.Context) error { return nil }}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	request := func(conn net.Conn) error {
		_, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
		return err
	}
	var conns []net.Conn
	for range httpserver.MaxConns {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := request(conn); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	late, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if err := late.SetDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if err := request(late); err == nil {
		t.Error("a connection beyond the limit was served")
	}
	conns[0].Close()
	if err := late.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(late, make([]byte, 1)); err != nil {
		t.Errorf("not served after another connection was closed: %v", err)
	}
}
