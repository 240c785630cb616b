// Package streaming serves the byte streams of exec, attach and port-forward
// over HTTP, for the kubelet to connect to. The protocols, SPDY and WebSocket,
// are those of k8s.io/cri-streaming.
//
// It knows nothing of Docker: what a stream is joined to is somebody else's
// affair, given as a Runtime.
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

// A Runtime joins streams to containers and pods. The context of an exec or
// attach ends when its client has gone, and that of every call when Run ends.
// After that writes to its streams fail. A client that ErrSlow is returned for has
// five more seconds to read what it was sent, and the error.
type Runtime = streaming.Runtime

// loopback is where the server listens unless told otherwise, and what URLs
// name where it listens everywhere: the kubelet is on the same node.
const loopback = "127.0.0.1"

// What may be had without a token: each URL is for one use, so a client that has
// one sends its request at once and nothing after it.
const (
	requestTimeout = 10 * time.Second
	idleTimeout    = 5 * time.Second
	maxHeader      = 16 << 10
)

// A Server serves streams at URLs that are good for one use within a minute.
type Server struct {
	// ErrorLog is told, at debug level and at most once a second, what goes wrong
	// with connections. If it is nil, nobody is. It must not be set after Run.
	ErrorLog *slog.Logger

	listener net.Listener
	clients  *clients
	inside   *inside
	base     *url.URL
	calls    *calls
	server   streaming.Server
}

// Listen returns a Server that listens on addr: a host, a host and port, or ""
// for any port of loopback. It serves TLS if there is a pair for it. Nobody is
// answered before Run.
func Listen(addr string, pair KeyPair, runtime Runtime) (*Server, error) {
	if pair != (KeyPair{}) {
		if _, err := pair.load(nil); err != nil {
			return nil, fmt.Errorf("TLS of streams: %w", err)
		}
	}
	l, err := net.Listen("tcp", withPort(addr))
	if err != nil {
		return nil, fmt.Errorf("streaming address %q: %w", addr, err)
	}
	clients := newClients(l)
	l = clients
	config := streaming.DefaultConfig
	config.StreamIdleTimeout = 0 // a shell may be left alone for as long as its user likes
	config.BaseURL = baseURL(l.Addr())
	if pair != (KeyPair{}) {
		config.BaseURL.Scheme = "https"
		// Connections are taken over, which HTTP/2 does not have.
		l = tls.NewListener(l, &tls.Config{GetCertificate: pair.load, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	}
	calls := newCalls(runtime)
	server, err := streaming.NewServer(config, calls)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &Server{listener: l, clients: clients, inside: newInside(), base: config.BaseURL, calls: calls, server: server}, nil
}

// A KeyPair names the files of a certificate and its key. They are read again
// for each connection, so that they can be renewed.
type KeyPair struct{ Cert, Key string }

func (p KeyPair) load(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	return &c, err
}

// withPort completes an address.
func withPort(addr string) string {
	if addr == "" {
		addr = loopback
	}
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(addr, "0")
}

// baseURL is absolute, with a scheme and a host that can be dialled: kubelets
// from 1.36 on dial it themselves, and take a URL without a scheme for https.
func baseURL(addr net.Addr) *url.URL {
	host, port, err := net.SplitHostPort(addr.String())
	if ip := net.ParseIP(host); err != nil || ip == nil || ip.IsUnspecified() {
		host = loopback
	}
	return &url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}
}

// URL is where the server is reached.
func (s *Server) URL() string { return s.base.String() }

// Exec prepares an exec and tells where it is to be had.
func (s *Server) Exec(r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	answer, err := s.server.GetExec(r)
	if err == nil {
		answer.Url = tell(answer.Url, r.GetStdin(), r.GetStdout(), r.GetStderr(), r.GetTty())
	}
	return answer, err
}

// Attach prepares an attach and tells where it is to be had.
func (s *Server) Attach(r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	answer, err := s.server.GetAttach(r)
	if err == nil {
		answer.Url = tell(answer.Url, r.GetStdin(), r.GetStdout(), r.GetStderr(), r.GetTty())
	}
	return answer, err
}

// PortForward prepares a port-forward and tells where it is to be had.
func (s *Server) PortForward(r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return s.server.GetPortForward(r)
}

// Run serves until ctx ends. Execs and attaches that are open then end with an
// error, which their clients have a few seconds to read. Then all connections are
// cut, and Run waits for the calls of the Runtime to return.
func (s *Server) Run(ctx context.Context) error {
	run, stop := context.WithCancel(ctx)
	conns, cut := context.WithCancel(context.WithoutCancel(ctx))
	srv := &http.Server{
		Handler:           translator{s.server, s.inside},
		ReadHeaderTimeout: requestTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout, // all end with the upgrade
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return conns }, ConnContext: of, ConnState: s.clients.changed,
		ErrorLog: newErrorLog(s.ErrorLog),
	}
	end := s.calls.begin(run)
	defer func() {
		stop()
		s.calls.drain(stopGrace)
		cut()
		end()
	}()
	defer context.AfterFunc(run, func() { _ = srv.Close() })()
	var g errgroup.Group
	for _, l := range []net.Listener{s.listener, s.inside} {
		g.Go(func() error {
			defer srv.Close() // neither serves without the other
			return srv.Serve(l)
		})
	}
	if err := g.Wait(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve streams: %w", err)
	}
	return nil
}
