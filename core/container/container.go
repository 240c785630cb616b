// Package container is the room where the containers of pods are created,
// started, stopped, looked at and removed.
//
// It is called by the front desk (core/server) and by the sandbox room, and
// talks to the Docker Engine.
package container

import (
	"context"
	"log/slog"
	"sync"

	"github.com/docker/docker/api/types/container"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/kmutex"
	"berth/core/names"
	"berth/core/premount"
	"berth/core/todocker"
)

// A Service does what the kubelet asks about containers. It keeps nothing that
// a restart would lose but who is being stopped, and what was made too late.
type Service struct {
	docker   *engine.Engine
	view     *cache.Cache
	images   images
	logs     logs
	files    files
	failures *FailedStarts
	updates  *Updates
	stages   *premount.Dir
	log      *slog.Logger

	turns kmutex.Mutex // by ID, or by name where there is no ID yet

	unsettled chan struct{} // holds one if systemd may have taken settings away

	warnOnce sync.Once // that logs are not as they should be

	mu       sync.Mutex // guards following
	stopping map[string]int
	staging  map[names.Premount]bool // names of staged mounts whose container is being made
	late     map[string]late         // by name
}

// An Image is what a container needs to know of an image.
type Image struct {
	ID         string
	Ref        string // repository@digest if there is one, else the ID
	HasCommand bool   // whether it has an entrypoint or a command
	User       string // whom it runs as if nobody says otherwise
	// Layers are the directories that its files are in, the topmost first; none
	// if the Engine does not tell.
	Layers []string
}

// images is the part of the image room that a container needs.
type images interface {
	// Resolve finds the local image ref, which the user has called userRef; the
	// error is of kind NotFound if there is none.
	Resolve(ctx context.Context, ref, userRef string) (Image, error)
	// Accounts returns the users and groups of the image with the ID.
	Accounts(ctx context.Context, id string) (todocker.Accounts, error)
}

// logs is the part of the log room that a container needs.
type logs interface {
	// Open makes path, which must be below dir, the log of the container id, of
	// which the Engine's own file is source.
	Open(id, source, dir, path string) error
	// Reopen begins a new file at the path of a log that runs.
	Reopen(ctx context.Context, id string) error
	// Close ends the log of a container that is being removed.
	Close(ctx context.Context, id, source, dir, path string) error
	// Forget drops what is kept on containers that known does not know.
	Forget(known func(id string) bool) error
	// Driver is the log driver of containers and its options; of no type for
	// the Engine's default.
	Driver() container.LogConfig
}

// files is the part of the sandbox room that a container needs.
type files interface {
	// Of returns the files that containers of a sandbox are to find.
	Of(sandboxID string) []todocker.File
}

// New returns a Service; none of its arguments may be nil.
func New(docker *engine.Engine, view *cache.Cache, images images, logs logs, files files, failures *FailedStarts, updates *Updates, stages *premount.Dir, log *slog.Logger) *Service {
	return &Service{
		docker: docker, view: view, images: images, logs: logs, files: files, failures: failures, updates: updates, stages: stages, log: log,
		stopping: map[string]int{}, staging: map[names.Premount]bool{}, late: map[string]late{},
		unsettled: make(chan struct{}, 1),
	}
}
