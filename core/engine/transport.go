package engine

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/docker/docker/client"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// slowTimeout is for calls in which the Engine may copy or walk a whole disk.
	slowTimeout = 15 * time.Minute
	// stopTimeout is how long an Engine waits, unless it is told otherwise, before
	// it kills what it is to stop.
	stopTimeout = 10 * time.Second
	// maxErrorBody is how much the client reads of an error (docker/client v28.5).
	maxErrorBody = 1 << 20
)

// A limit is how long the Engine may take to answer.
type limit struct {
	d    time.Duration // 0 for as long as the caller waits
	head bool          // until the answer begins, rather than until it is whole
}

// limitOf returns the limit of a call, with timeout for those that should be short.
func limitOf(method, path string, query url.Values, timeout time.Duration) limit {
	switch method + " " + path {
	case "POST /images/create":
		// The first word of an answer waits for a registry. Pulls are given up
		// once they make no progress (core/image).
		return limit{}
	case "GET /events", "GET /containers/{id}/logs", "GET /containers/{id}/stats", "POST /containers/{id}/wait":
		return limit{timeout, true}
	case "POST /containers/create", "POST /images/load", "GET /system/df":
		return limit{max(timeout, slowTimeout), false}
	case "POST /containers/{id}/stop", "POST /containers/{id}/restart":
		grace := stopTimeout
		if seconds, err := strconv.Atoi(query.Get("t")); err == nil {
			grace = time.Duration(seconds) * time.Second
		}
		if grace < 0 {
			return limit{} // Docker's word for no end
		}
		return limit{grace + timeout, false}
	}
	return limit{timeout, false}
}

// A transport is the only way to the Engine: each call is measured, has a deadline
// by what it is about, and fails with an error of kind Unavailable if the Engine
// does not answer in time or has lost its containerd.
type transport struct {
	next    *http.Transport
	timeout time.Duration
	calls   *prometheus.HistogramVec
	heard   atomic.Int64           // when the newest answer began, as UnixNano
	lost    atomic.Pointer[string] // what the Engine said when it had no containerd, nil since it has one
}

// errLimit is the cause of a call that took longer than its limit.
var errLimit = errors.New("limit of the call")

// RoundTrip sends a request on.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	begin, caller, path := time.Now(), r.Context(), pattern(r.URL.Path)
	limit := limitOf(r.Method, path, r.URL.Query(), t.timeout)
	ctx, cancel := context.WithCancelCause(caller)
	stop := func() bool { return true }
	if limit.d > 0 {
		stop = time.AfterFunc(limit.d, func() { cancel(errLimit) }).Stop
	}
	// explain returns err, or that it has taken too long.
	explain := func(err error) error {
		if errors.Is(caller.Err(), context.DeadlineExceeded) || errors.Is(context.Cause(ctx), errLimit) {
			return &unanswered{time.Since(begin)}
		}
		return err
	}

	resp, err := t.next.RoundTrip(r.WithContext(ctx))
	status := "error"
	if err == nil {
		t.heard.Store(time.Now().UnixNano())
		status = strconv.Itoa(resp.StatusCode)
	}
	t.calls.WithLabelValues(r.Method, path, status).Observe(time.Since(begin).Seconds())
	if err != nil {
		err = explain(err)
		stop()
		cancel(nil)
		return nil, err
	}
	if limit.head {
		stop()
	}
	resp.Body = &body{resp.Body, explain, func() { stop(); cancel(nil) }}
	if err := t.examine(r.Method+" "+path, resp); err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp, nil
}

// examine finds out whether the Engine has its containerd. Where it has not, what was
// asked for can be asked for again: so the status is to be that of an Engine that is
// not available.
func (t *transport) examine(call string, resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusNoContent:
		if call == "POST /containers/{id}/start" {
			t.lost.Store(nil)
		}
	case http.StatusInternalServerError, http.StatusServiceUnavailable:
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		if err != nil {
			return err
		}
		resp.Body = &rest{bytes.NewReader(text), resp.Body}
		var said struct{ Message string }
		if json.Unmarshal(text, &said) == nil && ContainerdLost(said.Message) {
			t.lost.Store(&said.Message)
			resp.StatusCode = http.StatusServiceUnavailable
			resp.Status = fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
		}
	}
	return nil
}

