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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/docker/docker/client"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// slowCallTimeout is for calls in which the Engine may copy or walk a whole disk.
	slowCallTimeout = 15 * time.Minute
	// defaultStopGrace is how long an Engine waits before it kills a container that is to
	// be stopped, if the call does not say so.
	defaultStopGrace = 10 * time.Second
	// maxErrorBody is how much of an error the client reads (docker/client v28.5), in bytes.
	maxErrorBody = 1 << 20
)

// A deadline is how long a call may take.
type deadline struct {
	timeout     time.Duration // 0 for as long as the caller waits
	headersOnly bool          // until the response begins, rather than until it is complete
}

// deadlineFor returns the deadline of a call by its class, see the package comment. path is
// as of apiPath, and timeout that of short calls.
func deadlineFor(method, path string, query url.Values, timeout time.Duration) deadline {
	switch method + " " + path {
	case "POST /images/create", "GET /distribution/{id}/json", "GET /images/get", "POST /images/load":
		// The response does not begin before the registry answers, before the whole image is in Docker's
		// temporary directory, or before it is unpacked.
		return deadline{}
	case "GET /events", "GET /containers/{id}/logs", "GET /containers/{id}/stats", "POST /containers/{id}/wait", "GET /containers/{id}/archive":
		return deadline{timeout, true}
	case "POST /containers/create", "GET /system/df":
		return deadline{max(timeout, slowCallTimeout), false}
	case "POST /containers/{id}/stop", "POST /containers/{id}/restart":
		grace := defaultStopGrace
		if seconds, err := strconv.Atoi(query.Get("t")); err == nil {
			grace = time.Duration(seconds) * time.Second
		}
		if grace < 0 {
			return deadline{} // the Engine API's value for no limit
		}
		return deadline{grace + timeout, false}
	}
	return deadline{timeout, false}
}

// A transport carries all calls of one connection to the Engine: it measures each call,
// gives it a deadline, and has it fail with an error of kind Unavailable if the Engine does
// not answer in time or has lost its containerd.
type transport struct {
	next           *http.Transport
	timeout        time.Duration // of short calls
	callDuration   *prometheus.HistogramVec
	lastResponse   atomic.Int64           // when the newest response began, as UnixNano
	containerdLost atomic.Pointer[string] // the Engine's error when it had no containerd, nil since it has one
}

// errDeadline is the cause of a call that took longer than its deadline.
var errDeadline = errors.New("deadline of the call")

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	begin, caller, path := time.Now(), r.Context(), apiPath(r.URL.Path)
	deadline := deadlineFor(r.Method, path, r.URL.Query(), t.timeout)
	ctx, cancel := context.WithCancelCause(caller)
	stopTimer := func() bool { return true }
	if deadline.timeout > 0 {
		stopTimer = time.AfterFunc(deadline.timeout, func() { cancel(errDeadline) }).Stop
	}
	// convert returns a timeoutError if the call has taken too long, and else err.
	convert := func(err error) error {
		if errors.Is(caller.Err(), context.DeadlineExceeded) || errors.Is(context.Cause(ctx), errDeadline) {
			return &timeoutError{time.Since(begin)}
		}
		return err
	}

	resp, err := t.next.RoundTrip(r.WithContext(ctx))
	status := "error"
	if err == nil {
		t.lastResponse.Store(time.Now().UnixNano())
		status = strconv.Itoa(resp.StatusCode)
	}
	t.callDuration.WithLabelValues(r.Method, path, status).Observe(time.Since(begin).Seconds())
	if err != nil {
		err = convert(err)
		stopTimer()
		cancel(nil)
		return nil, err
	}
	if deadline.headersOnly {
		stopTimer()
	}
	resp.Body = &deadlineBody{resp.Body, convert, func() { stopTimer(); cancel(nil) }}
	if err := t.checkContainerd(r.Method+" "+path, resp); err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp, nil
}

