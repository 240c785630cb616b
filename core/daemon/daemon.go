// Package daemon is the composition root of berthd: New creates every service and connects
// them, Run serves the CRI and runs the background loops until its context ends.
//
// The command berthd and the tests of the whole daemon use the same constructor, with a
// Config that says where things are. Nothing here decides how pods are run.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"berth/core/cache"
	"berth/core/cdi"
	"berth/core/checkpoint"
	"berth/core/container"
	"berth/core/criu"
	"berth/core/engine"
	"berth/core/exec"
	"berth/core/exitlog"
	"berth/core/image"
	"berth/core/image/mirror"
	"berth/core/image/origin"
	"berth/core/image/pullprogress"
	"berth/core/image/verify"
	"berth/core/logs"
	"berth/core/nri"
	"berth/core/ociruntime"
	"berth/core/oom"
	"berth/core/podcheckpoint"
	"berth/core/podpolicy"
	"berth/core/premount"
	"berth/core/restore"
	"berth/core/sandbox"
	"berth/core/server"
	"berth/core/specfiles"
	"berth/core/state"
	"berth/core/stats"
	"berth/core/tracing"
	"berth/core/tracing/otlp"
	"berth/network"
	"berth/streaming"
)

// Config is what the operator can choose. Paths are absolute.
type Config struct {
	// Version and Commit are those of berthd, for the log and berthd_build_info.
	Version, Commit string
	// Endpoint is where the kubelet connects, for the log.
	Endpoint string
	// RootDir is for state that survives a reboot, RunDir for state that need not.
	RootDir, RunDir string
	// DockerHost is the address of the Engine, as in DOCKER_HOST; "" means that of the environment.
	DockerHost string
	// RequestTimeout bounds short Engine calls (engine.Config.Timeout).
	RequestTimeout time.Duration
	// ContainerLogs says how log files of containers are written.
	ContainerLogs logs.Mode
	// LogBuffer is the log driver of new containers with logs.ModeCRI; "" means json-file.
	LogBuffer logs.Buffer
	// PauseImage is the image of sandboxes.
	PauseImage string
	// PullProgress is how long a pull may make no progress.
	PullProgress time.Duration
	// Pin says which images the kubelet must not remove. The daemon sets Pulled and Metrics.
	Pin image.PinConfig
	// CDI says where CDI devices are requested and defined.
	CDI cdi.Config
	// NodeCredentials has pulls without credentials use those of Docker's own configuration.
	NodeCredentials bool
	// PodOptions are what pods may have beyond the CRI.
	PodOptions podpolicy.Options
	// SpecFiles say what the operator changes in OCI specs.
	SpecFiles specfiles.Config
	// NRI says where NRI plugins are served.
	NRI nri.Options
	// Restore says which checkpoints containers are restored from. The daemon sets Probe.
	Restore restore.Config
	// RegistryMirrors are mirrors of registries, each as HOST=MIRROR.
	RegistryMirrors []string
	// ImageVerifiers are the programs that decide which images may be pulled; without Dir there are none.
	ImageVerifiers verify.Config
	// Bridge has pods use Docker's default network instead of CNI.
	Bridge bool
	// Network configures CNI.
	Network network.Config
	// PodNetwork replaces the network that Bridge and Network describe, unless it is nil.
	PodNetwork PodNetwork
	// Streaming is where exec, attach and port-forward are served.
	Streaming Streaming
	// Metrics is where metrics are served.
	Metrics Metrics
	// Tracing is where traces are sent.
	Tracing Tracing
	// Debug is where the state of the daemon is served to its own commands; nil means nowhere. Run closes it.
	Debug net.Listener
	// Registry collects the metrics; nil means a new one with those of the process.
	Registry *prometheus.Registry
}

// Streaming configures the server of exec, attach and port-forward.
type Streaming struct {
	// Addr is a host, a host and port, or "" for a free port on 127.0.0.1.
	Addr string
	TLS  streaming.TLSFiles
}

// Metrics configures the HTTP server of metrics, health and profiles.
type Metrics struct {
	Addr     string // "" means none
	Profiles bool
}

// A Daemon is berthd without its command line.
type Daemon struct {
	version    string
	endpoint   string
	log        *slog.Logger
	engine     *engine.Engine
	server     *server.Server
	pauseImage *setting[string]
	images     *image.Service
	traces     *otlp.Exporter // nil without traces
	// loops are the background loops. Each runs until its context ends.
	loops []func(context.Context) error
	// exportStats registers the metrics of pods, which are collected until ctx ends.
	exportStats func(ctx context.Context) error
	// listenMetrics opens the server of metrics. Its health check needs the address of the CRI.
	listenMetrics func(cri net.Addr) (runner, error)
}

