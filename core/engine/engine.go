// Package engine connects to the Docker Engine: it dials, negotiates an API version, finds
// out the Engine's features, and notices when the Engine goes away and comes back.
//
// Its main types are Engine, which Run keeps connected, and Conn, one connection. A Conn embeds the client of
// github.com/docker/docker/client; other packages call its methods and never create a client of their own. So every call goes through one
// transport (see transport.go), which gives it a deadline by its class besides the caller's:
//
//   - short, the default: Config.Timeout until the response is complete;
//   - slow (container create, disk usage): 15 minutes;
//   - stop and restart: the grace period of the call plus Config.Timeout;
//   - stream (events, logs, stats, wait, files of a container): Config.Timeout until the response begins;
//   - hijacked (attach, exec start): Config.Timeout until the Engine has answered; then the
//     connection is the caller's to close;
//   - pull, image save and load: none; core/image and core/imagecopy cancel them without
//     progress, and core/image gives the load of the pause image a timeout.
//
// A call without an answer in time fails with an error of kind Unavailable
// (containerd/errdefs), see IsUnanswered, IsUnavailable and OutcomeUnknown.
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
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"berth/core/sleep"
)

const (
	livenessInterval = time.Second // between two checks whether the Engine is alive
	dialBackoffMin   = 100 * time.Millisecond
	dialBackoffMax   = time.Second
	// maxRereads is how often features are read again that are older than the last reload: calls of docker info at the same
	// time get one answer (collectSystemInfo in api/server/router/system, docker >= 25), which may be that of a call before
	// it. There is a limit because they also seem to be older if the Engine's clock was set back.
	maxRereads = 5
)

// DefaultTimeout is the default of Config.Timeout. The kubelet's own default for most CRI calls is two minutes
// (runtimeRequestTimeout): berthd should answer first, and say why.
const DefaultTimeout = 2*time.Minute - time.Second

// Config is what New needs.
type Config struct {
	// Host is the URL of the Engine's socket, for example unix:///var/run/docker.sock. If
	// it is empty, DOCKER_HOST, DOCKER_CERT_PATH and DOCKER_TLS_VERIFY are used.
	Host string
	// Timeout is that of short calls. Zero means ShortTimeout.
	Timeout time.Duration
	// Metrics is where the metrics of the Engine are registered. It may be nil.
	Metrics prometheus.Registerer
}

// An Engine is a Docker Engine that may go away and come back. Run keeps it connected. Methods may be called by several goroutines.
type Engine struct {
	cfg          Config
	log          *slog.Logger
	callDuration *prometheus.HistogramVec

	lastReload int64 // time of the newest reload event that Run has handled, as UnixNano
	rereads    int   // how often features were older than that

	mu         sync.Mutex    // guards following
	conn       *Conn         // nil while there is no connection
	lastConn   *Conn         // the newest conn, also after it has broken; nil before the first
	downReason error         // why conn is nil
	changed    chan struct{} // closed and replaced when conn changes
}

// New returns an Engine, which Run connects. The error says what is wrong with cfg.Host.
func New(cfg Config, log *slog.Logger) (*Engine, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	var endpoint string
	c, err := client.NewClientWithOpts(hostOption(cfg.Host), detectPlaintext(&endpoint))
	if err != nil {
		return nil, fmt.Errorf("docker endpoint %q: %w", cfg.Host, err)
	}
	if endpoint != "" {
		log.Warn("docker endpoint is a network address without TLS: anyone who can reach the port or intercept the traffic is root on that host; set DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, or use its Unix socket",
			slog.String("docker-endpoint", endpoint))
	}
	if err := c.Close(); err != nil {
		return nil, err
	}
	e := &Engine{
		cfg:          cfg,
		log:          log,
		callDuration: newCallDuration(cfg.Metrics),
		downReason:   errNotDialed,
		changed:      make(chan struct{}),
	}
	promauto.With(cfg.Metrics).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berthd_engine_up", Help: "Whether there is a connection to Docker.",
	}, func() float64 {
		if _, err := e.Conn(); err != nil {
			return 0
		}
		return 1
	})
	return e, nil
}

// hostOption sets the host, or takes it from the environment if it is empty. For a host on the network it takes the TLS certificates from
// the environment. It takes nothing else from there: a DOCKER_API_VERSION must not override the negotiation.
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

// detectPlaintext sets *endpoint to the client's host if that is reached over the network without TLS.
func detectPlaintext(endpoint *string) client.Opt {
	return func(c *client.Client) error {
		host, err := client.ParseHostURL(c.DaemonHost())
		if err != nil || host.Scheme != "tcp" {
			return nil // an error is returned by the client itself
		}
		own, ok := c.HTTPClient().Transport.(*http.Transport)
		ip := net.ParseIP(host.Hostname())
		loopback := host.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
		if !loopback && ok && own.TLSClientConfig == nil {
			*endpoint = host.Host
		}
		return nil
	}
}

// errNotDialed is why there is no connection before the first attempt.
var errNotDialed = errors.New("not connected yet")

// WaitFirstDial returns when the first attempt to connect has succeeded or failed, or ctx has ended.
func (e *Engine) WaitFirstDial(ctx context.Context) {
	e.mu.Lock()
	dialed, changed := e.conn != nil || !errors.Is(e.downReason, errNotDialed), e.changed
	e.mu.Unlock()
	if dialed {
		return
	}
	select {
	case <-changed:
	case <-ctx.Done():
	}
}

// Conn returns the current connection. Without one the error is of kind Unavailable and says why.
func (e *Engine) Conn() (*Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == nil {
		return nil, e.unavailableLocked()
	}
	return e.conn, nil
}