// checkContainerd finds out from a response whether the Engine has its containerd. If not, or if
// it has not seen the end of a container, the call can be repeated: the status is changed from 500 to 503.
func (t *transport) checkContainerd(call string, resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusNoContent:
		if call == "POST /containers/{id}/start" {
			t.containerdLost.Store(nil)
		}
	case http.StatusInternalServerError, http.StatusServiceUnavailable:
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		if err != nil {
			return err
		}
		resp.Body = &replayedBody{bytes.NewReader(text), resp.Body}
		var body struct{ Message string }
		lost := json.Unmarshal(text, &body) == nil && ContainerdLost(body.Message)
		if lost {
			t.containerdLost.Store(&body.Message)
		}
		if lost || strings.HasSuffix(body.Message, exitUnseen) {
			resp.StatusCode = http.StatusServiceUnavailable
			resp.Status = fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
		}
	}
	return nil
}

// A deadlineBody is a response body under the deadline of its call.
type deadlineBody struct {
	io.ReadCloser
	convert func(error) error
	release func()
}

// Read implements io.Reader.
func (b *deadlineBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.convert(err)
	}
	return n, err
}

// Close implements io.Closer.
func (b *deadlineBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}

// A replayedBody is a response body that has been read, to be read again.
type replayedBody struct {
	io.Reader
	io.Closer
}

// withTransport sends a client's requests through a transport, which it stores in *to. It
// must be applied after the client's host is set.
//
// The client must keep its own http.Transport, from which it takes how to dial for attach
// and exec (docker/client v28.5). So the transport is registered there for the protocol and
// sends requests through a copy, and DialContext there is replaced.
func withTransport(timeout time.Duration, callDuration *prometheus.HistogramVec, to **transport) client.Opt {
	return func(c *client.Client) error {
		own, ok := c.HTTPClient().Transport.(*http.Transport)
		if !ok {
			return nil // not a client of this package
		}
		t := &transport{next: own.Clone(), timeout: timeout, callDuration: callDuration}
		*to = t
		dial := own.DialContext
		if dial == nil {
			dial = (&net.Dialer{}).DialContext
		}
		if config := own.TLSClientConfig; config != nil {
			dial = dialTLS(dial, config)
			own.TLSClientConfig = nil // with one the client dials itself, without a deadline
			own.RegisterProtocol("https", t)
			if err := client.WithScheme("https")(c); err != nil {
				return err
			}
		} else {
			own.RegisterProtocol("http", t)
		}
		own.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			return t.dialHijacked(ctx, dial, network, addr)
		}
		return nil
	}
}

// A dialer connects to an address.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// dialTLS returns a dialer that does a TLS handshake on the connections of dial.
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

// dialHijacked connects for an attach or exec, which take the connection over (hijack it)
// once the Engine has answered. Until then it is closed by the end of ctx and by the
// timeout of short calls; afterwards it is the caller's to close.
func (t *transport) dialHijacked(ctx context.Context, dial dialer, network, addr string) (net.Conn, error) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	convert := func(err error) error {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return &timeoutError{time.Since(begin)}
		}
		return err
	}
	conn, err := dial(ctx, network, addr)
	if err != nil {
		err = convert(err)
		cancel()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	responded := sync.OnceValue(func() bool {
		defer cancel()
		if !stop() {
			return false // the deadline came first
		}
		t.lastResponse.Store(time.Now().UnixNano())
		return true
	})
	return &hijackedConn{Conn: conn, answered: responded, convert: convert, release: func() { stop(); cancel() }}, nil
}

// A hijackedConn is a connection for an attach or exec.
type hijackedConn struct {
	net.Conn
	established atomic.Bool // the Engine has answered
	answered    func() bool // must be called with the first bytes of the response; false if the deadline came first
	convert     func(error) error
	release     func()
}

// Read implements io.Reader.
func (h *hijackedConn) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if h.established.Load() {
		return n, err
	}
	if n > 0 {
		if !h.answered() {
			return 0, h.convert(context.Canceled)
		}
		h.established.Store(true)
		return n, err
	}
	return n, h.convert(err)
}

// Write implements io.Writer.
func (h *hijackedConn) Write(p []byte) (int, error) {
	n, err := h.Conn.Write(p)
	if err != nil && !h.established.Load() {
		err = h.convert(err)
	}
	return n, err
}

// CloseWrite sends the end of the input to the Engine. Its name is what docker/client
// looks for.
func (h *hijackedConn) CloseWrite() error {
	if c, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// Close implements io.Closer.
func (h *hijackedConn) Close() error {
	defer h.release()
	return h.Conn.Close()
}
