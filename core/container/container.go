// Package container implements the life cycle of the containers of pods: create, start, stop, remove,
// update and status, as in the ContainerService part of the CRI's RuntimeService.
//
// Service reads from the cache and writes to Docker. What its methods have changed is in the cache when
// they return. Per container, Start, Update, Checkpoint and Remove run one at a time; so do creates of the same Docker
// name. Settings that the Engine API cannot express are core/resources' subject, checkpoints core/criu's and core/restore's, mounts that it cannot
// express core/premount's, and containers that are created after their caller's deadline core/pending's.
package container

import (
	"archive/tar"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cdi"
	"berth/core/changes"
	"berth/core/criu"
	"berth/core/engine"
	"berth/core/identity"
	"berth/core/kmutex"
	"berth/core/logs/dockerlog"
	"berth/core/nri"
	"berth/core/ociruntime"
	"berth/core/pending"
	"berth/core/podpolicy"
	"berth/core/premount"
	"berth/core/premounts"
	"berth/core/resources"
	"berth/core/restore"
	"berth/core/specfiles"
	"berth/core/todocker"
)

// A Config is what a Service needs; all fields but Policy, OCI, SpecFiles, NRI and Restores are required.
type Config struct {
	Engine *engine.Engine
	Cache  *cache.Cache
	Images images
	Logs   logs
	Files  files

	Failures    *FailedStarts
	Updates     *Updates
	Premounts   *premount.Dir
	Policy      podpolicy.Policy  // what pods may have beyond the CRI
	OCI         *ociruntime.Store // instructions for berth's OCI runtime; nil if there is no directory for them
	SpecFiles   specfiles.Config  // what the operator changes in OCI specs
	CDI         cdi.Config
	Checkpoints *criu.Checkpointer
	NRI         *nri.Runtime   // nil without NRI
	NRIRecords  *nri.Records   // also without NRI: of containers that plugins have changed before
	Restores    *restore.Store // nil if no container is restored from a checkpoint
	Log         *slog.Logger
}

// A Service creates and manages containers. A restart of the daemon loses nothing of its state but which
// containers are being stopped and which ones wait for a retry of their creation.
type Service struct {
	engine      *engine.Engine
	cache       *cache.Cache
	images      images
	logs        logs
	files       files
	failures    *FailedStarts
	updates     *Updates
	premounts   *premounts.Manager
	policy      podpolicy.Policy
	nri         *nri.Runtime
	nriRecords  *nri.Records
	oci         *ociruntime.Store
	specFiles   specfiles.Config
	cdi         cdi.Config
	checkpoints *criu.Checkpointer
	restores    *restore.Store
	resources   *resources.Manager
	pending     *pending.Store[pendingContainer] // by Docker name
	log         *slog.Logger

	locks kmutex.Mutex // by container ID, or by Docker name while there is no ID yet

	warnBuffered sync.Once // of logs that cannot be blocking

	mu            sync.Mutex                         // guards following
	stops         map[string]int                     // number of Stop calls that run, by container ID
	checkpointing map[string]context.CancelCauseFunc // end the checkpoints that run, by container ID
}

// images is what a Service needs of core/image.
type images interface {
	// Resolve finds the local image ref, which the user has called userRef. The error is of kind NotFound
	// if there is none.
	Resolve(ctx context.Context, ref, userRef string) (todocker.Image, error)
	// PasswdFiles returns the users and groups of the image with the ID.
	PasswdFiles(ctx context.Context, id string) (identity.PasswdFiles, error)
	// Walk visits files of the image with the ID.
	Walk(ctx context.Context, id string, names []string, visit func(header *tar.Header, content io.Reader) error) error
}

// logs is what a Service needs of core/logs.
type logs interface {
	// Create makes path, which must be below dir, the log of the container id. source is Docker's own file
	// with its output.
	Create(id string, source dockerlog.File, dir, path string) error
	// Reopen begins a new file at the path of the log of a running container.
	Reopen(ctx context.Context, id string) error
	// Remove ends the log of a container that is being removed. source is where its json-file would be.
	Remove(ctx context.Context, id, source, dir, path string) error
	// Prune drops the state of containers for which known returns false.
	Prune(known func(id string) bool) error
	// LogConfig is the log driver of containers with its options; the zero value for Docker's default.
	LogConfig() container.LogConfig
}

// files is what a Service needs of core/sandbox.
type files interface {
	// FilesOf returns the files that are mounted into the containers of a sandbox.
	FilesOf(sandboxID string) []todocker.File
}

// A pendingContainer is a container that waits for a retry of its creation, and hidden until then.
type pendingContainer struct {
	sandboxID string
	config    *runtimeapi.ContainerConfig
	hidden    *cache.Hidden
}

// New returns a Service. It needs RunGC and RunReapply in the background.
func New(cfg Config) *Service {
	s := &Service{
		engine: cfg.Engine, cache: cfg.Cache, images: cfg.Images, logs: cfg.Logs, files: cfg.Files,
		failures: cfg.Failures, updates: cfg.Updates, premounts: premounts.New(cfg.Premounts, cfg.Cache, cfg.Log), nri: cfg.NRI, nriRecords: cfg.NRIRecords, cdi: cfg.CDI, policy: cfg.Policy, oci: cfg.OCI, specFiles: cfg.SpecFiles, log: cfg.Log,
		checkpoints: cfg.Checkpoints, restores: cfg.Restores, stops: map[string]int{}, checkpointing: map[string]context.CancelCauseFunc{},
	}
	s.resources = resources.New(resources.Config{Engine: cfg.Engine, Cache: cfg.Cache, Locks: &s.locks, Log: cfg.Log})
	s.pending = pending.New(pending.Config[pendingContainer]{Kind: "container", Lock: s.locks.Lock, Remove: s.removePending, Log: cfg.Log})
	return s
}

// RunReapply writes the settings of containers again whenever systemd may have reset them. It returns when
// ctx ends.
func (s *Service) RunReapply(ctx context.Context) error { return s.resources.Run(ctx) }

// lock returns the container id as it is once its lock is held, until unlock is called.
func (s *Service) lock(ctx context.Context, id string) (c *cache.Container, unlock func(), err error) {
	if c, err = s.cache.Container(ctx, id); err != nil {
		return nil, nil, err
	}
	if unlock, err = s.locks.Lock(ctx, c.ID()); err != nil {
		return nil, nil, err
	}
	if c, err = s.cache.Container(ctx, c.ID()); err != nil {
		unlock()
		return nil, nil, err
	}
	return c, unlock, nil
}

// described returns what names c in the log.
func described(c *cache.Container) slog.Attr {
	image := c.Status.GetImage().GetUserSpecifiedImage()
	if image == "" {
		image = c.Status.GetImage().GetImage()
	}
	return changes.Container(c.ID(), c.Name, c.Row.GetPodSandboxId(), image)
}

// daemonError is an error of Docker without the prefix that docker/client adds to each.
type daemonError struct{ error }

func (e daemonError) Error() string {
	return strings.TrimPrefix(e.error.Error(), "Error response from daemon: ")
}

func (e daemonError) Unwrap() error { return e.error }
