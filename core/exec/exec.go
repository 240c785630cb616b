// Package exec runs commands in containers, attaches streams to containers, and forwards
// ports of pods.
//
// A [Service] implements ExecSync of the CRI and, as the Runtime of package streaming, the
// streams of Exec, Attach and PortForward. All that outlives a call is the count of memory
// that sessions use. Docker neither ends an exec whose client has gone nor has a request
// for that, so the package sends signals to the processes itself (kill.go).
package exec

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/core/cache"
	"berth/core/engine"
)

// A Service runs commands and attaches streams. Its methods may be called concurrently.
type Service struct {
	docker *engine.Engine
	cache  *cache.Cache
	dial   DialFunc
	memory *memory
	signal func(containerID string, pid int, signal unix.Signal) error // signalTree, except in tests
	log    *slog.Logger
}

// DialFunc connects to a TCP port on the loopback interface of a pod.
type DialFunc func(ctx context.Context, pod *cache.Sandbox, port int) (net.Conn, error)

// New returns a Service; none of its arguments may be nil, except dial if PortForward is
// not called.
func New(docker *engine.Engine, cache *cache.Cache, dial DialFunc, log *slog.Logger) *Service {
	return &Service{docker: docker, cache: cache, dial: dial, memory: newMemory(memoryLimit), signal: signalTree, log: log}
}

// detachKeys is a sequence that nobody types. An Engine that reads it from stdin closes the
// stream; this cannot be turned off, and the default swallows ctrl-p of a shell.
const detachKeys = "ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-^,ctrl-],ctrl-_,ctrl-@"

// runningContainer returns the container id, or an error of kind FailedPrecondition if it
// is not running.
func (s *Service) runningContainer(ctx context.Context, id string) (*cache.Container, error) {
	c, err := s.cache.Container(ctx, id)
	if err == nil && !c.Running {
		err = fmt.Errorf("container %s is not running: %w", c.ID(), errdefs.ErrFailedPrecondition)
	}
	return c, err
}
