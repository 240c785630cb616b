package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"berth/core/panics"
	"berth/core/sleep"
	"berth/core/tracing"
	"berth/streaming"
)

const (
	// attachBufferSize bounds the output of a container that is kept for an attach client
	// that does not keep up, in bytes a stream.
	attachBufferSize = 4 << 20
	// attachStallTimeout is how long such a client may take to read half of that. The
	// container may block meanwhile, so it is short.
	attachStallTimeout = 3 * time.Second
	// forwardIdleTimeout is how long a port may send nothing after the client has closed its
	// sending half.
	forwardIdleTimeout = 5 * time.Minute
)

// Exec runs cmd in the container id with the given streams, which may be nil, until it ends.
// A non-zero exit code is returned as a bare utilexec.ExitError; for a command that could
// not be run it is 126 or 127, and the output is Docker's message.
//
// When ctx ends, or a stream fails, the client has gone, and the command is terminated with
// all of its descendants. Writes to out and errs must fail once ctx has ended.
func (s *Service) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return panics.Try(s.log, func() error { return s.exec(ctx, id, cmd, in, out, errs, tty, resize) })
}

func (s *Service) exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	release, err := s.memory.acquireSession(ctx)
	if err != nil {
		return err
	}
	defer release()
	x, err := s.create(ctx, id, container.ExecOptions{
		Tty: tty, AttachStdin: in != nil, AttachStdout: out != nil, AttachStderr: errs != nil && !tty, Cmd: cmd,
	})
	if err != nil {
		return err
	}
	exitCode, err := x.runAttached(ctx, in, out, errs, resize)
	if err == nil {
		return exitCodeError(exitCode)
	}
	var outputErr outputError
	if errors.As(err, &outputErr) || ctx.Err() != nil {
		x.terminate(ctx)
	}
	return fmt.Errorf("exec in container %s: %w", x.container, err)
}

// runAttached runs the command with the streams of a client and returns its exit code. A
// client that reads slowly blocks only this command.
func (x *session) runAttached(ctx context.Context, in io.Reader, out, errs io.Writer, resize <-chan remotecommand.TerminalSize) (int, error) {
	streams, err := x.start(ctx)
	if err != nil {
		return 0, err
	}
	output, copied := newOutput(streams), make(chan error, 1)
	goroutines := panics.NewGroup(x.log)
	defer func() { _ = goroutines.Wait() }() // panics are in the log
	defer streams.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, streams.Close)()
	goroutines.Go(func() error {
		passResizes(ctx, resize, func(ctx context.Context, size container.ResizeOptions) error {
			return x.docker.ContainerExecResize(ctx, x.id, size)
		})
		return nil
	})
	copyStdin(x.log, streams, in)
	goroutines.Go(func() error {
		copied <- panics.Try(x.log, func() error { return copyOutput(output, out, errs, x.tty) })
		return nil
	})
	return x.waitExitCode(ctx, output, copied)
}

// Attach connects the given streams, which may be nil, to those of the container id until
// that ends or the client has gone. A client that does not keep up is disconnected with
// streaming.ErrSlow, because Docker blocks the container while it waits for a client.
func (s *Service) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	return panics.Try(s.log, func() error { return s.attach(ctx, id, in, out, errs, resize) })
}

func (s *Service) attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	c, err := s.runningContainer(ctx, id)
	if err != nil {
		return timeoutIsUnavailable(err)
	}
	release, err := s.memory.acquireSession(ctx)
	if err != nil {
		return err
	}
	defer release()
	requestCtx, span := tracing.StartHijacked(ctx, "POST /containers/{id}/attach", tracing.ContainerID(c.ID()))
	streams, err := docker.ContainerAttach(requestCtx, c.ID(), container.AttachOptions{
		Stream: true, Stdin: in != nil, Stdout: out != nil, Stderr: errs != nil, DetachKeys: detachKeys,
	})
	span.End(err)
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", c.ID(), hijackError(ctx, err))
	}
	defer streams.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, streams.Close)()
	panics.Go(s.log, func() {
		passResizes(ctx, resize, func(ctx context.Context, size container.ResizeOptions) error {
			return docker.ContainerResize(ctx, c.ID(), size)
		})
	})
	var buffers []*streaming.Buffer
	buffered := func(w io.WriteCloser) io.Writer {
		if w == nil {
			return nil
		}
		b := streaming.NewBuffer(w, s.memory.Budget, attachBufferSize, attachStallTimeout)
		buffers = append(buffers, b)
		return b
	}
	copyStdin(s.log, streams, in)
	err = copyOutput(streams.Reader, buffered(out), buffered(errs), c.TTY)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	streams.Close()
	for _, b := range buffers {
		if closeErr := b.Close(); closeErr != nil && !errors.Is(err, closeErr) {
			err = errors.Join(err, closeErr)
		}
	}
	return err
}

