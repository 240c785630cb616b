package exec

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"berth/core/engine"
	"berth/core/panics"
	"berth/core/sleep"
	"berth/core/tracing"
)

const (
	// inspectTimeout bounds one inspect of an exec.
	inspectTimeout = 5 * time.Second
	// findTimeout bounds the search for the process of a command that is to be signalled.
	findTimeout = 10 * time.Second
	// signalWait is how long the caller waits for that; then it goes on in the background.
	signalWait = 2 * time.Second
	// notStartedTimeout is how long a command that is to be signalled may be neither running
	// nor have a process, until it is taken for one that was never started.
	notStartedTimeout = 100 * time.Millisecond
	// hangupGrace is how long a command may take to end after SIGHUP.
	hangupGrace = 5 * time.Second
)

// A session is an exec that has been created in Docker.
type session struct {
	docker    *engine.Conn
	container string // its ID
	id        string
	tty       bool
	signal    func(containerID string, pid int, signal unix.Signal) error
	log       *slog.Logger
}

// timeoutIsUnavailable returns err, or an error of kind Unavailable if err is that a deadline
// was exceeded: the deadline may be that of a command, and the kubelet must not take a
// Docker that hangs for a command that runs too long.
func timeoutIsUnavailable(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("docker has not answered in time: %w", errdefs.ErrUnavailable)
	}
	return err
}

// hijackError returns the error of a call that was to hijack its connection: context.Canceled
// if the caller has gone, and an error of kind Unavailable if Docker has not answered in time.
func hijackError(ctx context.Context, err error) error {
	if ctxErr := ctx.Err(); errors.Is(ctxErr, context.Canceled) {
		return ctxErr
	}
	return timeoutIsUnavailable(err)
}

// create creates an exec in the container id, which must be running.
func (s *Service) create(ctx context.Context, id string, options container.ExecOptions) (*session, error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return nil, err
	}
	c, err := s.runningContainer(ctx, id)
	if err != nil {
		return nil, timeoutIsUnavailable(err)
	}
	createCtx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	options.DetachKeys = detachKeys
	created, err := docker.ContainerExecCreate(createCtx, c.ID(), options)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: create: %w", c.ID(), timeoutIsUnavailable(err))
	}
	return &session{docker: docker, container: c.ID(), id: created.ID, tty: options.Tty, signal: s.signal, log: s.log}, nil
}

// start starts the command. From then on it runs whether or not its output is read.
func (x *session) start(ctx context.Context) (types.HijackedResponse, error) {
	requestCtx, span := tracing.StartHijacked(ctx, "POST /exec/{id}/start", tracing.ContainerID(x.container))
	streams, err := x.docker.ContainerExecAttach(requestCtx, x.id, container.ExecAttachOptions{Tty: x.tty})
	span.End(err)
	if err != nil {
		err = hijackError(ctx, err)
		if ctx.Err() != nil || errdefs.IsUnavailable(err) {
			x.killInBackground(ctx) // Docker may still start it
		}
		return streams, fmt.Errorf("exec in container %s: start: %w", x.container, err)
	}
	return streams, nil
}

// inspect returns the state of the exec.
func (x *session) inspect(ctx context.Context) (container.ExecInspect, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	return x.docker.ContainerExecInspect(ctx, x.id)
}

// terminate ends a command whose client has gone, which Docker does not do. A command with
// a terminal gets SIGHUP, like one whose terminal is closed, and after hangupGrace SIGKILL.
func (x *session) terminate(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	if x.tty {
		x.sendSignal(ctx, unix.SIGHUP)
		graceCtx, cancel := context.WithTimeout(ctx, hangupGrace)
		defer cancel()
		if _, err := x.pollExitCode(graceCtx); err == nil || errdefs.IsNotFound(err) {
			return
		}
	}
	x.kill(ctx)
}

// kill kills the command and all of its descendants; see sendSignal.
func (x *session) kill(ctx context.Context) signalResult { return x.sendSignal(ctx, unix.SIGKILL) }

// A signalResult is what a signal to a command has met.
type signalResult int

const (
	notReached signalResult = iota // whether the command runs is not known
	wasRunning
	hadEnded
)

// sendSignal sends a signal to the command and all of its descendants, for which the Engine
// API has no request, even if ctx has ended. If Docker does not answer within signalWait, it continues in the background.
func (x *session) sendSignal(ctx context.Context, signal unix.Signal) signalResult {
	done := make(chan signalResult, 1)
	panics.Go(x.log, func() { done <- x.findAndSignal(context.WithoutCancel(ctx), signal, false) })
	select {
	case result := <-done:
		return result
	case <-time.After(signalWait):
		return notReached
	}
}

// killInBackground kills a command that Docker may not have started yet.
func (x *session) killInBackground(ctx context.Context) {
	panics.Go(x.log, func() { x.findAndSignal(context.WithoutCancel(ctx), unix.SIGKILL, true) })
}

// findAndSignal waits until the command has a process, and signals it. If mayStartLate, Docker may not have handled the start
// request yet, and a command that is not running is waited for.
func (x *session) findAndSignal(ctx context.Context, signal unix.Signal, mayStartLate bool) signalResult {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	for interval := time.Millisecond; ; interval = min(2*interval, 200*time.Millisecond) {
		state, err := x.docker.ContainerExecInspect(ctx, x.id)
		switch {
		case errdefs.IsNotFound(err):
			return notReached // the container has ended, or Docker has been restarted
		case err != nil:
			x.log.Warn("exec not killed: Docker cannot inspect it", slog.String("container", x.container), slog.Any("err", err))
			return notReached
		case hasExitCode(state):
			return hadEnded
		case state.Pid != 0:
			err := x.signal(x.container, state.Pid, signal)
			switch {
			case errors.Is(err, errProcessEnded):
				return hadEnded
			case err != nil:
				x.log.Warn("exec not killed", slog.String("container", x.container), slog.Int("pid", state.Pid), slog.Any("err", err))
			}
			return wasRunning
		case !state.Running && !mayStartLate && interval > notStartedTimeout:
			return notReached
		}
		if sleep.WithContext(ctx, interval) != nil {
			return notReached
		}
	}
}
