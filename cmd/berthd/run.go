package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"berth/core/cache"
	"berth/core/checkpoint"
	"berth/core/container"
	"berth/core/engine"
	"berth/core/exec"
	"berth/core/image"
	"berth/core/logs"
	"berth/core/oom"
	"berth/core/premount"
	"berth/core/sandbox"
	"berth/core/server"
	"berth/core/state"
	"berth/core/stats"
	"berth/network"
)

// run is the whole daemon on one page: furnish, then serve on l until ctx ends.
func run(ctx context.Context, cfg Config, l net.Listener, log *slog.Logger) error {
	notes, err := state.Open(filepath.Join(cfg.RootDir, "berth"))
	if err != nil {
		return err
	}
	sandboxState, err := sandbox.OpenState(notes)
	if err != nil {
		return err
	}
	failures, err := container.OpenFailedStarts(notes)
	if err != nil {
		return err
	}
	reg, err := newRegistry()
	if err != nil {
		return err
	}
	docker, err := engine.New(engine.Config{Host: cfg.DockerEndpoint, Timeout: cfg.RequestTimeout, Metrics: reg}, log)
	if err != nil {
		return err
	}
	node, err := state.OpenBucket[string](notes, "node")
	if err != nil {
		return err
	}
	pods := podNetwork(cfg, node, log)
	updates, err := container.OpenUpdates(notes)
	if err != nil {
		return err
	}
	positions, err := logs.OpenPositions(notes)
	if err != nil {
		return err
	}
	ends, err := oom.OpenVerdicts(notes)
	if err != nil {
		return err
	}
	kills := oom.New(ends, log)
	output := logs.New(logs.Mode(cfg.ContainerLogs), docker, positions, log)
	seen := cache.New(cache.Config{Network: pods, Failures: failures, ContainerUpdates: updates, SandboxUpdates: sandboxState.Updates, Logs: output, OOM: kills, Metrics: reg}, docker, log)
	used := stats.New(docker, seen, log)
	images := image.New(image.Config{
		PauseImage: cfg.PauseImage, PullProgress: cfg.PullProgress, NodeCredentials: cfg.NodeCredentials, Written: used.Written,
	}, docker, log)
	containers := container.New(docker, seen, resolver{images}, output, sandbox.Files(cfg.RunDir), failures, updates, premount.New(filepath.Join(cfg.RunDir, "mounts")), log)
	sandboxes := sandbox.New(sandbox.Config{
		Docker: docker, Cache: seen, Images: images, Containers: containers, Network: pods, State: sandboxState, Log: log,
		RunDir: cfg.RunDir, Bridge: cfg.NetworkPlugin == noCNI, Checkpoints: checkpoint.Dir(filepath.Join(cfg.RootDir, "sandbox")), Tmpfs: premount.Tmpfs{},
	})
	commands := exec.New(docker, seen, dialer(pods), log)
	streams, err := serveStreams(cfg, commands, log)
	if err != nil {
		return err
	}
	desk := server.New(server.Services{
		Engine: docker, Cache: seen, Sandboxes: sandboxes, Containers: containers, Images: images,
		Execs: commands, Stats: used, Streams: streams, Network: pods,
	}, server.Info{PauseImage: cfg.PauseImage, Metrics: reg, Config: map[string]any{"stateDir": cfg.RootDir, "runDir": cfg.RunDir}}, log)

	if err := errors.Join(output.Export(reg), used.Export(ctx, reg)); err != nil {
		return err
	}
	side, err := observe(cfg, reg, seen, l.Addr(), log)
	if err != nil {
		return err
	}

	// Every goroutine that outlives a call is started here and waited for here.
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return side.Run(ctx) })
	g.Go(func() error { return docker.Run(ctx) })
	g.Go(func() error { return seen.Run(ctx) })
	g.Go(func() error { return kills.Run(ctx) })
	g.Go(func() error { return pods.Run(ctx) })
	g.Go(func() error { return images.Run(ctx) })
	g.Go(func() error { return images.RunGC(ctx) })
	g.Go(func() error { return sandboxes.RunGC(ctx) })
	g.Go(func() error { return containers.RunGC(ctx) })
	g.Go(func() error { return containers.RunReapply(ctx) })
	g.Go(func() error { return output.Run(ctx) })
	g.Go(func() error { return used.Run(ctx) })
	g.Go(func() error { return used.KeepRates(ctx) })
	g.Go(func() error { return streams.Run(ctx) })
	g.Go(func() error {
		// A call that has waited in the socket while we were restarted must not
		// be told that Docker is away before anybody has looked.
		first, cancel := context.WithTimeout(ctx, firstLook)
		docker.WaitFirstDial(first)
		cancel()
		if ctx.Err() != nil {
			return nil // anyone who waits is the next life's
		}
		return desk.Serve(ctx, l)
	})
	log.Info("serving", slog.String("endpoint", cfg.Endpoint), slog.String("version", version))
	tell(log, daemon.SdNotifyReady)
	// In the group, which is waited for: the process must not end before the message is sent.
	g.Go(func() error { <-ctx.Done(); tell(log, daemon.SdNotifyStopping); return nil })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info("stopped; pods go on without us")
	return nil
}

