// Package exec is the room where commands are run in containers that run
// already, where streams are joined to a container's own, and where ports of
// pods are reached.
//
// It is called by the front desk (core/server) and by package streaming, and
// talks to the Docker Engine.
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

	"berth/core/engine"
	"berth/core/view"
)

// A Service runs commands and joins streams. It keeps no state of its own.
type Service struct {
	docker *engine.Engine
	view   *view.View
	dial   Dial
	signal func(id string, pid int, signal unix.Signal) error
	log    *slog.Logger
}

// Dial connects to a port on the loopback of a pod.
type Dial func(ctx context.Context, pod *view.Sandbox, port int) (net.Conn, error)

// New returns a Service; none of its arguments may be nil.
func New(docker *engine.Engine, view *view.View, dial Dial, log *slog.Logger) *Service {
	return &Service{docker: docker, view: view, dial: dial, signal: signalTree, log: log}
}

// detachKeys is what an Engine takes for the wish to leave a stream. It cannot
// be told to take nothing, and its default swallows a shell's ctrl-p.
const detachKeys = "ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-^,ctrl-],ctrl-_,ctrl-@"

// exitPatience is how long after the end of its output a command may take to
// be known to have ended.
const exitPatience = 5 * time.Second

// running returns the container id, which must run.
func (s *Service) running(ctx context.Context, id string) (*view.Container, error) {
	c, err := s.view.Container(ctx, id)
	if err == nil && !c.Running {
		err = fmt.Errorf("container %s is not running: %w", c.ID(), errdefs.ErrFailedPrecondition)
	}
	return c, err
}

// exitCode returns the exit code of an exec session whose output has ended. A
// command that could not be run at all is an error of kind Unknown.
func exitCode(ctx context.Context, docker *engine.Conn, session, said string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, exitPatience)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		found, err := docker.ContainerExecInspect(ctx, session)
		switch {
		case err != nil:
			return 0, fmt.Errorf("exec: %w", err)
		case found.Running:
		case found.Pid == 0 && (found.ExitCode == exitNotRunnable || found.ExitCode == exitNotFound || found.ExitCode == exitNoExec):
			// It has never been a process; the Engine writes why to its output.
			return 0, fmt.Errorf("exec: %s: %w", said, errdefs.ErrUnknown)
		default:
			return found.ExitCode, nil
		}
		if err := wait(ctx, pause); err != nil {
			return 0, fmt.Errorf("exec: waiting for the exit code: %w", err)
		}
	}
}

// Exit codes that the Engine makes up for what could not be run.
const (
	exitNotRunnable = 126
	exitNotFound    = 127
	exitNoExec      = 128
)

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