// copyStdin copies a client's stdin, which may be nil, in the background. That ends with the
// connection of the client, which the server closes soon after the session.
func copyStdin(log *slog.Logger, streams types.HijackedResponse, in io.Reader) {
	if in == nil {
		return
	}
	panics.Go(log, func() {
		_, _ = io.Copy(streams.Conn, in)
		_ = streams.CloseWrite()
	})
}

// passResizes passes on the sizes of a terminal until ctx ends. It retries for some time,
// because the Engine refuses a size before the process exists.
func passResizes(ctx context.Context, sizes <-chan remotecommand.TerminalSize, set func(context.Context, container.ResizeOptions) error) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			for backoff := 5 * time.Millisecond; backoff < time.Second; backoff *= 2 {
				err := set(ctx, container.ResizeOptions{Height: uint(size.Height), Width: uint(size.Width)})
				if err == nil || sleep.WithContext(ctx, backoff) != nil {
					break
				}
			}
		}
	}
}

// PortForward connects stream to a TCP port of the pod in the sandbox id, until either side
// closes. It returns an error only if no connection was made.
func (s *Service) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	return panics.Try(s.log, func() error { return s.portForward(ctx, id, port, stream) })
}

func (s *Service) portForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	if port <= 0 || port > 65535 {
		return fmt.Errorf("port %d: must be between 1 and 65535: %w", port, errdefs.ErrInvalidArgument)
	}
	pod, err := s.cache.Sandbox(ctx, id)
	if err != nil {
		return err
	}
	if pod.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("sandbox %s is not ready: %w", pod.ID(), errdefs.ErrFailedPrecondition)
	}
	release, err := s.memory.acquireSession(ctx)
	if err != nil {
		return err
	}
	defer release()
	conn, err := s.dial(ctx, pod, int(port))
	if err != nil {
		return fmt.Errorf("port %d of sandbox %s: %w", port, pod.ID(), err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	// An error of an established connection is not returned: kubectl ends the whole
	// port-forward at the first error (https://github.com/kubernetes/kubernetes/issues/111825).
	if err := forward(s.log, conn, stream); err != nil {
		s.log.Debug("forwarded connection failed", slog.String("sandbox", pod.ID()), slog.Int("port", int(port)), slog.Any("err", err))
	}
	return nil
}

// forward copies between a port and a client's stream until the port closes. When the client
// has closed its sending half, so does forward, and the port may go on sending. A client
// that has gone, or a program behind kubectl that has, looks the same, so a port that then
// sends nothing for forwardIdleTimeout is disconnected.
func forward(log *slog.Logger, conn net.Conn, stream io.ReadWriter) error {
	port := &idleTimeoutConn{Conn: conn}
	panics.Go(log, func() {
		_, _ = io.Copy(conn, stream)
		if half, ok := conn.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
		port.enabled.Store(true)
		_ = port.extend() // for a Read in progress; an error means that it has been closed
	})
	_, err := io.Copy(stream, port)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// An idleTimeoutConn is a connection whose reads time out after forwardIdleTimeout, once
// that is enabled.
type idleTimeoutConn struct {
	net.Conn
	enabled atomic.Bool
}

// Read implements net.Conn.
func (c *idleTimeoutConn) Read(p []byte) (int, error) {
	if c.enabled.Load() {
		if err := c.extend(); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(p)
}

func (c *idleTimeoutConn) extend() error {
	return c.SetReadDeadline(time.Now().Add(forwardIdleTimeout))
}
