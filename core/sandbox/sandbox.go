// Package sandbox implements the pod sandboxes of the CRI: for each pod a pause container
// that holds its namespaces, the network that is attached to them, and the files that are
// mounted into all its containers (/etc/hosts, /etc/hostname, /etc/resolv.conf).
//
// A Service changes one pod at a time, under a lock by Docker name. Before it creates a
// sandbox it stores an intent; whatever an unfinished call leaves is removed by its
// rollback, by the next call for that pod, or by RunGC.
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
	"berth/core/nri"
	"berth/core/ociruntime"
	"berth/core/pending"
	"berth/core/podpolicy"
	"berth/core/specfiles"
	"berth/network"
)

// Config is what New needs. All fields but Bridge, OCI, NRI, Policy, SpecFiles and Tmpfs are required.
type Config struct {
	Docker     *engine.Engine
	Cache      *cache.Cache
	Images     Images
	Containers Containers
	Network    Network
	State      State
	Log        *slog.Logger

	// RunDir has the files of pods in pods/<sandbox ID>.
	RunDir string
	// Bridge attaches new pods to Docker's bridge network instead of CNI
	// (--network-plugin=""). Pods that exist keep the network that they have.
	Bridge bool
	// Checkpoints is the directory of cri-dockerd's checkpoints.
	Checkpoints checkpoint.Dir
	// Policy is what pods may have beyond the CRI.
	Policy podpolicy.Policy
	// OCI has the instructions for berth's OCI runtime; nil if there is no directory for them.
	OCI *ociruntime.Store
	// NRI sends the events of pods to plugins; nil without NRI.
	NRI *nri.Runtime
	// SpecFiles say what the operator changes in OCI specs.
	SpecFiles specfiles.Config
	// Tmpfs bounds what containers can write to the files of their pod. If it is nil,
	// they can only read them.
	Tmpfs Tmpfs
}

// A Tmpfs mounts file systems of a bounded size (premount.Tmpfs).
type Tmpfs interface {
	// Mount mounts a file system of size bytes on dir. Its files have the SELinux label.
	Mount(dir string, size int64, label string) error
	// Remove unmounts what Mount has mounted on dir, and removes dir with all files. A
	// directory that does not exist is no error.
	Remove(dir string) error
}

// A Service creates, stops and removes pod sandboxes. Its methods can be called
// concurrently.
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
	policy      podpolicy.Policy
	oci         *ociruntime.Store
	nri         *nri.Runtime
	specFiles   specfiles.Config

	locks   kmutex.Mutex                   // by Docker name without a suffix
	pending *pending.Store[pendingSandbox] // by Docker name without a suffix

	gcTrigger   chan struct{} // has an element if RunGC is to start a pass
	detachGrace time.Duration // the constant, except in tests

	readOnlyWarning sync.Once // that containers cannot write to the files of their pod

	mu             sync.Mutex                // guards following
	detachFailures map[string]detachFailures // by sandbox ID
}

// Images is the part of package image that a sandbox needs.
type Images interface {
	// Pause returns the ID of the pause image, which it pulls or builds if needed.
	Pause(ctx context.Context) (id string, err error)
	// ForgetPause makes the next Pause check whether the Engine has the image.
	ForgetPause()
}

// Containers is the part of package container that a sandbox needs.
type Containers interface {
	// Kill kills the container with SIGKILL. One that does not run is no error.
	Kill(ctx context.Context, id string) error
	// Remove removes the container, whether or not it runs.
	Remove(ctx context.Context, id string) error
}

// Network is the part of package network that a sandbox needs. With Config.Bridge it
// is used only for pods that were attached by CNI before.
type Network interface {
	Plan(pod network.Pod) (network.Plan, error)
	Bind(id string, pid int) (string, error)
	Attach(ctx context.Context, plan network.Plan) ([]netip.Addr, error)
	Detach(ctx context.Context, plan *network.Plan, id string) error
	Forget(ctx context.Context, id string) error
	Attached() ([]string, error)
	Bound() ([]string, error)
	GC(ctx context.Context, keep []string) error
}

// New returns a Service.
func New(cfg Config) *Service {
	s := &Service{
		docker: cfg.Docker, cache: cfg.Cache, images: cfg.Images, containers: cfg.Containers, network: cfg.Network,
		state: cfg.State, log: cfg.Log, runDir: cfg.RunDir, bridge: cfg.Bridge, checkpoints: cfg.Checkpoints, tmpfs: cfg.Tmpfs, policy: cfg.Policy, oci: cfg.OCI, nri: cfg.NRI, specFiles: cfg.SpecFiles,
		gcTrigger: make(chan struct{}, 1), detachGrace: detachGrace, detachFailures: map[string]detachFailures{},
	}
	s.pending = pending.New(pending.Config[pendingSandbox]{Kind: "sandbox", Lock: s.locks.Lock, Remove: s.removePending, Log: cfg.Log})
	return s
}

// podDir returns the directory of the files of the sandbox id.
func (s *Service) podDir(id string) string { return Files(s.runDir).dir(id) }
