package enginetest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
)

// An execSession is an exec session. Engine.mu guards it, except id, container and options.
type execSession struct {
	id        string
	container *fakeContainer
	options   container.ExecOptions

	process  *Process // while it runs
	started  bool
	starting bool // reported as running, but not started: see HangShims
	pid      int
	exitCode *int // nil until it has exited
	ttySizes [][2]uint
}

// execCreate is POST /containers/{id}/exec.
func (e *Engine) execCreate(c *call) error {
	var request container.ExecOptions
	if err := c.decode(&request); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.findContainerLocked(c.name)
	if err == nil && len(request.Cmd) == 0 {
		err = invalidParameter("No exec command specified")
	}
	if err == nil {
		err = checkExecutableState(b, c.name)
	}
	if err != nil {
		return err
	}
	s := &execSession{id: e.newIDLocked(), container: b, options: request}
	e.execs[s.id] = s
	e.emitExecLocked(s, events.ActionExecCreate+": ", nil)
	return c.respond(http.StatusCreated, container.ExecCreateResponse{ID: s.id})
}

// checkExecutableState returns nil if an exec is possible in b. Engine.mu is held.
func checkExecutableState(b *fakeContainer, name string) error {
	switch {
	case !b.state.Running:
		return errorf(http.StatusConflict, "Container %s is not running", b.id)
	case b.state.Paused:
		return errorf(http.StatusConflict, "Container %s is paused, unpause the container before exec", name)
	default:
		return nil
	}
}

// emitExecLocked publishes an event of an exec session.
func (e *Engine) emitExecLocked(s *execSession, action events.Action, more map[string]string) {
	if strings.HasSuffix(string(action), ": ") {
		action += events.Action(s.options.Cmd[0] + " " + strings.Join(s.options.Cmd[1:], " "))
	}
	attributes := map[string]string{"execID": s.id}
	maps.Copy(attributes, more)
	e.emitLocked(s.container, action, attributes)
}

// execStart is POST /exec/{id}/start.
func (e *Engine) execStart(c *call) error {
	var request container.ExecStartOptions
	if err := c.decode(&request); err != nil {
		return err
	}
	e.mu.Lock()
	s, ok := e.execs[c.name]
	var err error
	if ok {
		err = checkExecutableState(s.container, s.container.name)
	} else {
		err = errorf(http.StatusNotFound, "No such exec instance: %s", c.name)
	}
	multiplexed := e.supportsLocked("1.42")
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if request.Detach {
		if _, _, err := e.startExec(s, io.Discard, io.Discard, func() {}); err != nil {
			return err
		}
		return c.respond(http.StatusOK, nil)
	}
	conn, err := c.hijack(streamType(request.Tty, multiplexed))
	if err != nil {
		return errHangUp
	}
	defer conn.Close()
	e.mu.Lock()
	hang := e.shimHangs
	s.starting = hang != nil
	e.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-c.server.ctx.Done():
			return nil
		}
	}
	out, errs := stdStreams(conn, s.options.Tty)
	p, over, err := e.startExec(s, out, errs, func() { _ = conn.Close() })
	if err != nil {
		// The response has begun: the error is sent as output.
		_, _ = fmt.Fprintf(out, "%v\r\n", err)
		return nil
	}
	left := make(chan struct{}) // closed when the client has sent all input
	go func() {
		defer close(left)
		if !s.options.AttachStdin {
			_, _ = io.Copy(io.Discard, conn)
			return
		}
		_, _ = io.Copy(p.stdin, conn)
		p.stdin.closeWrite()
	}()
	select {
	case <-over:
	case <-c.server.ctx.Done():
		return nil
	}
	if p.keepsOutput() {
		select {
		case <-left:
		case <-c.server.ctx.Done():
		}
	}
	return nil
}

