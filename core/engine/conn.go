package engine

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"
)

// MinAPI is the API version of Docker 20.10, the oldest Engine supported.
const MinAPI = "1.41"

const (
	dialTimeout = 10 * time.Second
	pingTimeout = 2 * time.Second
	// livenessWindow is how long an Engine that has answered a call is taken to be alive. The kubelet and berthd itself ask all the time,
	// and a ping costs both sides more than most of berthd's own answers.
	livenessWindow = 3 * time.Second
)

// A Conn is one connection to one Engine: a client with a negotiated API version, and the
// Features of that Engine. After a break there is a new one.
//
// All calls of the client go through the package's transport and have a deadline; do not create other clients.
type Conn struct {
	*client.Client
	Features Features

	featuresAt string        // when Features were read, by the Engine's clock
	timeout    time.Duration // of short calls
	oomFloor   atomic.Int64
	transport  *transport
}

// Dial connects to the Engine once, negotiates an API version and reads the Engine's features. Run does so again
// and again; commands that end call Dial themselves.
func (e *Engine) Dial(ctx context.Context) (_ *Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn := &Conn{timeout: e.cfg.Timeout}
	// A fresh client every time: one that has negotiated a version never uses a newer one
	// (docker/client v28.5.2), and the Engine may have been upgraded.
	conn.Client, err = client.NewClientWithOpts(hostOption(e.cfg.Host), client.WithAPIVersionNegotiation(),
		withTransport(e.cfg.Timeout, e.callDuration, &conn.transport))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	pong, err := conn.Ping(ctx)
	if err != nil {
		return nil, err
	}
	if pong.APIVersion == "" || versions.LessThan(pong.APIVersion, MinAPI) {
		return nil, fmt.Errorf("this Docker Engine speaks API %s, berth needs %s or newer (Docker 20.10): upgrade Docker", pong.APIVersion, MinAPI)
	}
	conn.NegotiateAPIVersionPing(pong)
	if conn.Features, conn.featuresAt, err = probeFeatures(ctx, conn.Client, e.cfg.Host); err != nil {
		return nil, err
	}
	conn.RaiseOOMFloor(conn.Features.LowestOOMScore)
	return conn, nil
}

// Close closes the idle connections. Calls in progress are not affected.
func (c *Conn) Close() error {
	if c.transport != nil {
		c.transport.next.CloseIdleConnections()
	}
	return c.Client.Close()
}

// OOMFloor returns the lowest oom_score_adj that the Engine can give a container, as far as
// is known: Features.LowestOOMScore, or a higher one if a start has failed with that.
func (c *Conn) OOMFloor() int { return int(c.oomFloor.Load()) }

// RaiseOOMFloor sets OOMFloor, after a start with a lower oom_score_adj has failed.
func (c *Conn) RaiseOOMFloor(score int) { c.oomFloor.Store(int64(score)) }

// WithRequestTimeout returns ctx with the timeout of short calls, for several calls that are to be short together.
func (c *Conn) WithRequestTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.timeout)
}

// Get makes the call GET path, which begins with an API version, for what the client has no method, to an Engine at a Unix socket. The
// caller closes the body.
func (c *Conn) Get(ctx context.Context, path string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	return c.HTTPClient().Do(r)
}

// Alive returns nil if the Engine has answered a call within the last three seconds or answers a ping now, and else the error of the ping.
func (c *Conn) Alive(ctx context.Context) error {
	if c.transport != nil && time.Since(time.Unix(0, c.transport.lastResponse.Load())) < livenessWindow {
		return nil
	}
	if _, err := c.Ping(ctx); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	return nil
}

// CheckContainerd returns nil unless the last error that the Engine gave about its containerd
// was that it has no connection to it. The error is of kind Unavailable.
func (c *Conn) CheckContainerd() error {
	if c.transport == nil {
		return nil
	}
	if text := c.transport.containerdLost.Load(); text != nil {
		return fmt.Errorf("docker has lost its containerd: %w: %s", errdefs.ErrUnavailable, strings.TrimSpace(*text))
	}
	return nil
}

// recheckContainerd asks an Engine that has lost its containerd whether it has it again.
func (c *Conn) recheckContainerd(ctx context.Context) {
	if c.CheckContainerd() == nil {
		return
	}
	text := c.transport.containerdLost.Load()
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if info, err := c.Info(ctx); err == nil && info.ContainerdCommit.ID != unknownCommit {
		c.transport.containerdLost.CompareAndSwap(text, nil) // unless it was lost once more meanwhile
	}
}
