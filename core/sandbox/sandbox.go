// Package sandbox is the room where pods are set up and taken down: a pause
// container that holds the namespaces, the network attached to them, and the
// files that every container of the pod finds.
//
// It is called by the front desk (core/server) and talks to the Docker Engine
// and to package network.
package sandbox

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"berth/core/cache"
	"berth/core/checkpoint"
	"berth/core/engine"
	"berth/core/kmutex"
	"berth/network"
)

// Config is what New needs. All fields but Bridge and Tmpfs are required.
type Config struct {
	Docker     *engine.Engine
	Cache      *cache.Cache
	Images     Images
	Containers Containers
	Network    Network
	State      State
	Log        *slog.Logger

	// RunDir holds the files of pods, in pods/<sandbox ID>.
	RunDir string
	// Bridge leaves the networks of new pods to Docker's own bridge
	// (--network-plugin=""). Pods from before may still have another.
	Bridge bool
	// Checkpoints is where cri-dockerd keeps, and looks for, its checkpoints.
	Checkpoints checkpoint.Dir
	// Tmpfs bounds what containers can write to the files of their pod. Without it
	// they can only read them.
	Tmpfs Tmpfs
}

// A Tmpfs makes file systems of a bounded size (mounts.Tmpfs).
type Tmpfs interface {
	// Mount mounts one of size bytes on dir, whose files have the SELinux label.
	Mount(dir string, size int64, label string) error
	// Remove unmounts what Mount has mounted on dir, and removes dir with all files. A
	// directory that is not there is no error.
	Remove(dir string) error
}

// A Service does what the kubelet asks about pod sandboxes. What it remembers
// are steps begun and not finished; those are in the journal too.
type Service struct {
	docker     *engine.Engine
	cache      *cache.Cache
	images     Images
	containers Containers
	network    Network
	state      State
	log        *slog.Logger

	runDir      string
	bridge      bool
	checkpoints checkpoint.Dir
	tmpfs       Tmpfs

	turns kmutex.Mutex // by Docker name, but for a suffix

	left     chan struct{} // has one element if something waits for KeepClean
	patience time.Duration // detachPatience

	unbounded sync.Once // for the warning that files of pods cannot be written to

	mu       sync.Mutex         // guards following
	detaches map[string]failing // to take the network back, by sandbox ID
}

// failing is what fails again and again.
type failing struct {
	tries int
	since time.Time
}

// Images is the part of package image that a sandbox needs.
type Images interface {
	// Pause returns the ID of the pause image.
	Pause(ctx context.Context) (id string, err error)
	// ForgetPause tells that the Engine did not have what Pause returned.
	ForgetPause()
}

// Containers is the part of package container that a sandbox needs.
type Containers interface {
	// Kill ends the container at once. One that does not run is no error.
	Kill(ctx context.Context, id string) error
	// Remove removes the container, running or not.
	Remove(ctx context.Context, id string) error
}

// Network is the part of package network that a sandbox needs. With
// Config.Bridge it is asked about pods from before only.
type Network interface {
	Plan(pod network.Pod) (network.Plan, error)
	Bind(id string, pid int) (string, error)
	Attach(ctx context.Context, plan network.Plan) ([]netip.Addr, error)
	Detach(ctx context.Context, plan *network.Plan, id string) error
	Forget(ctx context.Context, id string) error
	Attached() []string
	Bound() []string
	GC(ctx context.Context, keep []string) error
}

// New returns a Service.
func New(cfg Config) *Service {
	return &Service{
		docker: cfg.Docker, cache: cfg.Cache, images: cfg.Images, containers: cfg.Containers, network: cfg.Network,
		state: cfg.State, log: cfg.Log, runDir: cfg.RunDir, bridge: cfg.Bridge, checkpoints: cfg.Checkpoints, tmpfs: cfg.Tmpfs,
		left: make(chan struct{}, 1), patience: detachPatience, detaches: map[string]failing{},
	}
}

// podDir is where the files of the sandbox id are.
func (s *Service) podDir(id string) string { return Files(s.runDir).dir(id) }
