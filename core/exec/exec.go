// Package exec runs commands in containers, joins streams to those of containers,
// and reaches ports of pods.
//
// It is called by core/server and by package streaming, and talks to the Docker
// Engine.
package exec

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	utilexec "k8s.io/utils/exec"

	"berth/core/cache"
	"berth/core/engine"
)

// A Service runs commands and joins streams. All it keeps is count of the memory
// that its sessions use.
type Service struct {
	docker *engine.Engine
	view   *cache.Cache
	dial   Dial
	memory *memory
	signal func(id string, pid int, signal unix.Signal) error
	log    *slog.Logger
}

// Dial connects to a port on the loopback of a pod.
type Dial func(ctx context.Context, pod *cache.Sandbox, port int) (net.Conn, error)

// New returns a Service; none of its arguments may be nil.
func New(docker *engine.Engine, view *cache.Cache, dial Dial, log *slog.Logger) *Service {
	return &Service{docker: docker, view: view, dial: dial, memory: newMemory(memoryLimit), signal: signalTree, log: log}
}

// detachKeys is what an Engine takes for the wish to leave a stream. It cannot
// be told to take nothing, and its default swallows a shell's ctrl-p.
const detachKeys = "ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-^,ctrl-],ctrl-_,ctrl-@"

// running returns the container id, which must run.
func (s *Service) running(ctx context.Context, id string) (*cache.Container, error) {
	c, err := s.view.Container(ctx, id)
	if err == nil && !c.Running {
		err = fmt.Errorf("container %s is not running: %w", c.ID(), errdefs.ErrFailedPrecondition)
	}
	return c, err
}

// exit returns what an exec session that ended with code returns.
//
// It must reach package streaming unwrapped: cri-streaming v0.37 finds the
// exit code with a type assertion, and kubectl exec would exit with 1.
func exit(code int) error {
	if code == 0 {
		return nil
	}
	return utilexec.CodeExitError{Err: fmt.Errorf("exit status %d", code), Code: code}
}

// wait waits for d or returns the error of ctx.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