// New creates the daemon. It reads the state directory, but does not call Docker and does not
// listen for the kubelet; the streaming server's address is bound.
func New(cfg Config, log *slog.Logger) (*Daemon, error) {
	registry, err := newRegistry(cfg)
	if err != nil {
		return nil, err
	}
	policy, err := podpolicy.New(cfg.PodOptions)
	if err != nil {
		return nil, err
	}
	docker, err := engine.New(engine.Config{Host: cfg.DockerHost, Timeout: cfg.RequestTimeout, Metrics: registry}, log)
	if err != nil {
		return nil, err
	}
	traces, provider, err := newExporter(cfg, registry, log)
	if err != nil {
		return nil, err
	}
	records, err := openRecords(cfg.RootDir)
	if err != nil {
		return nil, err
	}
	podNetwork := newPodNetwork(cfg, records.node, log)
	ooms := oom.New(records.oomVerdicts, log)
	containerLogs := logs.New(cfg.ContainerLogs, cfg.LogBuffer, docker, records.logOffsets, log)
	objects := cache.New(cache.Config{
		Network: podNetwork, FailedStarts: records.failedStarts, ContainerUpdates: records.containerUpdates, SandboxUpdates: records.sandboxes.Updates,
		Logs: containerLogs, OOM: ooms, Metrics: registry,
	}, docker, log)
	exits := exitlog.New(objects, filepath.Join(cfg.RootDir, "berth", "last-exit"), log)
	usage := stats.New(docker, objects, log)
	sources, err := pullPolicy(cfg.RegistryMirrors, cfg.ImageVerifiers, log)
	if err != nil {
		return nil, err
	}
	cfg.Pin.Pulled, cfg.Pin.Metrics = records.pulled, registry
	pauseImage := newSetting(cfg.PauseImage)
	pulls := pullprogress.New(registry, log)
	images := image.New(image.Config{
		Progress:   pulls,
		PauseImage: pauseImage.get, PullProgressTimeout: cfg.PullProgress, NodeCredentials: cfg.NodeCredentials, Policy: policy, ContainerUsage: usage.DiskUsageTotals, Pin: cfg.Pin,
		PullPolicy: sources, Aliases: records.imageAliases, Metrics: registry,
	}, docker, log)
	logProblems(cfg.SpecFiles, log)
	plugins := nri.New(nri.Config{Options: cfg.NRI, Version: cfg.Version, Engine: docker, Cache: objects, Records: records.nri, NetNS: podNetwork.NetNS, Log: log})
	ociRuntime := ociruntime.New(filepath.Join(cfg.RunDir, "oci"), ociruntime.NewProber().Probe)
	checkpointer, restores := newCheckpointer(cfg, log), newRestores(cfg, log)
	containers := container.New(container.Config{
		Engine: docker, Cache: objects, Images: images, Logs: containerLogs, Files: sandbox.Files(cfg.RunDir),
		Failures: records.failedStarts, Updates: records.containerUpdates, Premounts: premount.New(filepath.Join(cfg.RunDir, "mounts")), CDI: cfg.CDI, Policy: policy, OCI: ociRuntime, SpecFiles: cfg.SpecFiles, NRI: plugins, NRIRecords: records.nri, Checkpoints: checkpointer, Restores: restores, Log: log,
	})
	sandboxes := sandbox.New(sandbox.Config{
		Docker: docker, Cache: objects, Images: images, Containers: containers, Network: podNetwork, State: records.sandboxes, Log: log,
		RunDir: cfg.RunDir, Bridge: cfg.Bridge, Checkpoints: checkpoint.Dir(filepath.Join(cfg.RootDir, "sandbox")), Tmpfs: premount.Tmpfs{}, Policy: policy, OCI: ociRuntime, SpecFiles: cfg.SpecFiles, NRI: plugins,
	})
	plugins.SetUpdater(containers)
	execs := exec.New(docker, objects, podDialer(podNetwork), log)
	streams, err := listenStreams(cfg.Streaming, execs, log)
	if err = errors.Join(err, containerLogs.Export(registry)); err != nil {
		return nil, err
	}
	srv := server.New(server.Services{
		Engine: docker, Cache: objects, Sandboxes: sandboxes, Containers: containers, Images: images,
		Pods:  podcheckpoint.New(podcheckpoint.Config{Version: cfg.Version, Cache: objects, Sandboxes: sandboxes, Containers: containers, Images: images, Checkpoints: checkpointer, Restores: restores, Log: log}),
		Execs: execs, Stats: usage, Streams: streams, Network: podNetwork,
	}, server.Info{PauseImage: pauseImage.get, Policy: policy, UserNS: ociRuntime.Support(), Metrics: registry, Traces: provider, Config: map[string]any{"stateDir": cfg.RootDir, "runDir": cfg.RunDir}}, log)
	return &Daemon{
		version: cfg.Version, endpoint: cfg.Endpoint, log: log, engine: docker, server: srv, pauseImage: pauseImage, images: images, traces: traces,
		loops: []func(context.Context) error{
			docker.Run, exits.Run, objects.Run, ooms.Run, podNetwork.Run, plugins.Run,
			images.MeasureDiskUsage, images.RunGC, images.RunCache, images.RunForeign, sandboxes.RunGC, containers.RunGC, containers.RunReapply,
			containerLogs.Run, usage.Run, usage.RunSampling, streams.Run,
			func(ctx context.Context) error { return warnOfLimitations(ctx, docker, policy, log) },
			func(ctx context.Context) error { return logUserNamespaces(ctx, docker, ociRuntime.Support(), log) },
			debugServer{cfg.Debug, debugRoutes(pulls), log}.Run,
		},
		exportStats:   func(ctx context.Context) error { return usage.RegisterMetrics(ctx, registry) },
		listenMetrics: func(cri net.Addr) (runner, error) { return listenMetrics(cfg.Metrics, registry, objects, cri, log) },
	}, nil
}