// unavailableLocked returns why there is no connection. It does not wrap that error: if the
// last ping was a context.DeadlineExceeded, the caller's call is not.
func (e *Engine) unavailableLocked() error {
	return fmt.Errorf("docker: %w: %v", errdefs.ErrUnavailable, e.downReason) //nolint:errorlint // on purpose, see above
}

// LastConn returns the newest connection, which may be broken: its Features are still good to read. Before the first
// connection the error is of kind Unavailable.
func (e *Engine) LastConn() (*Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lastConn == nil {
		return nil, e.unavailableLocked()
	}
	return e.lastConn, nil
}

// WaitConn returns the current connection, waiting for one if necessary, or the error of ctx.
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

// WaitReplaced returns when conn is not the current connection, there is something in wake, which may be nil, or ctx has ended.
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

// MarkBroken reports that conn does not work, so that Run dials again at once. It has no effect on later connections.
func (e *Engine) MarkBroken(conn *Conn, reason error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == conn {
		e.setConnLocked(nil, reason)
	}
}

// setConnLocked changes the current connection and wakes the goroutines that wait for that.
func (e *Engine) setConnLocked(conn *Conn, downReason error) {
	e.conn, e.downReason = conn, downReason
	if conn != nil {
		e.lastConn = conn
	}
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *Engine) setConn(conn *Conn, downReason error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.setConnLocked(conn, downReason)
}

// Run keeps e connected until ctx ends, and returns nil then. It retries for ever: an Engine that is unavailable is no error.
func (e *Engine) Run(ctx context.Context) error {
	backoff, lastLogged, warnedUserNS := dialBackoffMin, "", false
	for ctx.Err() == nil {
		conn, err := e.Dial(ctx)
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			e.setConn(nil, err)
			if text := err.Error(); text != lastLogged {
				e.log.Warn("cannot connect to docker, will retry", slog.String("endpoint", e.cfg.Host), slog.Any("err", err))
				lastLogged = text
			}
			_ = sleep.WithContext(ctx, backoff)
			backoff = min(2*backoff, dialBackoffMax)
			continue
		}
		backoff, lastLogged = dialBackoffMin, ""
		e.setConn(conn, nil)
		e.log.Info("connected to docker", slog.String("version", conn.Features.Version), slog.String("api", conn.Features.API),
			slog.String("cgroup", conn.Features.CgroupDriver), slog.String("storage", conn.Features.StorageDriver), slog.Bool("live-restore", conn.Features.LiveRestore))
		if conn.Features.UserNSRemap && !warnedUserNS {
			warnedUserNS = true
			e.log.Warn("docker has userns-remap, but pods run without it: root in a container of a pod is root on the node")
		}
		err = e.watch(ctx, conn)
		if ctx.Err() != nil {
			return nil // calls in progress may finish over this connection
		}
		if errors.Is(err, errReloaded) {
			// conn stays in use until the next one is there.
			e.log.Info("docker has reloaded its configuration, reconnecting")
		} else {
			e.MarkBroken(conn, err)
			e.log.Warn("connection to docker lost", slog.Any("err", err))
		}
		_ = conn.Close() // calls in progress are not affected
	}
	return nil
}

// errReloaded is why Run connects again to an Engine that answers: its features may have changed.
var errReloaded = errors.New("docker has reloaded its configuration")

// watchReload calls notify once the Engine behind conn has reloaded its configuration since its features were read, as it
// does on SIGHUP, and returns then. It also returns when ctx ends.
func (e *Engine) watchReload(ctx context.Context, conn *Conn, notify func()) {
	for ctx.Err() == nil {
		messages, errs := conn.Events(ctx, events.ListOptions{Since: conn.featuresAt, Filters: filters.NewArgs(
			filters.Arg("type", string(events.DaemonEventType)), filters.Arg("event", string(events.ActionReload)),
		)})
		for open := true; open; {
			select {
			case m := <-messages:
				switch {
				case m.TimeNano > e.lastReload:
					e.lastReload, e.rereads = m.TimeNano, 0
				case e.rereads < maxRereads:
					e.rereads++
					_ = sleep.WithContext(ctx, livenessInterval)
				default:
					continue
				}
				notify()
				return
			case <-errs:
				open = false
			}
		}
		_ = sleep.WithContext(ctx, livenessInterval) // watch finds out whether the Engine is alive
	}
}

// watch returns, with the reason, when conn is not the current one any more, Docker does not answer, or its features may have changed.
func (e *Engine) watch(ctx context.Context, conn *Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	reloaded := make(chan struct{})
	var reloadWatcher sync.WaitGroup
	reloadWatcher.Go(func() { e.watchReload(ctx, conn, func() { close(reloaded) }) })
	defer reloadWatcher.Wait()
	defer cancel()
	tick := time.NewTicker(livenessInterval)
	defer tick.Stop()
	for timeouts := 0; ; {
		e.mu.Lock()
		current, reason, changed := e.conn, e.downReason, e.changed
		e.mu.Unlock()
		if current != conn {
			return reason
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
		conn.recheckContainerd(ctx)
		pingCtx, cancelPing := context.WithTimeout(ctx, pingTimeout)
		err := conn.Alive(pingCtx)
		cancelPing()
		switch {
		case err == nil:
			timeouts = 0
		case errors.Is(err, context.DeadlineExceeded) && timeouts == 0:
			timeouts++ // the Engine may only be busy: the connection is lost after two timeouts
		default:
			return err
		}
	}
}

// Probe connects to the Engine once and returns its features.
func (e *Engine) Probe(ctx context.Context) (Features, error) {
	conn, err := e.Dial(ctx)
	if err != nil {
		return Features{}, err
	}
	return conn.Features, conn.Close()
}
