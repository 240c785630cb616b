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
	"berth/core/state"
	"berth/network"
)

// Config is what an operator can choose about sandboxes.
type Config struct {
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
	Config
	docker     *engine.Engine
	view       *cache.Cache
	images     images
	containers containers
	network    Network
	intents    *state.Bucket
	updates    *state.Bucket
	log        *slog.Logger

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

// images is the part of the image room that a sandbox needs.
type images interface {
	// Pause returns the ID of the pause image.
	Pause(ctx context.Context) (id string, err error)
	// ForgetPause tells that the Engine did not have what Pause returned.
	ForgetPause()
}

// containers is the part of the container room that a sandbox needs.
type containers interface {
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

// New returns a Service; none of its arguments may be nil.
func New(cfg Config, docker *engine.Engine, view *cache.Cache, images images, containers containers, network Network,
	intents, updates *state.Bucket, log *slog.Logger) *Service {
	return &Service{
		Config: cfg, docker: docker, view: view, images: images, containers: containers, network: network,
		intents: intents, updates: updates, log: log, left: make(chan struct{}, 1), patience: detachPatience, detaches: map[string]failing{},
	}
}

// podDir is where the files of the sandbox id are.
func (s *Service) podDir(id string) string { return Files(s.RunDir).dir(id) }