// A body is an answer under its call's deadline.
type body struct {
	io.ReadCloser
	explain func(error) error
	done    func()
}

// Read is of io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.explain(err)
	}
	return n, err
}

// Close is of io.Closer.
func (b *body) Close() error {
	defer b.done()
	return b.ReadCloser.Close()
}

// A rest is a body of which the beginning has been read.
type rest struct {
	io.Reader
	io.Closer
}

// throughTransport sends a client's requests through a transport, once its host has
// been set.
//
// The client must keep its own http.Transport: what it dials for attached streams,
// and how, it takes from there (docker/client v28.5). So ours is entered there as
// what speaks the protocol, in front of a copy, and what is dialled there is
// ours too.
func throughTransport(timeout time.Duration, calls *prometheus.HistogramVec, to **transport) client.Opt {
	return func(c *client.Client) error {
		own, ok := c.HTTPClient().Transport.(*http.Transport)
		if !ok {
			return nil // of a client that is not made here
		}
		t := &transport{next: own.Clone(), timeout: timeout, calls: calls}
		*to = t
		dial := own.DialContext
		if dial == nil {
			dial = (&net.Dialer{}).DialContext
		}
		if config := own.TLSClientConfig; config != nil {
			dial = dialTLS(dial, config)
			own.TLSClientConfig = nil // with one the client dials by itself, without a deadline
			own.RegisterProtocol("https", t)
			if err := client.WithScheme("https")(c); err != nil {
				return err
			}
		} else {
			own.RegisterProtocol("http", t)
		}
		own.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			return t.dialStream(ctx, dial, network, addr)
		}
		return nil
	}
}

// A dialer connects to an address.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// dialTLS returns dial with TLS on top.
func dialTLS(dial dialer, config *tls.Config) dialer {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		config := config.Clone()
		if config.ServerName == "" {
			config.ServerName, _, _ = net.SplitHostPort(addr)
		}
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return secure, nil
	}
}

// dialStream connects for an attach or an exec, which take the connection over once
// the Engine has answered. Until then, and no longer, it ends with ctx and with the
// timeout of calls that should be short.
func (t *transport) dialStream(ctx context.Context, dial dialer, network, addr string) (net.Conn, error) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	explain := func(err error) error {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return &unanswered{time.Since(begin)}
		}
		return err
	}
	conn, err := dial(ctx, network, addr)
	if err != nil {
		err = explain(err)
		cancel()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	answered := sync.OnceValue(func() bool {
		defer cancel()
		if !stop() {
			return false // the time was over first
		}
		t.heard.Store(time.Now().UnixNano())
		return true
	})
	return &stream{Conn: conn, answered: answered, explain: explain, done: func() { stop(); cancel() }}, nil
}

// A stream is a connection that is taken over once the Engine has answered.
type stream struct {
	net.Conn
	begun    atomic.Bool
	answered func() bool // to be called with the first answer; false if that is too late
	explain  func(error) error
	done     func()
}

// Read is of io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if s.begun.Load() {
		return n, err
	}
	if n > 0 {
		if !s.answered() {
			return 0, s.explain(context.Canceled)
		}
		s.begun.Store(true)
		return n, err
	}
	return n, s.explain(err)
}

// Write is of io.Writer.
func (s *stream) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	if err != nil && !s.begun.Load() {
		err = s.explain(err)
	}
	return n, err
}

// CloseWrite tells the Engine that there is no more input.
func (s *stream) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// Close is of io.Closer.
func (s *stream) Close() error {
	defer s.done()
	return s.Conn.Close()
}
