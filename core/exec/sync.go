package exec

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"berth/core/engine"
	"berth/core/panics"
)

// maxOutput bounds what Sync returns of stdout and stderr together, in bytes: the kubelet
// accepts gRPC messages of 16 MiB.
const maxOutput = 16<<20 - 64<<10

// ExecSync runs cmd in the container id (CRI ExecSync) and returns its output, truncated to just
// below 16 MiB in total, and its exit code. For a command that could not be run the exit
// code is 126 or 127 and the output is Docker's message, as with cri-dockerd: an error
// would make a probe unknown rather than failed.
//
// When it has run for timeout (0 means no limit), or when ctx ends, the command is killed with all of its
// descendants, and the error is engine.ErrCommandTimeout or that of ctx. If Docker does
// not answer within that time, the error is of kind Unavailable.
func (s *Service) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, exitCode int32, err error) {
	caller := ctx
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
	captured := s.memory.newCapture(ctx, maxOutput)
	defer captured.release()
	output, copied := newOutput(streams), make(chan error, 1)
	out, errs := captured.stream(), captured.stream()
	panics.Go(x.log, func() {
		defer close(copied)
		if err := panics.Try(x.log, func() error { return copyOutput(output, out, errs, false) }); err != nil {
			copied <- err
		}
	})
	code, err := x.waitExitCode(ctx, output, copied)
	if errors.Is(err, context.DeadlineExceeded) {
		code, err = x.exitCodeAfterTimeout(ctx, caller, timeout, output, copied)
	}
	switch {
	case err == nil, errors.Is(err, context.DeadlineExceeded):
	case errdefs.IsUnavailable(err):
		x.killInBackground(ctx) // Docker may still start it
	default:
		x.kill(ctx)
	}
	streams.Close() // ends the copy, even if the command could not be killed
	captured.cancel()
	for range copied { // until it is closed
	}
	if memoryErr := captured.err(); memoryErr != nil {
		err = memoryErr
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = context.Cause(ctx) // the deadline of the command, or that of the caller
	}
	if err == nil {
		stdout, stderr = out.bytes(), errs.bytes()
		err = x.checkExitCode(ctx, code, string(stdout))
	}
	if err != nil {
		return nil, nil, 0, fmt.Errorf("exec in container %s: %w", x.container, err)
	}
	return stdout, stderr, int32(code), nil
}