// firstLook is how long a Docker that does not answer may keep the kubelet waiting
// after a start.
const firstLook = 2 * time.Second

// tell lets the service manager know, if there is one.
func tell(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("the service manager could not be told", slog.String("state", state), slog.Any("err", err))
	}
}

// podNetwork returns what gives pods their network.
func podNetwork(cfg Config, node *state.Bucket[string], log *slog.Logger) networks {
	cidr := cfg.PodCIDR
	if cidr == "" {
		cidr, _ = node.Get(podCIDRKey)
	}
	cni := lasting{network.New(network.Config{
		ConfDir: cfg.CNIConfDir, BinDirs: cfg.CNIBinDirs, CacheDir: cfg.CNICacheDir, RunDir: cfg.RunDir, NetNSDir: netnsDir(cfg), PodCIDR: cidr,
	}, log), node, log}
	if cfg.NetworkPlugin == noCNI {
		return bridge{cni}
	}
	return cni
}

// netnsDir returns where network namespaces of pods are bound: where agents of
// networks that run in containers look for them. What belongs to no pod of ours is
// cleaned up there, so a second berthd on a node, which has another run-dir, has
// a place of its own below that.
func netnsDir(cfg Config) string {
	if cfg.RunDir == theRunDir {
		return "/var/run/netns"
	}
	return ""
}

// podCIDRKey is where the address range that the kubelet has sent is kept.
const podCIDRKey = "pod-cidr"

// lasting is a network of pods whose address range outlives the daemon: the
// kubelet sends it when it changes, and not again.
type lasting struct {
	*network.CNI
	node *state.Bucket[string]
	log  *slog.Logger
}

// SetPodCIDR takes the range and keeps it.
func (l lasting) SetPodCIDR(cidr string) error {
	if err := l.CNI.SetPodCIDR(cidr); err != nil {
		return err
	}
	if err := l.node.Put(podCIDRKey, cidr); err != nil {
		l.log.Warn("the address range of pods could not be kept", slog.Any("err", err))
	}
	return nil
}

// networks is what all rooms together need of a network of pods.
type networks interface {
	sandbox.Network
	cache.Network
	server.Network
	Run(ctx context.Context) error
	Dial(ctx context.Context, id string, pid, port int) (net.Conn, error)
}

// bridge stands for Docker's own network, which asks for nothing. Behind it is the
// network of pods from when there were plugins.
type bridge struct{ lasting }

func (bridge) Status(context.Context) error  { return nil }
func (bridge) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// dialer reaches ports of pods from within their networks.
func dialer(pods networks) exec.Dial {
	return func(ctx context.Context, pod *cache.Sandbox, port int) (net.Conn, error) {
		if pod.HostNetwork {
			return network.Dial(ctx, "", port)
		}
		return pods.Dial(ctx, pod.ID(), pod.Pid, port)
	}
}

// resolver tells the container room about images: rooms do not know each other.
type resolver struct{ *image.Service }

func (r resolver) Resolve(ctx context.Context, ref, userRef string) (container.Image, error) {
	found, err := r.Service.Resolve(ctx, ref, userRef)
	return container.Image(found), err
}
