// Package engine keeps the connection to the Docker Engine: it dials, agrees on
// an API version, finds out what this Engine can do and notices when it goes
// away and comes back.
//
// The calls themselves are those of the Engine's own client, which rooms use
// directly on the Conn that Use returns.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	// MinAPI is the API version of Docker 20.10, the oldest Engine served.
	MinAPI = "1.41"

	lookEvery   = time.Second
	pingTimeout = 2 * time.Second
	// silence is how long an Engine that has answered a call is taken to be
	// alive. The kubelet and berthd itself want to know all the time, and a ping
	// costs both sides more than most answers cost berthd.
	silence     = 3 * time.Second
	dialTimeout = 10 * time.Second
	backoffMin  = 100 * time.Millisecond
	backoffMax  = time.Second
)

// ShortTimeout is the default of Config.Timeout.
const ShortTimeout = 2*time.Minute - time.Second

// Config is what an operator can choose about the way to the Engine.
type Config struct {
	// Host is where the Engine listens, for example unix:///var/run/docker.sock.
	// Empty means what DOCKER_HOST and its companions say.
	Host string
	// Timeout bounds the calls that should be short (not pulls, stops, waits).
	// Zero means ShortTimeout.
	Timeout time.Duration
	// Metrics is told how the Engine does, unless it is nil.
	Metrics prometheus.Registerer
}

// A Conn is one connection to one Engine: its client, with an API version
// agreed on, and the record of what that Engine can do. After a break there is
// a new one.
type Conn struct {
	*client.Client
	Features Features

	at        string // when the record was made, by the Engine's clock
	timeout   time.Duration
	oomFloor  atomic.Int64
	transport *transport
}

// Close lets go of the connections that are idle.
func (c *Conn) Close() error {
	if c.transport != nil {
		c.transport.next.CloseIdleConnections()
	}
	return c.Client.Close()
}

// OOMFloor returns the lowest oom_score_adj that may be asked of the Engine,
// as far as is known: that of the record, or a higher one once a start has
// shown that it was too low.
func (c *Conn) OOMFloor() int { return int(c.oomFloor.Load()) }

// RaiseOOMFloor takes note that nothing below score is to be had.
func (c *Conn) RaiseOOMFloor(score int) { c.oomFloor.Store(int64(score)) }

// WithRequestTimeout returns ctx bounded by the time limit for calls that should be short.
func (c *Conn) WithRequestTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.timeout)
}

// An Engine is the Docker Engine as it comes and goes. Run keeps it connected.
type Engine struct {
	cfg   Config
	log   *slog.Logger
	calls *prometheus.HistogramVec

	reload int64 // Run's: the newest reading of its configuration that the Engine has told of, as UnixNano

	mu      sync.Mutex // guards following
	conn    *Conn      // nil while the Engine is away
	last    *Conn      // the newest conn there ever was, nil before the first
	away    error      // why conn is nil
	changed chan struct{}
}

// New returns an Engine that is away until Run has reached it. The error says
// what is wrong with cfg.Host.
func New(cfg Config, log *slog.Logger) (*Engine, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = ShortTimeout
	}
	var at string
	c, err := client.NewClientWithOpts(hostOption(cfg.Host), exposed(&at))
	if err != nil {
		return nil, fmt.Errorf("docker endpoint %q: %w", cfg.Host, err)
	}
	if at != "" {
		log.Warn("docker is spoken to over the network without TLS: anyone who is on the way, or reaches that port, is root there; set DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, or use its Unix socket",
			slog.String("docker-endpoint", at))
	}
	if err := c.Close(); err != nil {
		return nil, err
	}
	e := &Engine{
		cfg:     cfg,
		log:     log,
		calls:   newCalls(cfg.Metrics),
		away:    errNotYet,
		changed: make(chan struct{}),
	}
	promauto.With(cfg.Metrics).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berthd_engine_up", Help: "Whether Docker answers.",
	}, func() float64 {
		if _, err := e.Conn(); err != nil {
			return 0
		}
		return 1
	})
	return e, nil
}

// hostOption takes from the environment the host where none is named, and for a host
// on the network the certificates (DOCKER_CERT_PATH, DOCKER_TLS_VERIFY), but nothing
// else: a DOCKER_API_VERSION left in it must not pin the version against the Engine's.
func hostOption(host string) client.Opt {
	return func(c *client.Client) error {
		var opts []client.Opt
		if host == "" {
			opts = []client.Opt{client.WithTLSClientConfigFromEnv(), client.WithHostFromEnv()}
		} else {
			if strings.HasPrefix(host, "tcp://") {
				opts = append(opts, client.WithTLSClientConfigFromEnv())
			}
			opts = append(opts, client.WithHost(host))
		}
		for _, opt := range opts {
			if err := opt(c); err != nil {
				return err
			}
		}
		return nil
	}
}