// logProblems logs which files of the operator keep containers from being created.
func logProblems(files specfiles.Config, log *slog.Logger) {
	for _, p := range files.Problems() {
		log.Error("containers that a file of the operator is for cannot be created", slog.Any("err", p.Err))
	}
}

// newCheckpointer returns what takes checkpoints of containers.
func newCheckpointer(cfg Config, log *slog.Logger) *criu.Checkpointer {
	return criu.New(filepath.Join(cfg.RootDir, "berth", "checkpoints"), log)
}

// newRestores returns what keeps the checkpoints that containers are restored from.
func newRestores(cfg Config, log *slog.Logger) *restore.Store {
	cfg.Restore.Probe = newCheckpointer(cfg, log).ProbeRestore
	return restore.New(cfg.Restore, filepath.Join(cfg.RootDir, "berth", "restores"), log)
}

// firstDialTimeout is how long an Engine that does not respond delays the first calls after a
// start: a call that waited in the socket during a restart should not find Docker to be away
// only because it has not been dialled yet.
const firstDialTimeout = 2 * time.Second

// Run serves the CRI on l and runs the background loops until ctx ends or one of them fails.
// It closes l and returns once all of them have ended. Pods keep running.
func (d *Daemon) Run(ctx context.Context, l net.Listener) error {
	metrics, err := d.listenMetrics(l.Addr())
	if err = errors.Join(err, d.exportStats(ctx)); err != nil {
		return errors.Join(err, l.Close())
	}
	loops := append(d.loops, metrics.Run)
	if d.traces != nil {
		defer d.flushTraces(context.WithoutCancel(ctx)) // once the last call has ended
		ctx = tracing.NewContext(ctx, d.traces.Provider())
		loops = append(loops, d.traces.Run)
	}
	// Every goroutine that outlives a call is started and waited for here.
	g, ctx := errgroup.WithContext(ctx)
	watch := newWatchdog(func(ctx context.Context) error { return checkCRI(ctx, l.Addr()) }, d.notify, d.log)
	for _, loop := range append(loops, watch.Run) {
		g.Go(func() error { return loop(ctx) })
	}
	g.Go(func() error {
		firstDial, cancel := context.WithTimeout(ctx, firstDialTimeout)
		d.engine.WaitFirstDial(firstDial)
		cancel()
		if ctx.Err() != nil {
			return l.Close() // with socket activation, waiting clients are served by the next start
		}
		return d.server.Serve(ctx, l)
	})
	d.log.Info("serving", slog.String("endpoint", d.endpoint), slog.String("version", d.version))
	d.notify(sdnotify.SdNotifyReady)
	// In the group, so that the process does not end before the message is sent.
	g.Go(func() error { <-ctx.Done(); d.notify(sdnotify.SdNotifyStopping); return nil })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	d.log.Info("shut down; running pods are not affected")
	return nil
}

// notify tells the service manager the state of the daemon, if there is one.
func (d *Daemon) notify(state string) {
	if _, err := sdnotify.SdNotify(false, state); err != nil {
		d.log.Warn("cannot notify the service manager", slog.String("state", state), slog.Any("err", err))
	}
}

// records are the buckets of the state directory, each with the package that owns it.
type records struct {
	sandboxes        sandbox.State
	failedStarts     *container.FailedStarts
	containerUpdates *container.Updates
	logOffsets       *logs.Checkpoints
	oomVerdicts      *oom.ExitReasons
	node             *state.Bucket[string]
	pulled           *state.Bucket[origin.Pulled]
	imageAliases     *mirror.Aliases
	nri              *nri.Records
}

func openRecords(rootDir string) (r records, err error) {
	store, err := state.Open(filepath.Join(rootDir, "berth"))
	if err != nil {
		return r, err
	}
	var errs [9]error
	r.sandboxes, errs[0] = sandbox.OpenState(store)
	r.failedStarts, errs[1] = container.OpenFailedStarts(store)
	r.containerUpdates, errs[2] = container.OpenUpdates(store)
	r.logOffsets, errs[3] = logs.OpenCheckpoints(store)
	r.oomVerdicts, errs[4] = oom.OpenExitReasons(store)
	r.node, errs[5] = state.OpenBucket[string](store, "node")
	r.pulled, errs[6] = origin.OpenPulled(store)
	r.imageAliases, errs[7] = mirror.OpenAliases(store)
	r.nri, errs[8] = nri.OpenRecords(store)
	if err := errors.Join(errs[:]...); err != nil {
		return r, fmt.Errorf("state directory %s: %w", rootDir, err)
	}
	return r, nil
}
