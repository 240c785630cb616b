package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"berth/core/engine"
	"berth/core/panics"
)

const (
	// inspectTimeout is how long Docker may take to tell of an exec.
	inspectTimeout = 5 * time.Second
	// pollMin and pollMax are how often Docker is asked whether a command has ended
	// while its output goes on. Most commands end it, and are not asked for.
	pollMin, pollMax = 200 * time.Millisecond, 2 * time.Second
	// drainTimeout is how long the output of a command that has ended is waited for.
	// What it has written is on its way; what its children write may go on for ever.
	drainTimeout = time.Second
	// drainMax bounds the output that is read then, in bytes. It is more than the
	// pipes and buffers between a command and here hold.
	drainMax = 4 << 20
	// lastTimeout is how long Docker may take to tell whether a command has ended whose
	// time is up.
	lastTimeout = 3 * time.Second
	// killTimeout is how long a command that is to be killed may take to be found,
	// and killWait how long the caller waits for that.
	killTimeout, killWait = 10 * time.Second, 2 * time.Second
	// hangupGrace is how long a command has to end when its terminal has gone.
	hangupGrace = 5 * time.Second
)

// A session is an exec that Docker has been asked for.
type session struct {
	docker    *engine.Conn
	container string
	id        string
	tty       bool
	signal    func(id string, pid int, signal unix.Signal) error
	log       *slog.Logger
}

// unanswered returns err as one of kind Unavailable if Docker has not answered in
// time. The deadline may be that of a command, which the error must not blame.
func unanswered(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("docker has not answered in time: %w", errdefs.ErrUnavailable)
	}
	return err
}

// hijackError is the error of a call that was to take over its connection: that of
// ctx if the caller has hung up, and of kind Unavailable if Docker has not answered in
// time. Docker answers such a call before it does anything.
func hijackError(ctx context.Context, err error) error {
	if canceled := ctx.Err(); errors.Is(canceled, context.Canceled) {
		return canceled
	}
	return unanswered(err)
}

// couldNotRun returns an error of kind Unavailable if the exit code of the command
// stands for a containerd that Docker has lost, of which said, its output, tells. The
// words of a command that has run are none of Docker's.
func (x *session) couldNotRun(ctx context.Context, exit int, said string) error {
	if exit < exitNotRunnable || exit > exitNoExec || !engine.ContainerdLost(said) {
		return nil
	}
	if found, err := x.inspect(ctx); err == nil && found.Pid != 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", said, errdefs.ErrUnavailable)
}

// Exit codes that Docker makes up for a command that could not be run.
const (
	exitNotRunnable = 126
	exitNoExec      = 128
)

// create asks Docker for an exec in the container id, which must run.
func (s *Service) create(ctx context.Context, id string, options container.ExecOptions) (*session, error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return nil, err
	}
	c, err := s.running(ctx, id)
	if err != nil {
		return nil, unanswered(err)
	}
	short, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	options.DetachKeys = detachKeys
	made, err := docker.ContainerExecCreate(short, c.ID(), options)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: create: %w", c.ID(), unanswered(err))
	}
	return &session{docker: docker, container: c.ID(), id: made.ID, tty: options.Tty, signal: s.signal, log: s.log}, nil
}

// start has Docker run the command. From here on it runs whether or not anybody
// reads its output.
func (x *session) start(ctx context.Context) (types.HijackedResponse, error) {
	streams, err := x.docker.ContainerExecAttach(ctx, x.id, container.ExecAttachOptions{Tty: x.tty})
	if err != nil {
		err = hijackError(ctx, err)
		if ctx.Err() != nil || errdefs.IsUnavailable(err) {
			// Docker may run it yet.
			x.findLater(ctx, unix.SIGKILL, true)
		}
		return streams, fmt.Errorf("exec in container %s: start: %w", x.container, err)
	}
	return streams, nil
}

// inspect returns what Docker tells of the exec.
func (x *session) inspect(ctx context.Context) (container.ExecInspect, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	return x.docker.ContainerExecInspect(ctx, x.id)
}

// ended reports whether the command has run, or could not be run. Before Docker
// starts it, it is said not to run either, but has neither a process nor a code.
func ended(found container.ExecInspect) bool {
	return !found.Running && (found.Pid != 0 || found.ExitCode != 0)
}

// errOutput is that the output could not be passed on.
type errOutput struct{ error }

func (e errOutput) Unwrap() error { return e.error }

// wait waits for the command to end and returns its exit code, which for one that
// could not be run is 126 or 127. copied has the result of reading output to its
// end. Neither the end of the output nor that of the command is waited for alone:
// a child may keep the output open, in Docker 20.10 so may a container that has
// ended in a shared PID namespace, and a command may close its output and go on.
//
// The error is that of ctx, an errOutput, or that Docker does not tell the code.
func (x *session) wait(ctx context.Context, output *output, copied <-chan error) (int, error) {
	pause := pollMin
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case err := <-copied:
			if err != nil {
				return 0, errOutput{err}
			}
			copied, pause = nil, time.Millisecond
		case <-timer.C:
			pause = min(2*pause, pollMax)
		}
		found, err := x.inspect(ctx)
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errdefs.IsNotFound(err):
			err = fmt.Errorf("the container has ended, and the command with it: %w", errdefs.ErrFailedPrecondition)
			return 0, errors.Join(err, output.drain(ctx, copied))
		case err != nil && copied == nil:
			return 0, fmt.Errorf("exit code: %w", unanswered(err))
		case err == nil && ended(found):
			return found.ExitCode, output.drain(ctx, copied)
		}
		timer.Reset(pause)
	}
}