// startExec starts the process of s. over is closed when it has exited.
func (e *Engine) startExec(s *execSession, out, errs io.Writer, hangUp func()) (_ *Process, over <-chan struct{}, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.started {
		return nil, nil, errorf(http.StatusConflict, "Error: Exec command %s has already run", s.id)
	}
	s.started, s.starting = true, false
	e.emitExecLocked(s, events.ActionExecStart+": ", nil)
	if e.containerdLost {
		code := exitNotExecutable
		s.exitCode = &code
		return nil, nil, errorf(http.StatusInternalServerError, "%s", containerdError)
	}
	program, failure := e.programLocked(s.options.Cmd, false)
	if failure != nil {
		code := exitNotExecutable
		if e.supportsLocked("1.44") {
			code = failure.Code
		}
		s.exitCode = &code
		return nil, nil, invalidParameter("OCI runtime exec failed: exec failed: unable to start container process: %s: unknown", failure.Text)
	}
	p := e.newProcess(s.container, newPipe(), s.options.Cmd, s.options.Env, s.options.Tty)
	p.ID = s.id
	p.hangUp = hangUp
	if s.options.AttachStdin {
		p.Stdin = p.stdin
	}
	var closed atomic.Bool // output after the exit is dropped
	until := func(w io.Writer) io.Writer {
		return writerFunc(func(p []byte) (int, error) {
			if closed.Load() {
				return 0, io.ErrClosedPipe
			}
			return w.Write(p)
		})
	}
	if s.options.AttachStdout {
		p.Stdout = until(out)
	}
	if s.options.AttachStderr {
		p.Stderr = until(errs)
	}
	if s.options.Tty {
		p.Stdout = until(terminalWriter(out))
		p.Stderr = p.Stdout
	}
	ended := make(chan struct{})
	p.onExit = func(code int) {
		closed.Store(true)
		e.mu.Lock()
		s.process, s.exitCode = nil, &code
		e.emitExecLocked(s, events.ActionExecDie, map[string]string{"exitCode": strconv.Itoa(code)})
		e.mu.Unlock()
		close(ended)
	}
	s.process, s.pid = p, e.PID(s.id)
	e.processes.Go(func() { p.exit(program(p)) })
	return p, ended, nil
}

// terminalWriter returns a Writer that converts \n to \r\n, as a terminal does.
func terminalWriter(w io.Writer) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		_, err := io.WriteString(w, strings.ReplaceAll(string(p), "\n", "\r\n"))
		return len(p), err
	})
}

// execInspect is GET /exec/{id}/json.
func (e *Engine) execInspect(c *call) error {
	e.mu.Lock()
	s, ok := e.execs[c.name]
	if !ok {
		e.mu.Unlock()
		return errorf(http.StatusNotFound, "No such exec instance: %s", c.name)
	}
	text, err := json.Marshal(map[string]any{
		"ID": s.id, "ContainerID": s.container.id, "Running": s.process != nil || s.starting, "ExitCode": s.exitCode, "Pid": s.pid,
		"OpenStdin": s.options.AttachStdin, "OpenStdout": s.options.AttachStdout, "OpenStderr": s.options.AttachStderr,
		"CanRemove": false, "DetachKeys": s.options.DetachKeys,
		"ProcessConfig": map[string]any{
			"tty": s.options.Tty, "entrypoint": s.options.Cmd[0], "arguments": s.options.Cmd[1:], "privileged": s.options.Privileged,
		},
	})
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.respond(http.StatusOK, json.RawMessage(text))
}

// execResize is POST /exec/{id}/resize.
func (e *Engine) execResize(c *call) error {
	size, err := c.size()
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s, ok := e.execs[c.name]
	switch {
	case !ok:
		return errorf(http.StatusNotFound, "No such exec instance: %s", c.name)
	case !s.started:
		// A real Engine waits 10 s before.
		return errorf(http.StatusInternalServerError, "timeout waiting for exec session ready")
	case s.process == nil:
		return errorf(http.StatusNotFound, "no such exec")
	}
	s.ttySizes = append(s.ttySizes, size)
	return c.respond(http.StatusOK, nil)
}

// An ExecSession is the state of an exec session.
type ExecSession struct {
	ID, Container string
	Options       container.ExecOptions
	Running       bool
	Sizes         [][2]uint // sizes that its terminal was resized to, height and width
}

// Execs returns the exec sessions of all containers.
func (e *Engine) Execs() []ExecSession {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []ExecSession
	for _, s := range e.execs {
		all = append(all, ExecSession{s.id, s.container.id, s.options, s.process != nil, slices.Clone(s.ttySizes)})
	}
	return all
}

// EndExec ends the process of the exec session id with code.
func (e *Engine) EndExec(id string, code int) {
	e.t.Helper()
	e.mu.Lock()
	var p *Process
	if s, ok := e.execs[id]; ok {
		p = s.process
	}
	e.mu.Unlock()
	if p == nil {
		e.t.Errorf("enginetest: exec session %s does not run", id)
		return
	}
	p.exit(code)
}

// ForgetExec deletes the exec session id, as when its container has exited; its output stream
// stays open.
func (e *Engine) ForgetExec(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.execs, id)
}
