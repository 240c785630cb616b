// Package metrics is the side door: it tells the operator's tools, over HTTP,
// how the daemon does.
//
// It serves what a Prometheus registry holds at /metrics, whether all is well
// at /healthz, and profiles of the Go runtime at /debug/pprof/ where that is
// wanted. It has no authentication and changes nothing. It knows no room; what
// there is to be told comes in with the registry.
package metrics

import (
	"bytes"
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
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
)

const (
	// atOnce is how many may read the metrics at a time: each reads files of
	// all pods.
	atOnce = 2
	// headPatience is how long a request may take to come in.
	headPatience = 5 * time.Second
	// answerTimeout is how long a client may take to read an answer that is ready.
	answerTimeout = 10 * time.Second
	// idleTimeout is how long a connection is kept for a client's next request.
	idleTimeout = 30 * time.Second
	// maxConns is how many clients there may be. More wait to be let in.
	maxConns = 64
	// checkPatience is how long it may take to find out whether all is well.
	checkPatience = 3 * time.Second
	// checkTTL is how long what has been found out is told to others.
	checkTTL = time.Second
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

	checks    singleflight.Group
	checkedAt time.Time // with checks
	checked   error     // with checks
}

// Listen returns a Server that has its address already.
func Listen(addr string, cfg Config, log *slog.Logger) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &Server{Config: cfg, listener: netutil.LimitListener(l, maxConns), log: log}, nil
}

// Addr returns where s is to be found.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends. Pods do not depend on it: if it cannot go on, it
// says so in the log and that is all.
func (s *Server) Run(ctx context.Context) error {
	srv := &http.Server{Handler: s.routes(), ReadHeaderTimeout: headPatience, IdleTimeout: idleTimeout, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
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
	mux.Handle("GET /metrics", atLeisure(promhttp.HandlerFor(s.Gatherer, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		// What can be told is told.
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: atOnce,
	})))
	mux.Handle("GET /healthz", atLeisure(http.HandlerFunc(s.health)))
	if s.Profiles {
		for path, h := range map[string]http.HandlerFunc{
			"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace,
		} {
			mux.HandleFunc("GET /debug/pprof/"+path, func(w http.ResponseWriter, r *http.Request) {
				// They take as long as they are asked to, whatever the last answer
				// on this connection had.
				_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
				h(w, r)
			})
		}
	}
	return mux
}

// atLeisure has h write its answer to memory, and the client read it from there within
// answerTimeout: one that does not read keeps nobody else from being answered.
func atLeisure(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &answer{header: w.Header(), status: http.StatusOK}
		h.ServeHTTP(a, r)
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.WriteHeader(a.status)
		_, _ = a.body.WriteTo(w) // the client may have gone
	})
}

// An answer is one that is kept in memory.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header is of http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader is of http.ResponseWriter.
func (a *answer) WriteHeader(status int) { a.status = status }

// Write is of http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// health answers with one line.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	line := "ok"
	if err := s.check(r.Context()); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		line = strings.Join(strings.Fields(err.Error()), " ")
	}
	_, _ = w.Write([]byte(line + "\n"))
}

// check returns nil if all is well, or what is not. There is one check at a time, and
// what it finds is told to all who ask meanwhile and shortly after.
func (s *Server) check(ctx context.Context) error {
	found := s.checks.DoChan("", func() (any, error) {
		if time.Since(s.checkedAt) < checkTTL {
			return nil, s.checked
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkPatience)
		defer cancel()
		s.checked = s.Healthy(ctx)
		s.checkedAt = time.Now()
		return nil, s.checked
	})
	select {
	case result := <-found:
		return result.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}
