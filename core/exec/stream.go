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
	"github.com/docker/docker/pkg/stdcopy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"berth/core/panics"
	"berth/streaming"
)

const (
	// attachBuffer is how much of a container's output is kept for a client
	// that does not keep up, in bytes a stream.
	attachBuffer = 4 << 20
	// attachPatience is how long such a client has to take half of that before
	// it is cut off. The container may be held up meanwhile, so it is short.
	attachPatience = 3 * time.Second
	// forwardPatience is how long a port may be silent to one who has said all.
	forwardPatience = 5 * time.Minute
)

// Exec runs cmd in the container id with the given streams, nil for those not
// wanted, until it ends. Its exit code comes as a bare ExitError; that of a command
// that could not be run is 126 or 127, and Docker's reason is in its output.
//
// When ctx ends, or a stream fails, the client has gone, and the command is ended
// with all that it has begun. out and errs must fail once ctx has ended.
func (s *Service) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return panics.Try(s.log, func() error { return s.exec(ctx, id, cmd, in, out, errs, tty, resize) })
}

func (s *Service) exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	release, err := s.memory.admit(ctx)
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
	code, err := x.attend(ctx, in, out, errs, resize)
	if err == nil {
		return exit(code)
	}
	var failed errOutput
	if errors.As(err, &failed) || ctx.Err() != nil {
		x.abandon(ctx)
	}
	return fmt.Errorf("exec in container %s: %w", x.container, err)
}

// attend runs the command and returns its exit code. A client that reads slowly
// holds up this command and no other.
func (x *session) attend(ctx context.Context, in io.Reader, out, errs io.Writer, resize <-chan remotecommand.TerminalSize) (int, error) {
	streams, err := x.start(ctx)
	if err != nil {
		return 0, err
	}
	output, copied := newOutput(streams), make(chan error, 1)
	running := panics.NewGroup(x.log)
	defer func() { _ = running.Wait() }() // what has failed is in the log
	defer streams.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, streams.Close)()
	running.Go(func() error {
		resizing(ctx, resize, func(ctx context.Context, size container.ResizeOptions) error {
			return x.docker.ContainerExecResize(ctx, x.id, size)
		})
		return nil
	})
	feed(x.log, streams, in)
	running.Go(func() error {
		copied <- panics.Try(x.log, func() error { return collect(output, out, errs, x.tty) })
		return nil
	})
	return x.wait(ctx, output, copied)
}

// Attach joins streams, nil for those not wanted, to those of the container id
// until it ends or the client leaves. A client that does not keep up is given up:
// Docker holds up the container for it.
func (s *Service) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	return panics.Try(s.log, func() error { return s.attach(ctx, id, in, out, errs, resize) })
}

func (s *Service) attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	c, err := s.running(ctx, id)
	if err != nil {
		return unanswered(err)
	}
	release, err := s.memory.admit(ctx)
	if err != nil {
		return err
	}
	defer release()
	streams, err := docker.ContainerAttach(ctx, c.ID(), container.AttachOptions{
		Stream: true, Stdin: in != nil, Stdout: out != nil, Stderr: errs != nil, DetachKeys: detachKeys,
	})
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", c.ID(), hijackError(ctx, err))
	}
	defer streams.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, streams.Close)()
	panics.Go(s.log, func() {
		resizing(ctx, resize, func(ctx context.Context, size container.ResizeOptions) error {
			return docker.ContainerResize(ctx, c.ID(), size)
		})
	})
	var buffers []*streaming.Buffer
	buffered := func(w io.WriteCloser) io.Writer {
		if w == nil {
			return nil
		}
		b := streaming.NewBuffer(w, s.memory.Budget, attachBuffer, attachPatience)
		buffers = append(buffers, b)
		return b
	}
	feed(s.log, streams, in)
	err = collect(streams.Reader, buffered(out), buffered(errs), c.TTY)
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

// feed copies from a client's stdin, which may be nil. It ends with the client's
// connection, which outlives a session by as much as the server takes to close it.
func feed(log *slog.Logger, streams types.HijackedResponse, in io.Reader) {
	if in == nil {
		return
	}
	panics.Go(log, func() {
		_, _ = io.Copy(streams.Conn, in)
		_ = streams.CloseWrite()
	})
}

// collect copies Docker's output to a client's streams until it ends.
func collect(from io.Reader, out, errs io.Writer, tty bool) error {
	if tty {
		_, err := io.Copy(orDiscard(out), from)
		return err
	}
	_, err := stdcopy.StdCopy(orDiscard(out), orDiscard(errs), from)
	return err
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// resizing passes on what a terminal's size becomes. The Engine refuses until
// there is a process.
func resizing(ctx context.Context, sizes <-chan remotecommand.TerminalSize, set func(context.Context, container.ResizeOptions) error) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			for pause := 5 * time.Millisecond; pause < time.Second; pause *= 2 {
				err := set(ctx, container.ResizeOptions{Height: uint(size.Height), Width: uint(size.Width)})
				if err == nil || wait(ctx, pause) != nil {
					break
				}
			}
		}
	}
}

// PortForward connects stream to a port of the pod in the sandbox id, until
// either end is done. An error is that there was no connection.
func (s *Service) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	return panics.Try(s.log, func() error { return s.portForward(ctx, id, port, stream) })
}

func (s *Service) portForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	if port <= 0 || port > 65535 {
		return fmt.Errorf("port %d: %w", port, errdefs.ErrInvalidArgument)
	}
	pod, err := s.view.Sandbox(ctx, id)
	if err != nil {
		return err
	}
	if pod.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("sandbox %s is not ready: %w", pod.ID(), errdefs.ErrFailedPrecondition)
	}
	release, err := s.memory.admit(ctx)
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
	// However a connection ends that was there, it is that one's end: kubectl gives
	// up all it forwards at the first word of an error (kubernetes#111825).
	if err := forward(s.log, conn, stream); err != nil {
		s.log.Debug("forwarded connection broke", slog.String("sandbox", pod.ID()), slog.Int("port", int(port)), slog.Any("err", err))
	}
	return nil
}

// forward copies between a port and a client's stream until the port is done. What the
// client has finished saying, the pod hears as an end; it may go on answering.
// A client that has gone does not look different, nor does its local one behind
// a kubectl, so a port that is silent after that is left.
func forward(log *slog.Logger, conn net.Conn, stream io.ReadWriter) error {
	a := &answer{Conn: conn}
	panics.Go(log, func() {
		_, _ = io.Copy(conn, stream)
		if half, ok := conn.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
		a.last.Store(true)
		_ = a.renew() // else it has been closed
	})
	_, err := io.Copy(stream, a)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// An answer is what comes from a port. Once it is the last it must not pause for
// longer than forwardPatience.
type answer struct {
	net.Conn
	last atomic.Bool
}

// Read is of net.Conn.
func (a *answer) Read(p []byte) (int, error) {
	if a.last.Load() {
		if err := a.renew(); err != nil {
			return 0, err
		}
	}
	return a.Conn.Read(p)
}

func (a *answer) renew() error { return a.SetReadDeadline(time.Now().Add(forwardPatience)) }
