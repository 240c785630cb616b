// Package httpserver serves HTTP to the clients that watch the daemon: Prometheus, health checks and the commands
// of berthd itself. The number of clients and the time that each may take are bounded, so
// that no client keeps others from being served, or the daemon from stopping.
package httpserver

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
)

const (
	// readHeaderTimeout is how long a client may take to send a request.
	readHeaderTimeout = 5 * time.Second
	// writeTimeout is how long a client may take to read a response that is ready.
	writeTimeout = 10 * time.Second
	// idleTimeout is how long a connection is kept open for the next request.
	idleTimeout = 30 * time.Second
	// MaxConns is how many connections are accepted at a time; later ones wait in the
	// backlog of the socket.
	MaxConns = 64
	// shutdownGrace is how long requests may take when the daemon is stopping.
	shutdownGrace = time.Second
)

// Serve serves h on l until ctx ends, and closes l. It returns an error if l fails before that.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	var g errgroup.Group
	serving, cancel := context.WithCancel(ctx)
	g.Go(func() error {
		<-serving.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(serving), shutdownGrace)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			return srv.Close()
		}
		return nil
	})
	err := srv.Serve(netutil.LimitListener(l, MaxConns))
	cancel()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return errors.Join(err, g.Wait())
}

// Buffered makes h write its response to memory; the client must read it from there within
// writeTimeout. A client that does not read holds nothing else of h meanwhile.
func Buffered(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf := &bufferedResponse{header: w.Header(), status: http.StatusOK}
		h.ServeHTTP(buf, r)
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.WriteHeader(buf.status)
		_, _ = buf.body.WriteTo(w) // the client may have disconnected
	})
}

// A bufferedResponse is an http.ResponseWriter that keeps the response in memory.
type bufferedResponse struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (b *bufferedResponse) Header() http.Header { return b.header }

// WriteHeader implements http.ResponseWriter.
func (b *bufferedResponse) WriteHeader(status int) { b.status = status }

// Write implements http.ResponseWriter.
func (b *bufferedResponse) Write(p []byte) (int, error) { return b.body.Write(p) }
