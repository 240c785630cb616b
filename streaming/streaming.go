// Package streaming serves the byte streams of exec, attach and port-forward over HTTP, to
// the kubelet or, through it, the API server.
//
// A [Server] hands out URLs that are good for one request, and passes the streams of that
// request to a [Runtime]. SPDY and the tokens in the URLs are those of k8s.io/cri-streaming;
// the WebSocket protocols that it lacks are translated (websocket.go). Beside that the
// package bounds what clients can hold: connections without a token, time, and memory
// ([Buffer], [Budget]). It knows nothing of Docker.
package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
)

// A Runtime connects streams to containers and pods. The context of an exec or attach ends
// when its client has gone, and that of every call when Run ends. After that, writes to
// its streams fail. If a call returns ErrSlow, its client has five more seconds to read
// what it was sent, and the error.
type Runtime = streaming.Runtime

// loopback is the default address of the server, and the host in URLs if the server
// listens on all addresses: the kubelet is on the same node.
const loopback = "127.0.0.1"

// Limits for clients that have not shown a token. A client that has one sends its only
// request at once, because the token expires.
const (
	requestTimeout = 10 * time.Second
	idleTimeout    = 5 * time.Second
	maxHeaderBytes = 16 << 10
)

// A Server serves streams at URLs that expire after one use or one minute.
type Server struct {
	// ErrorLog gets the errors of connections, at debug level and at most one a second.
	// It may be nil. It must not be set after Run.
	ErrorLog *slog.Logger
	// LingerTimeout is how long a connection that the server has closed waits for a client
	// that reads nothing. Listen sets it to 30 seconds. It must not be set after Run.
	LingerTimeout time.Duration

	listener net.Listener
	pending  *pendingListener
	pipe     *pipeListener
	base     *url.URL
	sessions *sessions
	server   streaming.Server
}

// Listen returns a Server that listens on addr: a host, a host and port, or empty for any
// port of 127.0.0.1. It serves TLS if files is not empty. No request is answered before Run.
func Listen(addr string, files TLSFiles, runtime Runtime) (*Server, error) {
	if files != (TLSFiles{}) {
		if _, err := files.load(nil); err != nil {
			return nil, fmt.Errorf("TLS of the streaming server: %w", err)
		}
	}
	l, err := net.Listen("tcp", withPort(addr))
	if err != nil {
		return nil, fmt.Errorf("streaming address %q: %w", addr, err)
	}
	s := &Server{pipe: newPipeListener(), sessions: newSessions(runtime), base: baseURL(l.Addr())}
	s.LingerTimeout = lingerTimeout
	s.pending = newPendingListener(l)
	s.listener = s.pending
	if files != (TLSFiles{}) {
		s.base.Scheme = "https"
		s.listener = tls.NewListener(s.pending, &tls.Config{GetConfigForClient: files.load, MinVersion: tls.VersionTLS12})
	}
	config := streaming.DefaultConfig
	config.StreamIdleTimeout = 0 // an interactive shell may be idle for any time
	config.BaseURL = s.base
	if s.server, err = streaming.NewServer(config, s.sessions); err != nil {
		return nil, errors.Join(err, s.listener.Close())
	}
	return s, nil
}

// withPort adds the default host and port to an address.
func withPort(addr string) string {
	if addr == "" {
		addr = loopback
	}
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(addr, "0")
}

// baseURL returns an absolute URL whose host can be dialled: kubelet 1.36 and newer dial it
// themselves, and default to https for a URL without a scheme.
func baseURL(addr net.Addr) *url.URL {
	host, port, err := net.SplitHostPort(addr.String())
	if ip := net.ParseIP(host); err != nil || ip == nil || ip.IsUnspecified() {
		host = loopback
	}
	return &url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}
}

// URL is the base URL of the server.
func (s *Server) URL() string { return s.base.String() }

// Exec returns the URL of an exec (CRI Exec).
func (s *Server) Exec(r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	response, err := s.server.GetExec(r)
	if err == nil {
		response.Url = appendStreamParams(response.Url, r.GetStdin(), r.GetStdout(), r.GetStderr(), r.GetTty())
	}
	return response, err
}

// Attach returns the URL of an attach (CRI Attach).
func (s *Server) Attach(r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	response, err := s.server.GetAttach(r)
	if err == nil {
		response.Url = appendStreamParams(response.Url, r.GetStdin(), r.GetStdout(), r.GetStderr(), r.GetTty())
	}
	return response, err
}

// PortForward returns the URL of a port-forward (CRI PortForward).
func (s *Server) PortForward(r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return s.server.GetPortForward(r)
}

// Run serves until ctx ends. Then it ends open execs and attaches with an error, which
// their clients have five seconds to read, closes all connections, and waits for the calls
// of the Runtime to return.
func (s *Server) Run(ctx context.Context) error {
	runCtx, stop := context.WithCancel(ctx)
	baseCtx, closeConns := context.WithCancel(context.WithoutCancel(ctx))
	srv := &http.Server{
		Handler: translator{s.server, s.pipe},
		// All three deadlines are cleared by the upgrade.
		ReadHeaderTimeout: requestTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		BaseContext: func(net.Listener) context.Context { return baseCtx },
		ConnContext: s.connContext, ConnState: s.pending.connState,
		ErrorLog: newErrorLog(s.ErrorLog),
	}
	waitCalls := s.sessions.begin(runCtx)
	defer func() {
		stop()
		s.sessions.drain(stopGrace)
		closeConns()
		waitCalls()
	}()
	defer context.AfterFunc(runCtx, func() { _ = srv.Close() })()
	var g errgroup.Group
	for _, l := range []net.Listener{s.listener, s.pipe} {
		g.Go(func() error {
			defer srv.Close() // neither listener is of use without the other
			return srv.Serve(l)
		})
	}
	if err := g.Wait(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve streams: %w", err)
	}
	return nil
}
