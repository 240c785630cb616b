// Package nri serves the Node Resource Interface (github.com/containerd/nri): plugins are sent the events of pods and containers,
// may change containers that are created, and update the resources of others.
//
// A Runtime starts the plugins of a directory and listens for others on a socket of root. The services call it
// at each step of the life of a pod or container. Without a plugin these calls do nothing, and a nil Runtime has none. A plugin that does not
// respond within a timeout is disconnected by the library, so that it delays others only once.
//
// What plugins change in a container is translated by package adjust, and applied by core/container.
package nri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	validator "github.com/containerd/nri/plugins/default-validator/builtin"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/hostprobe"
	"berth/core/kmutex"
	"berth/core/nri/adjust"
	"berth/core/panics"
	"berth/core/sleep"
	"berth/core/trust"
)

// runtimeName is what plugins know this runtime by.
const runtimeName = "berth"

// DefaultSocketPath is where plugins of every runtime expect the socket.
const DefaultSocketPath = adaptation.DefaultSocketPath

// Options are what the operator can choose.
type Options struct {
	// Enable turns NRI on.
	Enable bool
	// SocketPath is where plugins connect, PluginPath the directory of plugins that are started, PluginConfigPath that of their configuration.
	SocketPath, PluginPath, PluginConfigPath string
	// RegistrationTimeout bounds the registration of a plugin, RequestTimeout each call of one.
	RegistrationTimeout, RequestTimeout time.Duration
	// BlockIOFile has the block I/O classes (package blockio); "" for none.
	BlockIOFile string
	// Validator configures the validator of the library: what plugins may not change, and which plugins must be connected.
	Validator validator.DefaultValidatorConfig
}

// A Config is what New needs; all fields are required.
type Config struct {
	Options
	Version string // of berthd
	Engine  *engine.Engine
	Cache   *cache.Cache
	// Records holds what plugins have changed, by container ID.
	Records *Records
	// NetNS returns the path of the network namespace of a pod, in which the process pid runs.
	NetNS func(id string, pid int) string
	Log   *slog.Logger
}

// An Updater changes containers for plugins.
type Updater interface {
	// ApplyUpdate changes the resources of a container that is created or running.
	ApplyUpdate(ctx context.Context, id string, resources adjust.Resources) error
}

// A Runtime is the runtime that plugins see. A nil Runtime has no plugins.
type Runtime struct {
	Config
	updater Updater

	started chan struct{} // closed once plugins have been started, or cannot be
	// adaptation is set before started is closed; nil if plugins cannot be served, for the reason failed.
	adaptation *adaptation.Adaptation
	failed     error

	plugins  atomic.Int32 // number of plugins, with the built-in validator
	requests kmutex.Mutex // held while events are sent: of creations under createKey, of starts and stops by ID

	mu        sync.Mutex       // guards following
	recording *recording       // of the creation that is with the plugins
	phases    map[string]phase // of the pods and containers that plugins know, by ID
}

// A phase is what plugins have been sent of a pod or container.
type phase int

const (
	unknown  phase = iota
	known          // its creation, or in Synchronize
	stopped        // its stop
	removing       // it is being removed by a service, which sends its removal
)

// New returns the Runtime, nil if NRI is off. SetUpdater must be called before Run.
func New(cfg Config) *Runtime {
	if !cfg.Enable {
		return nil
	}
	setLogger()
	return &Runtime{Config: cfg, started: make(chan struct{}), phases: map[string]phase{}}
}

// SetUpdater sets what changes containers for plugins.
func (r *Runtime) SetUpdater(u Updater) {
	if r != nil {
		r.updater = u
	}
}

// retryInterval is how often it is tried to read the containers of a Docker that does not respond.
const retryInterval = time.Second

