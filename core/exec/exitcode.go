package exec

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	utilexec "k8s.io/utils/exec"

	"berth/core/engine"
	"berth/core/sleep"
)

// The exit code of an exec is decided in this file: waitExitCode waits for it while the
// output is copied, exitCodeAfterTimeout decides it once the timeout of an ExecSync has
// expired, checkExitCode finds the codes that stand for a failure of Docker, and
// exitCodeError turns a code into the error that cri-streaming expects.

const (
	// exitPollMin and exitPollMax are the intervals of polling for the exit code while the
	// output goes on. Most commands end their output, and are not polled.
	exitPollMin, exitPollMax = 200 * time.Millisecond, 2 * time.Second
	// exitCodeTimeout is how long Docker may take, once the timeout of a command has
	// expired, to tell whether it has ended.
	exitCodeTimeout = 3 * time.Second
)

// Exit codes from exitCodeNotRunnable to exitCodeNoExec are made up by Docker for a command
// that could not be run.
const (
	exitCodeNotRunnable = 126
	exitCodeNoExec      = 128
)

// exitCodeError returns the error of an exec that has ended with an exit code; nil for 0.
//
// It must reach package streaming unwrapped: cri-streaming v0.37 finds the exit code with a
// type assertion, without which kubectl exec exits with 1.
func exitCodeError(exitCode int) error {
	if exitCode == 0 {
		return nil
	}
	return utilexec.CodeExitError{Err: fmt.Errorf("exit status %d", exitCode), Code: exitCode}
}

// hasExitCode reports whether the command has ended, or could not be run. Before Docker
// starts a command it is not running either, but has neither a pid nor an exit code.
func hasExitCode(state container.ExecInspect) bool {
	return !state.Running && (state.Pid != 0 || state.ExitCode != 0)
}

// waitExitCode waits for the command to end and returns its exit code, which is 126 or 127
// for a command that could not be run. copied gets the result of copying output to its end.
//
// It waits for both the end of the output and that of the command: a child may keep the
// output open, with Docker 20.10 so may a container that has ended in a shared PID
// namespace, and a command may close its output and go on.
//
// The error is that of ctx, an outputError, or that Docker does not know the exit code.
func (x *session) waitExitCode(ctx context.Context, output *output, copied <-chan error) (exitCode int, err error) {
	interval := exitPollMin
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case err := <-copied:
			if err != nil {
				return 0, outputError{err}
			}
			copied, interval = nil, time.Millisecond
		case <-timer.C:
			interval = min(2*interval, exitPollMax)
		}
		state, err := x.inspect(ctx)
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errdefs.IsNotFound(err):
			err = fmt.Errorf("the container has ended, and the command with it: %w", errdefs.ErrFailedPrecondition)
			return 0, errors.Join(err, output.drain(ctx, copied))
		case err != nil && copied == nil:
			return 0, fmt.Errorf("exit code: %w", timeoutIsUnavailable(err))
		case err == nil && hasExitCode(state):
			return state.ExitCode, output.drain(ctx, copied)
		}
		timer.Reset(interval)
	}
}

// pollExitCode waits until the command has ended, and returns its state, or the error of ctx.
func (x *session) pollExitCode(ctx context.Context) (container.ExecInspect, error) {
	for interval := time.Millisecond; ; interval = min(2*interval, 100*time.Millisecond) {
		state, err := x.inspect(ctx)
		if err == nil && hasExitCode(state) || errdefs.IsNotFound(err) {
			return state, err
		}
		if err := sleep.WithContext(ctx, interval); err != nil {
			return state, err
		}
	}
}

// exitCodeAfterTimeout kills a command whose timeout has expired. If the command had ended
// before, it returns its exit code: a child may have kept the output open, which Docker
// 20.10 reports only after two seconds. The error is that of ctx only if the command was running. If that is not known, because
// Docker, or the containerd-shim, has hung meanwhile, it is of kind Unavailable. A command that Docker has begun late may run
// for its timeout, as long as caller waits.
func (x *session) exitCodeAfterTimeout(ctx, caller context.Context, timeout time.Duration, output *output, copied <-chan error) (exitCode int, err error) {
	inspectCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exitCodeTimeout)
	defer cancel()
	state, err := x.inspect(inspectCtx)
	if err != nil {
		return 0, fmt.Errorf("the timeout has expired, and whether the command has ended is not known: %w", timeoutIsUnavailable(err))
	}
	if !hasExitCode(state) && state.Pid == 0 {
		// A containerd-shim that hangs: Docker 20.10 says that the command is running.
		return 0, fmt.Errorf("the timeout has expired, and docker has not started the command: %w", errdefs.ErrUnavailable)
	}
	if !hasExitCode(state) {
		state = x.waitLateStart(caller, state, timeout)
	}
	if !hasExitCode(state) {
		switch x.kill(ctx) {
		case wasRunning:
			return 0, ctx.Err()
		case notReached:
			return 0, fmt.Errorf("the timeout has expired, and whether the command has ended is not known: %w", errdefs.ErrUnavailable)
		case hadEnded:
			pollCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exitCodeTimeout)
			defer cancel()
			if state, err = x.pollExitCode(pollCtx); err != nil {
				return 0, fmt.Errorf("the command has ended, and docker does not report its exit code: %w", errdefs.ErrUnavailable)
			}
		}
	}
	return state.ExitCode, output.drain(ctx, copied)
}

// waitLateStart waits until a command that runs has done so for its timeout, or has ended, and returns its state then. Docker
// begins it late if it is slow, or is stopped for a while.
func (x *session) waitLateStart(caller context.Context, state container.ExecInspect, timeout time.Duration) container.ExecInspect {
	age, err := processAge(state.Pid)
	if err != nil || age >= timeout {
		return state
	}
	ctx, cancel := context.WithTimeout(caller, timeout-age)
	defer cancel()
	if ended, err := x.pollExitCode(ctx); err == nil {
		return ended
	}
	return state
}

// runtimeEnded matches the message of an exec whose OCI runtime has ended without giving a reason, for example because it was
// killed (runtimeError in containerd's process package and Runc.Exec of go-runc, with docker 20.10 to 29). A runtime
// that cannot run the command gives the reason in its place.
var runtimeEnded = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^OCI runtime exec failed: (?:unable to retrieve OCI runtime error \(.*\): )?[^ :]+ did not terminate successfully: (?:exit status \d+|signal: [a-z ]+)(?:: .*)?$`)
})

// checkExitCode returns an error of kind Unavailable if the exit code stands for a containerd that Docker has lost, or for an
// OCI runtime that was ended, which the last line of its output says: both say nothing about the command. The output of a
// command that has been run is not taken for a message of Docker.
func (x *session) checkExitCode(ctx context.Context, exitCode int, output string) error {
	message := lastLine(output)
	if exitCode < exitCodeNotRunnable || exitCode > exitCodeNoExec || !engine.ContainerdLost(message) && !runtimeEnded().MatchString(message) {
		return nil
	}
	if state, err := x.inspect(ctx); err == nil && state.Pid != 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", message, errdefs.ErrUnavailable)
}

// lastLine returns the last line of an output, without white space around it. Docker adds its message to what the
// command may have printed: with 20.10 containerd can die after it has started the command, and before Docker knows.
func lastLine(output string) string {
	output = strings.TrimSpace(output)
	return strings.TrimSpace(output[strings.LastIndexByte(output, '\n')+1:])
}
