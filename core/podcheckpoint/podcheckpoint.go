// Package podcheckpoint implements CheckpointPod and RestorePod of the CRI (KEP-5823), on top of the services that run pods and containers and
// of those that take and read checkpoints of containers.
//
// A checkpoint of a pod is a directory with an archive for each container, in the format of CheckpointContainer, and a manifest. All
// containers are frozen before the first is captured and until the last one is, so that they are of one moment (core/criu). A restored pod
// is a new one, made as RunPodSandbox and CreateContainer make it, whose containers go on from the archives when they are started. It is
// complete with its last container: until then it is an unfinished sandbox, which is removed after an error or a crash (core/sandbox).
//
// Locks are taken in this order: that of the pod in this package, then those of its containers in the order of their IDs.
package podcheckpoint

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/criu"
	"berth/core/kmutex"
	"berth/core/restore"
	"berth/core/todocker"
)

// A Config is what a Service needs; all fields but Restores are required.
type Config struct {
	Version     string // of berthd
	Cache       objects
	Sandboxes   sandboxes
	Containers  containers
	Images      images
	Checkpoints checkpoints
	Restores    *restore.Store // nil if nothing is restored
	Log         *slog.Logger
}

// A Service takes and restores checkpoints of pods. Its methods can be called concurrently.
type Service struct {
	Config
	locks kmutex.Mutex // by sandbox ID
}

// New returns a Service.
func New(cfg Config) *Service { return &Service{Config: cfg} }

// objects is what a Service needs of core/cache.
type objects interface {
	Sandbox(ctx context.Context, id string) (*cache.Sandbox, error)
	Container(ctx context.Context, id string) (*cache.Container, error)
}

// sandboxes is what a Service needs of core/sandbox.
type sandboxes interface {
	// RunWith runs a pod that does not exist yet, and calls complete with the ID of the sandbox. If that fails, or berthd is killed, the
	// sandbox is removed with all containers in it.
	RunWith(ctx context.Context, pod *runtimeapi.PodSandboxConfig, handler string, complete func(id string) error) (id string, err error)
	Remove(ctx context.Context, id string) error
}

// containers is what a Service needs of core/container.
type containers interface {
	// BeginCheckpoint locks a running container until done is called. abort is called if it is to be stopped meanwhile.
	BeginCheckpoint(ctx context.Context, id string, abort context.CancelCauseFunc) (c *cache.Container, target criu.Container, done func(), err error)
	Create(ctx context.Context, sandboxID string, c *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) (id string, err error)
	// Inspect returns what Docker says of a container.
	Inspect(ctx context.Context, id string) (container.InspectResponse, error)
}

// images is what a Service needs of core/image.
type images interface {
	// Resolve finds the local image ref, which the user has called userRef.
	Resolve(ctx context.Context, ref, userRef string) (todocker.Image, error)
}

// checkpoints is what a Service needs of core/criu.
type checkpoints interface {
	CheckpointPod(ctx context.Context, targets []criu.Container, m criu.Manifest, path string, inspect criu.Inspector) (criu.Manifest, error)
}

// checkCall returns an error of kind InvalidArgument for a call without a deadline, or with options: there are none.
func checkCall(ctx context.Context, options map[string]string) error {
	if _, limited := ctx.Deadline(); !limited {
		return fmt.Errorf("the call has no deadline: the caller must set one: %w", errdefs.ErrInvalidArgument)
	}
	if len(options) > 0 {
		return fmt.Errorf("options %.200q: none are supported: %w", slices.Sorted(maps.Keys(options)), errdefs.ErrInvalidArgument)
	}
	return nil
}