// Run serves plugins until ctx ends. If it cannot, pods do not depend on it: that is logged, and Run returns nil.
func (r *Runtime) Run(ctx context.Context) error {
	if r == nil {
		return nil
	}
	for { // plugins are sent all containers first; calls that plugins are sent wait for it
		if _, err := r.Engine.WaitConn(ctx); err != nil {
			return nil // ctx has ended
		}
		if r.Cache.Ready(ctx) == nil {
			break
		}
		if sleep.WithContext(ctx, retryInterval) != nil {
			return nil
		}
	}
	served, err := r.start()
	if err != nil {
		r.failed = err
		r.Log.Warn("NRI is off: no plugins are served until berthd is restarted", slog.Any("err", err))
	} else {
		r.adaptation = served
		r.Log.Info("serving NRI plugins", slog.String("socket", r.SocketPath), slog.Int("plugins", int(r.plugins.Load())))
		defer served.Stop()
	}
	close(r.started)
	if err != nil {
		return nil
	}
	g, ctx := panics.NewGroupWithContext(ctx, r.Log)
	g.Go(func() error { return r.watch(ctx) })
	g.Go(func() error { return r.watchSocket(ctx) })
	_ = g.Wait() // a panic was logged: plugins are not worth the end of the daemon
	return nil
}

// socketCheckInterval is how often it is checked whether the socket is still berthd's own.
const socketCheckInterval = time.Minute

// watchSocket logs if another process takes the socket away, as a containerd with its CRI plugin does that starts later. It returns when ctx ends.
func (r *Runtime) watchSocket(ctx context.Context) error {
	own, err := os.Stat(r.SocketPath)
	for err == nil && sleep.WithContext(ctx, socketCheckInterval) == nil {
		if !r.hasSocket(own) {
			r.Log.Error("NRI socket was replaced or removed: plugins that connect now are not sent the pods of berthd; restart berthd once the other process does not use it", slog.String("socket", r.SocketPath))
			break
		}
	}
	<-ctx.Done()
	return nil
}

// hasSocket reports whether own is at the path of the socket.
func (r *Runtime) hasSocket(own os.FileInfo) bool {
	now, err := os.Stat(r.SocketPath)
	return err == nil && os.SameFile(own, now)
}

// start starts the plugins and listens for others.
func (r *Runtime) start() (_ *adaptation.Adaptation, err error) {
	if pid, ok := SocketOwner(r.SocketPath); ok {
		return nil, fmt.Errorf("%s listens on %s already: set nri-socket-path, or turn NRI off in one of them", Process(pid), r.SocketPath)
	}
	if err := r.prepareSocket(); err != nil {
		return nil, err
	}
	if err := trust.Check(r.PluginPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("nri-plugin-path: %w", err)
	}
	current.Store(r.Log)
	adaptation.SetPluginRegistrationTimeout(r.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(r.RequestTimeout)
	served, err := adaptation.New(runtimeName, r.Version, r.synchronize, r.updateContainers,
		adaptation.WithSocketPath(r.SocketPath), adaptation.WithPluginPath(r.PluginPath), adaptation.WithPluginConfigPath(r.PluginConfigPath),
		adaptation.WithMetrics(metrics{r}), adaptation.WithDefaultValidator(&r.Validator))
	if err != nil {
		return nil, err
	}
	if err := panics.Try(r.Log, served.Start); err != nil {
		served.Stop()
		return nil, err
	}
	if err := os.Chmod(r.SocketPath, 0o600); err != nil {
		served.Stop()
		return nil, err
	}
	return served, nil
}

// prepareSocket makes the directory of the socket, which only root may change: whoever connects can change every container.
func (r *Runtime) prepareSocket() error {
	dir := filepath.Dir(r.SocketPath)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("nri-socket-path: %w", err)
	}
	if err := trust.Check(dir); err != nil {
		return fmt.Errorf("nri-socket-path: %w", err)
	}
	st, err := os.Lstat(r.SocketPath)
	if err == nil && st.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("nri-socket-path %s: is not a socket", r.SocketPath)
	}
	return nil
}

// SocketOwner returns the process that listens on the Unix socket at path, if there is one.
func SocketOwner(path string) (pid int, ok bool) {
	pid, err := hostprobe.PeerPID(path)
	return pid, err == nil
}

// Process names a process for a message.
func Process(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || pid == 0 {
		return "another process"
	}
	return fmt.Sprintf("%s (PID %d)", string(text[:max(len(text)-1, 0)]), pid)
}

