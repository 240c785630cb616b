package exec

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"golang.org/x/sys/unix"

	"berth/core/engine"
)

// maxOutput is how much of both streams together Sync returns, in bytes: what
// fits into one answer, of which the kubelet takes 16 MiB.
const maxOutput = 16<<20 - 64<<10

// killPatience is how long a command that was killed may take to be gone.
const killPatience = 10 * time.Second

// Sync runs cmd in the container id and returns what it wrote, cut at just
// below 16 MiB in all, and its exit code. A command that could not be run is an error.
//
// After timeout, 0 for none, or when the caller hangs up, the command is
// killed with all it has begun, and the error is that of a context.
func (s *Service) Sync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	if len(cmd) == 0 {
		return nil, nil, 0, fmt.Errorf("no command: %w", errdefs.ErrInvalidArgument)
	}
	docker, err := s.docker.Use()
	if err != nil {
		return nil, nil, 0, err
	}
	c, err := s.running(ctx, id)
	if err != nil {
		return nil, nil, 0, err
	}
	made, err := docker.ContainerExecCreate(ctx, c.ID(), container.ExecOptions{
		AttachStdout: true, AttachStderr: true, DetachKeys: detachKeys, Cmd: cmd,
	})
	if err != nil {
		return nil, nil, 0, fmt.Errorf("exec: %w", err)
	}
	// From here on the Engine runs the command whether or not anybody listens.
	work := context.WithoutCancel(ctx)
	streams, err := docker.ContainerExecAttach(work, made.ID, container.ExecAttachOptions{})
	if err != nil {
		return nil, nil, 0, fmt.Errorf("exec: %w", err)
	}
	defer streams.Close()
	room := maxOutput
	out, errs := &capped{room: &room}, &capped{room: &room}
	copied := make(chan error, 1)
	go func() {
		_, err := stdcopy.StdCopy(out, errs, streams.Reader)
		copied <- err
	}()
	select {
	case err = <-copied:
	case <-ctx.Done():
		s.kill(work, docker, c.ID(), made.ID, unix.SIGKILL)
		streams.Close() // and with it the copy, should the kill have had no effect
		<-copied
		return nil, nil, 0, fmt.Errorf("exec: %w", ctx.Err())
	}
	if err != nil {
		return nil, nil, 0, fmt.Errorf("exec: read its output: %w", err)
	}
	exit, err := exitCode(work, docker, made.ID, strings.TrimSpace(out.String()))
	if err != nil {
		return nil, nil, 0, err
	}
	return out.Bytes(), errs.Bytes(), int32(exit), nil
}

// kill ends an exec session with all that it has begun. Docker has no word for
// that, so it is done by process.
func (s *Service) kill(ctx context.Context, docker *engine.Conn, id, session string, signal unix.Signal) {
	ctx, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		found, err := docker.ContainerExecInspect(ctx, session)
		if err != nil {
			s.log.Warn("an exec that is to end could not be found", slog.String("container", id), slog.Any("err", err))
			return
		}
		if found.Pid != 0 {
			if err := s.signal(id, found.Pid, signal); err != nil {
				s.log.Warn("an exec that is to end could not be killed",
					slog.String("container", id), slog.Int("pid", found.Pid), slog.Any("err", err))
			}
			return
		}
		if !found.Running && pause > 100*time.Millisecond {
			return // over before it was a process
		}
		if wait(ctx, pause) != nil {
			return
		}
	}
}

// capped keeps what is written to it while there is room, which it may share,
// and takes the rest without keeping it, so that the command is never held up.
type capped struct {
	bytes.Buffer
	room *int
}

func (c *capped) Write(p []byte) (int, error) {
	n := min(*c.room, len(p))
	*c.room -= n
	c.Buffer.Write(p[:n])
	return len(p), nil
}
