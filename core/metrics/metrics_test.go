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
	for _, tt := range []struct {
		wrong error
		code  int
		body  string
	}{
		{nil, http.StatusOK, "ok\n"},
		{errors.New("docker: away:\nno such file"), http.StatusServiceUnavailable, "docker: away: no such file\n"},
	} {
		get := served(t, Config{Healthy: func(context.Context) error { return tt.wrong }})
		if code, body := get("/healthz"); code != tt.code || body != tt.body {
			t.Errorf("%d %q", code, body)
		}
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

// However many ask whether all is well, and hang up, one at a time finds out.
func TestHealthIsCheckedOnceForAll(t *testing.T) {
	var checks atomic.Int64
	release := make(chan struct{})
	get := served(t, Config{Healthy: func(context.Context) error {
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
	// Those who came after the first had been answered may have found out once more.
	if n := checks.Load(); n > 2 {
		t.Errorf("checked %d times", n)
	}
}

// Clients that ask and do not read keep nobody else from being answered.
func TestSlowReadersDoNotHoldUpMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	for i := range 8 { // together more than a socket holds
		reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: fmt.Sprintf("metric_%d", i), Help: strings.Repeat("y", 1<<20)}))
	}
	s, err := Listen("127.0.0.1:0", Config{Gatherer: reg, Healthy: func(context.Context) error { return nil }}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for range 2 * atOnce {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil { // its answer is under way, and is read no further
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

// There are so many clients at most; one more waits until another has gone.
func TestConnectionsAreBounded(t *testing.T) {
	s, err := Listen("127.0.0.1:0", Config{Gatherer: prometheus.NewRegistry(), Healthy: func(context.Context) error { return nil }}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	ask := func(conn net.Conn) error {
		_, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
		return err
	}
	var conns []net.Conn
	for range maxConns {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := ask(conn); err != nil {
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
	if err := ask(late); err == nil {
		t.Error("one more is let in")
	}
	conns[0].Close()
	if err := late.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(late, make([]byte, 1)); err != nil {
		t.Errorf("it is not let in when another has gone: %v", err)
	}
}