// ready returns the library's part once plugins are started, nil if there are none that events could be sent to.
func (r *Runtime) ready(ctx context.Context) (*adaptation.Adaptation, error) {
	if r == nil {
		return nil, nil
	}
	select {
	case <-r.started:
	case <-ctx.Done():
		return nil, fmt.Errorf("NRI plugins are being started: %w: %w", ctx.Err(), errdefs.ErrUnavailable)
	}
	if r.adaptation == nil || r.plugins.Load() == 0 {
		return nil, nil
	}
	return r.adaptation, nil
}

// A SyncBlock keeps plugins from being synchronized. The zero value does not.
type SyncBlock struct{ block *adaptation.PluginSyncBlock }

// Unblock ends b. It can be called more than once.
func (b *SyncBlock) Unblock() { b.block.Unblock() }

// BlockSync keeps plugins from being synchronized while an event of a pod or container that is not in the cache yet is sent: they are
// sent either the event or the object. No lock of a container may be taken meanwhile.
func (r *Runtime) BlockSync(ctx context.Context, b *SyncBlock) error {
	if r == nil {
		return nil
	}
	if _, err := r.ready(ctx); err != nil {
		return err
	}
	if r.adaptation != nil {
		b.block = r.adaptation.BlockPluginSync()
	}
	return nil
}

// synchronize sends a plugin that has connected all pods, and the containers that have not exited.
func (r *Runtime) synchronize(ctx context.Context, send adaptation.SyncCB) error {
	return panics.Try(r.Log, func() error {
		pods, err := r.Cache.Sandboxes(ctx, nil)
		if err != nil {
			return err
		}
		containers, err := r.Cache.Containers(ctx, nil)
		if err != nil {
			return err
		}
		var sentPods []*api.PodSandbox
		for _, pod := range pods {
			sentPods = append(sentPods, r.pod(pod))
			r.markKnown(pod.ID())
		}
		var sent []*api.Container
		for _, c := range containers {
			if c.Row.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
				continue
			}
			sent = append(sent, r.container(ctx, c))
			r.markKnown(c.ID())
		}
		updates, err := send(ctx, sentPods, sent)
		if err != nil {
			return err
		}
		for _, u := range updates {
			if err := r.update(ctx, u); err != nil {
				r.Log.Warn("update that an NRI plugin has requested at its start failed", slog.String("container", u.GetContainerId()), slog.Any("err", err))
			}
		}
		return nil
	})
}

// updateContainers applies updates that a plugin requests by itself, and returns those that have failed.
func (r *Runtime) updateContainers(ctx context.Context, updates []*api.ContainerUpdate) (failed []*api.ContainerUpdate, _ error) {
	for _, u := range updates {
		if err := panics.Try(r.Log, func() error { return r.update(ctx, u) }); err != nil {
			r.Log.Warn("update that an NRI plugin has requested failed", slog.String("container", u.GetContainerId()), slog.Any("err", err))
			if !u.GetIgnoreFailure() {
				failed = append(failed, u)
			}
		}
	}
	return failed, nil
}

// updateTimeout bounds the wait for a container that another call works on, and the update itself.
const updateTimeout = 10 * time.Second

// update applies one update.
func (r *Runtime) update(ctx context.Context, u *api.ContainerUpdate) error {
	docker, err := r.Engine.Conn()
	if err != nil {
		return err
	}
	resources, err := adjust.NewResources(u.GetLinux().GetResources(), docker.Features)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	return r.updater.ApplyUpdate(ctx, u.GetContainerId(), resources)
}

// updateOthers applies updates that plugins have returned with an event of another container. A container that has ended since is no error.
func (r *Runtime) updateOthers(ctx context.Context, updates []*api.ContainerUpdate) error {
	var errs []error
	for _, u := range updates {
		err := r.update(ctx, u)
		if err == nil || u.GetIgnoreFailure() || errdefs.IsNotFound(err) || r.exited(ctx, u.GetContainerId()) {
			continue
		}
		errs = append(errs, fmt.Errorf("update of container %s that an NRI plugin has requested: %w", u.GetContainerId(), err))
	}
	return errors.Join(errs...)
}

func (r *Runtime) exited(ctx context.Context, id string) bool {
	c, err := r.Cache.Container(ctx, id)
	return errdefs.IsNotFound(err) || err == nil && c.Row.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
}