// exposed puts into at where the Engine is reached if that is over the network and
// without TLS.
func exposed(at *string) client.Opt {
	return func(c *client.Client) error {
		host, err := client.ParseHostURL(c.DaemonHost())
		if err != nil || host.Scheme != "tcp" {
			return nil // the client says what is wrong with it
		}
		own, ok := c.HTTPClient().Transport.(*http.Transport)
		ip := net.ParseIP(host.Hostname())
		loopback := host.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
		if !loopback && ok && own.TLSClientConfig == nil {
			*at = host.Host
		}
		return nil
	}
}

// errNotYet is why there is no connection before the first try.
var errNotYet = errors.New("not connected yet")

// WaitFirstDial returns once it is known whether the Engine is there, or ctx has
// ended.
func (e *Engine) WaitFirstDial(ctx context.Context) {
	e.mu.Lock()
	known, changed := e.conn != nil || !errors.Is(e.away, errNotYet), e.changed
	e.mu.Unlock()
	if known {
		return
	}
	select {
	case <-changed:
	case <-ctx.Done():
	}
}

// Conn returns the connection to work with now. While the Engine is away the
// error is of kind Unavailable and says why.
func (e *Engine) Conn() (*Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == nil {
		return nil, e.unavailable()
	}
	return e.conn, nil
}

// unavailable returns why there is no connection. That the last ping, say, ran out of
// time is text in it, not a kind of it: nothing has run out of time for the caller.
// e.mu is held.
func (e *Engine) unavailable() error {
	return fmt.Errorf("docker: %w: %v", errdefs.ErrUnavailable, e.away) //nolint:errorlint // on purpose, see above
}

// LastConn returns the newest connection there has been, also while the Engine is
// away. Its record is still good to read; before the first connection the
// error is of kind Unavailable.
func (e *Engine) LastConn() (*Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.last == nil {
		return nil, e.unavailable()
	}
	return e.last, nil
}

