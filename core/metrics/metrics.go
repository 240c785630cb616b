// Package metrics is the HTTP server for monitoring.
//
// It serves the metrics of a Prometheus registry at /metrics, the health of the daemon at
// /healthz and, if enabled, profiles of the Go runtime at /debug/pprof/. It has no
// authentication and changes nothing. Other packages register their metrics; this one
// knows none of them.
package metrics

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/singleflight"

	"berth/core/httpserver"
)

const (
	// maxScrapes is how many requests for /metrics are served at a time: each reads files
	// of all pods. Prometheus servers beyond that get status 503.
	maxScrapes = 2
	// checkTimeout is how long a health check may take.
	checkTimeout = 3 * time.Second
	// checkTTL is how long the result of a health check is returned to other clients.
	checkTTL = time.Second
)

// Config is what a Server serves.
type Config struct {
	// Gatherer provides the metrics of /metrics.
	Gatherer prometheus.Gatherer
	// CheckHealth is the health check of /healthz; its error is the body of the response.
	CheckHealth func(ctx context.Context) error
	// EnablePprof enables /debug/pprof/.
	EnablePprof bool
}

// A Server is an HTTP server for monitoring that has its address already. Run serves.
type Server struct {
	Config
	listener net.Listener
	log      *slog.Logger

	checks    singleflight.Group
	lastCheck time.Time // used within checks only
	lastErr   error     // used within checks only
}

// Listen returns a Server that listens on the TCP address addr.
func Listen(addr string, cfg Config, log *slog.Logger) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &Server{Config: cfg, listener: l, log: log}, nil
}

// Addr returns the address of s.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends. Pods do not depend on it: if it fails, that is logged and Run
// returns nil, so that the daemon continues.
func (s *Server) Run(ctx context.Context) error {
	if err := httpserver.Serve(ctx, s.listener, s.routes(), s.log); err != nil {
		s.log.Error("monitoring server failed: metrics and health are not served", slog.Any("err", err))
	}
	return nil
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", httpserver.Buffered(promhttp.HandlerFor(s.Gatherer, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		// One collector that fails must not blank the metrics of the others.
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes,
	})))
	mux.Handle("GET /healthz", httpserver.Buffered(http.HandlerFunc(s.serveHealth)))
	if s.EnablePprof {
		for path, h := range map[string]http.HandlerFunc{
			"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace,
		} {
			mux.HandleFunc("GET /debug/pprof/"+path, func(w http.ResponseWriter, r *http.Request) {
				// A profile takes as long as the request says: clear the deadline of an
				// earlier response on this connection.
				_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
				h(w, r)
			})
		}
	}
	return mux
}

// serveHealth responds with one line.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	line := "ok"
	if err := s.check(r.Context()); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		line = strings.Join(strings.Fields(err.Error()), " ")
	}
	_, _ = w.Write([]byte(line + "\n"))
}

// check returns the result of the health check. One check runs at a time; its result is
// that of all requests meanwhile and within checkTTL after it.
func (s *Server) check(ctx context.Context) error {
	results := s.checks.DoChan("", func() (any, error) {
		if time.Since(s.lastCheck) < checkTTL {
			return nil, s.lastErr
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
		defer cancel()
		s.lastErr = s.CheckHealth(ctx)
		s.lastCheck = time.Now()
		return nil, s.lastErr
	})
	select {
	case result := <-results:
		return result.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}