// An output is what a command writes. Once the command has ended, it is at its end
// when nothing has come for drainTimeout in all.
type output struct {
	io.Reader
	conn net.Conn // where Reader reads

	mu     sync.Mutex // guards following
	ended  time.Time  // when the command has ended
	waited time.Duration
	left   int // of drainMax
}

func newOutput(streams types.HijackedResponse) *output {
	return &output{Reader: streams.Reader, conn: streams.Conn, left: drainMax}
}

// drain waits until the output of a command that has ended has been copied, or ctx
// is cancelled. copied may be nil.
func (o *output) drain(ctx context.Context, copied <-chan error) error {
	o.mu.Lock()
	o.ended = time.Now()
	_ = o.conn.SetReadDeadline(o.ended.Add(drainTimeout))
	o.mu.Unlock()
	if copied == nil {
		return nil
	}
	hungUp := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.Canceled) {
			close(hungUp)
		}
	})()
	select {
	case err := <-copied:
		if err != nil {
			return errOutput{err}
		}
		return nil
	case <-hungUp:
		return ctx.Err()
	}
}

// Read is of io.Reader.
func (o *output) Read(p []byte) (int, error) {
	begun := time.Now()
	o.mu.Lock()
	if !o.ended.IsZero() {
		if o.left <= 0 || o.waited >= drainTimeout {
			o.mu.Unlock()
			return 0, io.EOF
		}
		p = p[:min(len(p), o.left)]
		_ = o.conn.SetReadDeadline(begun.Add(drainTimeout - o.waited))
	}
	o.mu.Unlock()
	n, err := o.Reader.Read(p)
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended.IsZero() {
		if begun.Before(o.ended) {
			begun = o.ended
		}
		o.waited += time.Since(begun)
		o.left -= n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = io.EOF
		}
	}
	return n, err
}

// end sends a signal to the command and all that it has begun, for the Engine API
// has nothing for that. It reports whether the command had ended already. It waits
// for a moment only: if Docker does not answer, the command is looked for meanwhile.
func (x *session) end(ctx context.Context, signal unix.Signal) (hadEnded bool) {
	done := make(chan bool, 1)
	panics.Go(x.log, func() { done <- x.find(context.WithoutCancel(ctx), signal, false) })
	select {
	case hadEnded = <-done:
	case <-time.After(killWait):
	}
	return hadEnded
}

// findLater is find in the background, whatever becomes of ctx.
func (x *session) findLater(ctx context.Context, signal unix.Signal, late bool) {
	panics.Go(x.log, func() { x.find(context.WithoutCancel(ctx), signal, late) })
}

// find waits until the command is a process, and signals that. It reports whether
// the command had ended. If late, Docker may not have heard yet that it is to be
// started.
func (x *session) find(ctx context.Context, signal unix.Signal, late bool) (hadEnded bool) {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		found, err := x.docker.ContainerExecInspect(ctx, x.id)
		switch {
		case errdefs.IsNotFound(err):
			return false // the container has ended
		case err != nil:
			x.log.Warn("exec not killed: Docker does not tell its process", slog.String("container", x.container), slog.Any("err", err))
			return false
		case ended(found):
			return true
		case found.Pid != 0:
			err := x.signal(x.container, found.Pid, signal)
			if errors.Is(err, errEnded) {
				return true
			}
			if err != nil {
				x.log.Warn("exec not killed", slog.String("container", x.container), slog.Int("pid", found.Pid), slog.Any("err", err))
			}
			return false
		case !found.Running && !late && pause > 100*time.Millisecond:
			return false // it was never a process
		}
		if wait(ctx, pause) != nil {
			return false
		}
	}
}

// settled waits until Docker says that the command has ended, and returns what it
// tells of it, or the error of ctx.
func (x *session) settled(ctx context.Context) (container.ExecInspect, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		found, err := x.inspect(ctx)
		if err == nil && ended(found) || errdefs.IsNotFound(err) {
			return found, err
		}
		if err := wait(ctx, pause); err != nil {
			return found, err
		}
	}
}

// abandon ends a command whose client has gone, for Docker does not. One that has
// a terminal gets what a terminal sends that is closed, SIGHUP, and is killed if it
// has not ended in time.
func (x *session) abandon(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	if x.tty {
		x.end(ctx, unix.SIGHUP)
		limit, cancel := context.WithTimeout(ctx, hangupGrace)
		defer cancel()
		if _, err := x.settled(limit); err == nil || errdefs.IsNotFound(err) {
			return
		}
	}
	x.end(ctx, unix.SIGKILL)
}