// WaitConn returns a connection as soon as there is one, or the error of ctx.
func (e *Engine) WaitConn(ctx context.Context) (*Conn, error) {
	for {
		e.mu.Lock()
		conn, changed := e.conn, e.changed
		e.mu.Unlock()
		if conn != nil {
			return conn, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// WaitReplaced returns once conn is not the connection any more, there is something in
// wake, which may be nil, or ctx has ended.
func (e *Engine) WaitReplaced(ctx context.Context, conn *Conn, wake <-chan struct{}) {
	for {
		e.mu.Lock()
		current, changed := e.conn, e.changed
		e.mu.Unlock()
		if current != conn {
			return
		}
		select {
		case <-changed:
		case <-wake:
			return
		case <-ctx.Done():
			return
		}
	}
}

// MarkBroken tells e that conn has broken, so that it dials again at once. A conn
// that has been replaced already is none of e's business any more.
func (e *Engine) MarkBroken(conn *Conn, why error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == conn {
		e.set(nil, why)
	}
}

// set changes what Use answers and wakes those who wait. e.mu is held.
func (e *Engine) set(conn *Conn, away error) {
	e.conn, e.away = conn, away
	if conn != nil {
		e.last = conn
	}
	close(e.changed)
	e.changed = make(chan struct{})
}

// Run keeps e connected until ctx ends. That the Engine is away is never an
// error here.
func (e *Engine) Run(ctx context.Context) error {
	wait, told, warned := backoffMin, "", false
	for ctx.Err() == nil {
		conn, err := e.dial(ctx)
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			e.mu.Lock()
			e.set(nil, err)
			e.mu.Unlock()
			if text := err.Error(); text != told {
				e.log.Warn("docker is away, trying again", slog.String("endpoint", e.cfg.Host), slog.Any("err", err))
				told = text
			}
			sleep(ctx, wait)
			wait = min(2*wait, backoffMax)
			continue
		}
		wait, told = backoffMin, ""
		e.mu.Lock()
		e.set(conn, nil)
		e.mu.Unlock()
		e.log.Info("connected to docker", slog.String("version", conn.Features.Version), slog.String("api", conn.Features.API),
			slog.String("cgroup", conn.Features.CgroupDriver), slog.String("storage", conn.Features.StorageDriver), slog.Bool("live-restore", conn.Features.LiveRestore))
		if conn.Features.UserNSRemap && !warned {
			warned = true
			e.log.Warn("docker has userns-remap, but pods run without it: root in a container of a pod is root on the node")
		}
		err = e.watch(ctx, conn)
		if ctx.Err() != nil {
			return nil // calls under way may finish, with the connection there is
		}
		if errors.Is(err, errReloaded) {
			// Good to use until there is the next.
			e.log.Info("docker has read its configuration again")
		} else {
			e.MarkBroken(conn, err)
			e.log.Warn("docker has gone away", slog.Any("err", err))
		}
		// Calls under way keep the client; those to come get the next one.
		_ = conn.Close()
	}
	return nil
}

// errReloaded is why an Engine that answers is connected to again: its record may
// be of the past.
var errReloaded = errors.New("docker has read its configuration again")

// reloaded calls tell once the Engine behind conn has read its configuration again
// since its record was made. It returns then, or when ctx ends.
func (e *Engine) reloaded(ctx context.Context, conn *Conn, tell func()) {
	for ctx.Err() == nil {
		news, broken := conn.Events(ctx, events.ListOptions{Since: conn.at, Filters: filters.NewArgs(
			filters.Arg("type", string(events.DaemonEventType)), filters.Arg("event", string(events.ActionReload)),
		)})
		for listening := true; listening; {
			select {
			case m := <-news:
				// None twice, even if the Engine's clock is set back meanwhile.
				if m.TimeNano > e.reload {
					e.reload = m.TimeNano
					tell()
					return
				}
			case <-broken:
				listening = false
			}
		}
		sleep(ctx, lookEvery) // pings tell whether the Engine is there
	}
}

// watch returns once conn is no good any more, or its record.
func (e *Engine) watch(ctx context.Context, conn *Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	reloaded := make(chan struct{})
	var listener sync.WaitGroup
	listener.Go(func() { e.reloaded(ctx, conn, func() { close(reloaded) }) })
	defer listener.Wait()
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for slow := 0; ; {
		e.mu.Lock()
		current, why, changed := e.conn, e.away, e.changed
		e.mu.Unlock()
		if current != conn {
			return why
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			continue
		case <-reloaded:
			return errReloaded
		case <-tick.C:
		}
		conn.findContainerd(ctx)
		err := conn.aliveWithin(ctx, pingTimeout)
		switch {
		case err == nil:
			slow = 0
		case errors.Is(err, context.DeadlineExceeded) && slow == 0:
			slow++ // busy, perhaps: one more try before all pods are told
		default:
			return err
		}
	}
}

// Alive returns nil if the Engine has answered a call within the last three
// seconds, or does so now, and otherwise why there is no answer.
func (c *Conn) Alive(ctx context.Context) error {
	if c.transport != nil && time.Since(time.Unix(0, c.transport.heard.Load())) < silence {
		return nil
	}
	if _, err := c.Ping(ctx); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	return nil
}

// Containerd returns nil unless the Engine has said that it has no connection to its
// containerd, and has not got one since. The error is of kind Unavailable.
func (c *Conn) Containerd() error {
	if c.transport == nil {
		return nil
	}
	if said := c.transport.lost.Load(); said != nil {
		return fmt.Errorf("docker has lost its containerd: %w: %s", errdefs.ErrUnavailable, strings.TrimSpace(*said))
	}
	return nil
}

// noCommit is the commit of a containerd that the Engine cannot ask for it
// (daemon/info_unix.go in docker 20.10 to 29).
const noCommit = "N/A"

// findContainerd asks an Engine that had lost its containerd whether it is there again.
func (c *Conn) findContainerd(ctx context.Context) {
	if c.Containerd() == nil {
		return
	}
	said := c.transport.lost.Load()
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if info, err := c.Info(ctx); err == nil && info.ContainerdCommit.ID != noCommit {
		c.transport.lost.CompareAndSwap(said, nil) // not what was said meanwhile
	}
}

func (c *Conn) aliveWithin(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return c.Alive(ctx)
}

// dial reaches the Engine, agrees on an API version and makes its record.
func (e *Engine) dial(ctx context.Context) (_ *Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn := &Conn{timeout: e.cfg.Timeout}
	conn.Client, err = client.NewClientWithOpts(hostOption(e.cfg.Host), client.WithAPIVersionNegotiation(), throughTransport(e.cfg.Timeout, e.calls, &conn.transport))
	if err != nil {
		return nil, err
	}
	c := conn.Client
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	// A fresh client every time: one that has agreed on a version never goes
	// up again (docker/client v28.5.2), and the Engine may have been upgraded.
	pong, err := c.Ping(ctx)
	if err != nil {
		return nil, err
	}
	if pong.APIVersion == "" || versions.LessThan(pong.APIVersion, MinAPI) {
		return nil, fmt.Errorf("this Docker Engine speaks API %s, berth needs %s or newer (Docker 20.10): upgrade Docker", pong.APIVersion, MinAPI)
	}
	c.NegotiateAPIVersionPing(pong)
	if conn.Features, conn.at, err = inquire(ctx, c, e.cfg.Host); err != nil {
		return nil, err
	}
	conn.RaiseOOMFloor(conn.Features.LowestOOMScore)
	return conn, nil
}

// Probe reaches the Engine once and returns its record.
func (e *Engine) Probe(ctx context.Context) (Features, error) {
	conn, err := e.dial(ctx)
	if err != nil {
		return Features{}, err
	}
	return conn.Features, conn.Close()
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
