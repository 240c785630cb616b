// Package metrics is the side door: it tells the operator's tools, over HTTP,
// how the daemon does.
//
// It serves what a Prometheus registry holds at /metrics, whether all is well
// at /healthz, and profiles of the Go runtime at /debug/pprof/ where that is
// wanted. It has no authentication and changes nothing. It knows no room; what
// there is to be told comes in with the registry.
package metrics

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

const (
	// atOnce is how many may read the metrics at a time: each reads files of
	// all pods.
	atOnce = 2
	// headPatience is how long a request may take to come in.
	headPatience = 5 * time.Second
	// checkPatience is how long it may take to find out whether all is well.
	checkPatience = 3 * time.Second
	// stopPatience is how long answers under way may take when the daemon is
	// told to stop.
	stopPatience = time.Second
)

// Config is what a Server tells.
type Config struct {
	// Gatherer holds what /metrics tells.
	Gatherer prometheus.Gatherer
	// Healthy returns nil if all is well, or what is not.
	Healthy func(ctx context.Context) error
	// Profiles tells whether there are any.
	Profiles bool
}

// A Server tells how the daemon does. Run does the work.
type Server struct {
	Config
	listener net.Listener
	log      *slog.Logger
}

// Listen returns a Server that has its address already.
func Listen(addr string, cfg Config, log *slog.Logger) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &Server{Config: cfg, listener: l, log: log}, nil
}

// Addr returns where s is to be found.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends. Pods do not depend on it: if it cannot go on, it
// says so in the log and that is all.
func (s *Server) Run(ctx context.Context) error {
	srv := &http.Server{Handler: s.routes(), ReadHeaderTimeout: headPatience, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	var g errgroup.Group
	over, cancel := context.WithCancel(ctx)
	g.Go(func() error {
		<-over.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(over), stopPatience)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			return srv.Close()
		}
		return nil
	})
	if err := srv.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		s.log.Error("metrics are not served any more", slog.Any("err", err))
	}
	cancel()
	return g.Wait()
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Gatherer, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		// What can be told is told.
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: atOnce,
	}))
	mux.HandleFunc("GET /healthz", s.health)
	if s.Profiles {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// health answers with one line.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkPatience)
	defer cancel()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	line := "ok"
	if err := s.Healthy(ctx); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		line = strings.Join(strings.Fields(err.Error()), " ")
	}
	_, _ = w.Write([]byte(line + "\n")) // whoever asks may have gone
}
