package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"berth/core/engine"
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
// wanted, until it ends. Its exit code comes as a bare ExitError.
//
// When ctx ends, or a stream fails, the client has gone, and the command is ended
// with all that it has begun. out and errs must fail once ctx has ended.
func (s *Service) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	docker, err := s.docker.Use()
	if err != nil {
		return err
	}
	c, err := s.running(ctx, id)
	if err != nil {
		return err
	}
	made, err := docker.ContainerExecCreate(ctx, c.ID(), container.ExecOptions{
		Tty: tty, AttachStdin: in != nil, AttachStdout: out != nil, AttachStderr: errs != nil && !tty, DetachKeys: detachKeys, Cmd: cmd,
	})
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	// From here on the Engine runs the command whether or not anybody listens.
	gone, err := s.attend(ctx, docker, made.ID, in, out, errs, tty, resize)
	if gone || ctx.Err() != nil {
		s.abandon(context.WithoutCancel(ctx), docker, c.ID(), made.ID, tty)
	}
	return err
}

// attend starts an exec session and returns what it returns. gone tells that a
// stream has failed.
func (s *Service) attend(ctx context.Context, docker *engine.Conn, session string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) (gone bool, err error) {
	streams, err := docker.ContainerExecAttach(ctx, session, container.ExecAttachOptions{Tty: tty})
	if err != nil {
		return false, fmt.Errorf("exec: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, streams.Close)()
	var sizes sync.WaitGroup
	defer func() { cancel(); sizes.Wait() }()
	sizes.Go(func() {
		resizing(ctx, resize, func(ctx context.Context, size container.ResizeOptions) error {
			return docker.ContainerExecResize(ctx, session, size)
		})
	})
	// A client that reads slowly holds up this command and no other.
	if err := join(streams, in, out, errs, tty); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return true, fmt.Errorf("exec: %w", err)
	}
	code, err := exitCode(ctx, docker, session, "see its output")
	if err != nil {
		return false, err
	}
	return false, exit(code)
}

// abandon ends a command whose client has gone, for the Engine does not. One that
// has a terminal is told so as by a terminal that is closed, with SIGHUP, and
// killed if it does not end in time.
func (s *Service) abandon(ctx context.Context, docker *engine.Conn, id, session string, tty bool) {
	if tty {
		s.kill(ctx, docker, id, session, unix.SIGHUP)
		if _, err := exitCode(ctx, docker, session, ""); err == nil {
			return
		}
	}
	s.kill(ctx, docker, id, session, unix.SIGKILL)
}

// Attach joins streams, nil for those not wanted, to those of the container id
// until it ends or the client leaves. A client that does not keep up is cut
// off: an Engine holds up the container for it.
func (s *Service) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	docker, err := s.docker.Use()
	if err != nil {
		return err
	}
	c, err := s.running(ctx, id)
	if err != nil {
		return err
	}
	streams, err := docker.ContainerAttach(ctx, c.ID(), container.AttachOptions{
		Stream: true, Stdin: in != nil, Stdout: out != nil, Stderr: errs != nil, DetachKeys: detachKeys,
	})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, streams.Close)()
	go resizing(ctx, resize, func(ctx context.Context, size container.ResizeOptions) error {
		return docker.ContainerResize(ctx, c.ID(), size)
	})
	var buffers []*streaming.Buffer
	buffered := func(w io.WriteCloser) io.Writer {
		if w == nil {
			return nil
		}
		b := streaming.NewBuffer(w, attachBuffer, attachPatience)
		buffers = append(buffers, b)
		return b
	}
	err = join(streams, in, buffered(out), buffered(errs), c.TTY)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	for _, b := range buffers {
		if closeErr := b.Close(); closeErr != nil && !errors.Is(err, closeErr) {
			err = errors.Join(err, closeErr)
		}
	}
	return err
}

// join copies between an Engine's streams and a client's until the Engine's
// output ends. It closes the Engine's streams.
func join(streams types.HijackedResponse, in io.Reader, out, errs io.Writer, tty bool) error {
	defer streams.Close()
	if in != nil {
		// It ends with the client's connection, which outlives this call by as
		// much as the server takes to close it.
		go func() {
			_, _ = io.Copy(streams.Conn, in)
			_ = streams.CloseWrite()
		}()
	}
	if tty {
		_, err := io.Copy(orDiscard(out), streams.Reader)
		return err
	}
	_, err := stdcopy.StdCopy(orDiscard(out), orDiscard(errs), streams.Reader)
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
// either end is done.
func (s *Service) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
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
	conn, err := s.dial(ctx, pod, int(port))
	if err != nil {
		return fmt.Errorf("port %d of sandbox %s: %w", port, pod.ID(), err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := forward(conn, stream); err != nil && ctx.Err() == nil {
		return fmt.Errorf("port %d of sandbox %s: %w", port, pod.ID(), err)
	}
	return nil
}

// forward copies between a port and a client's stream until the port is done. What the
// client has finished saying, the pod hears as an end; it may go on answering.
// A client that has gone does not look different, nor does its local one behind
// a kubectl, so a port that is silent after that is left.
func forward(conn net.Conn, stream io.ReadWriter) error {
	a := &answer{Conn: conn}
	go func() {
		_, _ = io.Copy(conn, stream)
		if half, ok := conn.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
		a.last.Store(true)
		_ = a.renew() // else it has been closed
	}()
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
