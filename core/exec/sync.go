package exec

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
	"golang.org/x/sys/unix"

	"berth/core/engine"
	"berth/core/panics"
)

// maxOutput is how much of both streams together Sync returns, in bytes: what
// fits into one answer, of which the kubelet takes 16 MiB.
const maxOutput = 16<<20 - 64<<10

// Sync runs cmd in the container id and returns what it wrote, cut at just
// below 16 MiB in all, and its exit code. A command that could not be run has the
// exit code 126 or 127, and Docker's reason in its output, as with cri-dockerd: a
// probe takes an error for no answer at all.
//
// After timeout, 0 for none, or when the caller hangs up, the command is
// killed with all it has begun, and the error is engine.ErrCommandTimeout or that of
// the caller's context. If Docker does not answer meanwhile, the error is of kind
// Unavailable.
func (s *Service) Sync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, engine.ErrCommandTimeout)
		defer cancel()
	}
	if len(cmd) == 0 {
		return nil, nil, 0, fmt.Errorf("no command: %w", errdefs.ErrInvalidArgument)
	}
	x, err := s.create(ctx, id, container.ExecOptions{AttachStdout: true, AttachStderr: true, Cmd: cmd})
	if err != nil {
		return nil, nil, 0, err
	}
	streams, err := x.start(ctx)
	if err != nil {
		return nil, nil, 0, err
	}
	defer streams.Close()
	kept := s.memory.keep(ctx, maxOutput)
	defer kept.release()
	output, copied := newOutput(streams), make(chan error, 1)
	out, errs := kept.stream(), kept.stream()
	panics.Go(x.log, func() {
		defer close(copied)
		err := panics.Try(x.log, func() error {
			_, err := stdcopy.StdCopy(out, errs, output)
			return err
		})
		if err != nil {
			copied <- err
		}
	})
	exit, err := x.wait(ctx, output, copied)
	if errors.Is(err, context.DeadlineExceeded) {
		exit, err = x.last(ctx, output, copied)
	}
	switch {
	case err == nil, errors.Is(err, context.DeadlineExceeded):
	case errdefs.IsUnavailable(err):
		x.findLater(ctx, unix.SIGKILL, true) // Docker may run it yet
	default:
		x.end(ctx, unix.SIGKILL)
	}
	streams.Close() // and with it the copy, should the kill have had no effect
	kept.stop()
	for range copied { // until it is closed
	}
	if full := kept.err(); full != nil {
		err = full
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = context.Cause(ctx) // whose time is up: the command's, or the caller's
	}
	if err != nil {
		return nil, nil, 0, fmt.Errorf("exec in container %s: %w", x.container, err)
	}
	stdout, stderr = out.bytes(), errs.bytes()
	if err := x.couldNotRun(ctx, exit, strings.TrimSpace(string(stdout))); err != nil {
		return nil, nil, 0, fmt.Errorf("exec in container %s: %w", x.container, err)
	}
	return stdout, stderr, int32(exit), nil
}

// last ends a command whose time is up. It may have ended while a child keeps its
// output open, of which Docker 20.10 tells only after two seconds, and it may be
// Docker, or what starts processes for it, that has hung all the time.
func (x *session) last(ctx context.Context, output *output, copied <-chan error) (int, error) {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
	defer cancel()
	found, err := x.inspect(limit)
	if err != nil {
		return 0, fmt.Errorf("its time is up, and whether it has ended is not known: %w", unanswered(err))
	}
	if !ended(found) && found.Pid == 0 {
		// A containerd-shim that hangs: Docker 20.10 says of the command that it runs.
		return 0, fmt.Errorf("its time is up, and docker has not begun it: %w", errdefs.ErrUnavailable)
	}
	if !ended(found) {
		if !x.end(ctx, unix.SIGKILL) {
			return 0, ctx.Err()
		}
		if found, err = x.settled(limit); err != nil {
			return 0, ctx.Err()
		}
	}
	return found.ExitCode, output.drain(ctx, copied)
}
