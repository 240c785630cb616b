package engine_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"berth/core/engine"
	"berth/core/engine/enginetest"
)

// All calls of one path and status are one series, whatever container they are about.
func TestCallDurationHasOneSeriesPerPath(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	reg := prometheus.NewPedanticRegistry()
	docker, err := engine.New(engine.Config{Host: e.Host, Metrics: reg}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- docker.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	first, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	conn, err := docker.WaitConn(first)
	if err != nil {
		t.Fatal(err)
	}
	series := func() (n int) {
		n, err := testutil.GatherAndCount(reg, "berthd_engine_call_duration_seconds")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	enginetest.Until(t, "want three series, for ping, info and events", func() bool { return series() == 3 })
	before := series()
	for _, id := range []string{"one", "two", "three"} {
		if _, err := conn.ContainerInspect(ctx, id); err == nil {
			t.Errorf("container %s exists, want none", id)
		}
	}
	if got := series(); got != before+1 {
		t.Errorf("%d more series, want one", got-before)
	}
	up, err := testutil.GatherAndCount(reg, "berthd_engine_up")
	if err != nil || up != 1 {
		t.Errorf("%d, %v", up, err)
	}
}

// Engines on the network, with and without TLS, whose host is configured or taken from the
// environment.
func TestCallDurationIsMeasuredOverTCP(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Api-Version", "1.24") // too old, so that Probe fails with it
	})
	for name, serve := range map[string]func(http.Handler) *httptest.Server{"plain": httptest.NewServer, "TLS": httptest.NewTLSServer} {
		t.Run(name, func(t *testing.T) {
			srv := serve(handler)
			defer srv.Close()
			if name == "TLS" {
				dir := t.TempDir()
				ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
				key, err := x509.MarshalPKCS8PrivateKey(srv.TLS.Certificates[0].PrivateKey)
				if err != nil {
					t.Fatal(err)
				}
				for file, text := range map[string][]byte{"ca.pem": ca, "cert.pem": ca, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
					if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				t.Setenv("DOCKER_CERT_PATH", dir)
				t.Setenv("DOCKER_TLS_VERIFY", "1")
			}
			host := "tcp://" + srv.Listener.Addr().String()
			t.Setenv("DOCKER_HOST", host)
			configured, err := engine.New(engine.Config{Host: host}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := configured.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "1.24") {
				t.Errorf("configured host: %v, want an error about API 1.24", err)
			}
			reg := prometheus.NewPedanticRegistry()
			docker, err := engine.New(engine.Config{Metrics: reg}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := docker.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "1.24") {
				t.Errorf("host from the environment: %v, want an error about API 1.24", err)
			}
			if n, err := testutil.GatherAndCount(reg, "berthd_engine_call_duration_seconds"); err != nil || n == 0 {
				t.Errorf("%d series, %v", n, err)
			}
		})
	}
}
