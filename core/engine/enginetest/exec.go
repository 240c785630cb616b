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

// A session is an exec session. Engine.mu guards it, but for id, box and order.
type session struct {
	id    string
	box   *box
	order container.ExecOptions

	process  *Process // while it runs
	begun    bool
	starting bool // said to run, and not begun yet, see HangShims
	pid      int
	code     *int // nil until it has ended
	sizes    [][2]uint
}

// execCreate is POST /containers/{id}/exec.
func (e *Engine) execCreate(c *call) error {
	var order container.ExecOptions
	if err := c.decode(&order); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(c.name)
	if err == nil && len(order.Cmd) == 0 {
		err = invalid("No exec command specified")
	}
	if err == nil {
		err = execable(b, c.name)
	}
	if err != nil {
		return err
	}
	s := &session{id: e.newID(), box: b, order: order}
	e.sessions[s.id] = s
	e.tellExec(s, events.ActionExecCreate+": ", nil)
	return c.answer(http.StatusCreated, container.ExecCreateResponse{ID: s.id})
}

// execable returns nil if something may be run in b. Engine.mu is held.
func execable(b *box, name string) error {
	switch {
	case !b.state.Running:
		return refusal(http.StatusConflict, "Container %s is not running", b.id)
	case b.state.Paused:
		return refusal(http.StatusConflict, "Container %s is paused, unpause the container before exec", name)
	default:
		return nil
	}
}

// tellExec makes it known what has happened to s. e.mu is held.
func (e *Engine) tellExec(s *session, action events.Action, more map[string]string) {
	if strings.HasSuffix(string(action), ": ") {
		action += events.Action(s.order.Cmd[0] + " " + strings.Join(s.order.Cmd[1:], " "))
	}
	attributes := map[string]string{"execID": s.id}
	maps.Copy(attributes, more)
	e.tell(s.box, action, attributes)
}

// execStart is POST /exec/{id}/start.
func (e *Engine) execStart(c *call) error {
	var order container.ExecStartOptions
	if err := c.decode(&order); err != nil {
		return err
	}
	e.mu.Lock()
	s, ok := e.sessions[c.name]
	var err error
	if ok {
		err = execable(s.box, s.box.name)
	} else {
		err = refusal(http.StatusNotFound, "No such exec instance: %s", c.name)
	}
	multiplexed := e.since("1.42")
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if order.Detach {
		if _, _, err := e.beginExec(s, io.Discard, io.Discard, func() {}); err != nil {
			return err
		}
		return c.answer(http.StatusOK, nil)
	}
	conn, err := c.hijack(streamType(order.Tty, multiplexed))
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
		case <-c.run.ctx.Done():
			return nil
		}
	}
	out, errs := streams(conn, s.order.Tty)
	p, over, err := e.beginExec(s, out, errs, func() { _ = conn.Close() })
	if err != nil {
		// Too late for a status: what went wrong is all the output there is.
		_, _ = fmt.Fprintf(out, "%v\r\n", err)
		return nil
	}
	left := make(chan struct{}) // closed when the client has said all
	go func() {
		defer close(left)
		if !s.order.AttachStdin {
			_, _ = io.Copy(io.Discard, conn)
			return
		}
		_, _ = io.Copy(p.input, conn)
		p.input.end()
	}()
	select {
	case <-over:
	case <-c.run.ctx.Done():
		return nil
	}
	if p.keeps() {
		select {
		case <-left:
		case <-c.run.ctx.Done():
		}
	}
	return nil
}

// beginExec starts the process of s. over is closed when it has ended.
func (e *Engine) beginExec(s *session, out, errs io.Writer, hangUp func()) (_ *Process, over <-chan struct{}, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.begun {
		return nil, nil, refusal(http.StatusConflict, "Error: Exec command %s has already run", s.id)
	}
	s.begun, s.starting = true, false
	e.tellExec(s, events.ActionExecStart+": ", nil)
	if e.containerdLost {
		code := exitNotRun
		s.code = &code
		return nil, nil, refusal(http.StatusInternalServerError, "%s", containerdText)
	}
	program, failure := e.program(s.order.Cmd, false)
	if failure != nil {
		code := exitNotRun
		if e.since("1.44") {
			code = failure.Code
		}
		s.code = &code
		return nil, nil, invalid("OCI runtime exec failed: exec failed: unable to start container process: %s: unknown", failure.Text)
	}
	p := e.newProcess(s.box, newPipe(), s.order.Cmd, s.order.Env, s.order.Tty)
	p.ID = s.id
	p.hangUp = hangUp
	if s.order.AttachStdin {
		p.Stdin = p.input
	}
	var closed atomic.Bool // what a program writes after its process has ended goes nowhere
	until := func(w io.Writer) io.Writer {
		return writerFunc(func(p []byte) (int, error) {
			if closed.Load() {
				return 0, io.ErrClosedPipe
			}
			return w.Write(p)
		})
	}
	if s.order.AttachStdout {
		p.Stdout = until(out)
	}
	if s.order.AttachStderr {
		p.Stderr = until(errs)
	}
	if s.order.Tty {
		p.Stdout = until(terminal(out))
		p.Stderr = p.Stdout
	}
	ended := make(chan struct{})
	p.ended = func(code int) {
		closed.Store(true)
		e.mu.Lock()
		s.process, s.code = nil, &code
		e.tellExec(s, events.ActionExecDie, map[string]string{"exitCode": strconv.Itoa(code)})
		e.mu.Unlock()
		close(ended)
	}
	s.process, s.pid = p, e.PID(s.id)
	e.procs.Go(func() { p.finish(program(p)) })
	return p, ended, nil
}

// terminal writes as a terminal does, with \r\n at the end of lines.
func terminal(w io.Writer) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		_, err := io.WriteString(w, strings.ReplaceAll(string(p), "\n", "\r\n"))
		return len(p), err
	})
}

// execInspect is GET /exec/{id}/json.
func (e *Engine) execInspect(c *call) error {
	e.mu.Lock()
	s, ok := e.sessions[c.name]
	if !ok {
		e.mu.Unlock()
		return refusal(http.StatusNotFound, "No such exec instance: %s", c.name)
	}
	text, err := json.Marshal(map[string]any{
		"ID": s.id, "ContainerID": s.box.id, "Running": s.process != nil || s.starting, "ExitCode": s.code, "Pid": s.pid,
		"OpenStdin": s.order.AttachStdin, "OpenStdout": s.order.AttachStdout, "OpenStderr": s.order.AttachStderr,
		"CanRemove": false, "DetachKeys": s.order.DetachKeys,
		"ProcessConfig": map[string]any{
			"tty": s.order.Tty, "entrypoint": s.order.Cmd[0], "arguments": s.order.Cmd[1:], "privileged": s.order.Privileged,
		},
	})
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, json.RawMessage(text))
}

// execResize is POST /exec/{id}/resize.
func (e *Engine) execResize(c *call) error {
	size, err := c.size()
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s, ok := e.sessions[c.name]
	switch {
	case !ok:
		return refusal(http.StatusNotFound, "No such exec instance: %s", c.name)
	case !s.begun:
		// A real one waits for 10 s before it says so.
		return refusal(http.StatusInternalServerError, "timeout waiting for exec session ready")
	case s.process == nil:
		return refusal(http.StatusNotFound, "no such exec")
	}
	s.sizes = append(s.sizes, size)
	return c.answer(http.StatusOK, nil)
}

// An ExecSession is what there is to know of an exec session.
type ExecSession struct {
	ID, Container string
	Order         container.ExecOptions
	Running       bool
	Sizes         [][2]uint // what its terminal was resized to, height and width
}

// Execs lists the exec sessions of all containers.
func (e *Engine) Execs() []ExecSession {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []ExecSession
	for _, s := range e.sessions {
		all = append(all, ExecSession{s.id, s.box.id, s.order, s.process != nil, slices.Clone(s.sizes)})
	}
	return all
}

// EndExec ends the exec session id with code, as a kill by process does.
func (e *Engine) EndExec(id string, code int) {
	e.t.Helper()
	e.mu.Lock()
	var p *Process
	if s, ok := e.sessions[id]; ok {
		p = s.process
	}
	e.mu.Unlock()
	if p == nil {
		e.t.Errorf("enginetest: exec session %s does not run", id)
		return
	}
	p.finish(code)
}

// ForgetExec has the exec session id be no more, as when its container has ended;
// its output stays as it is.
func (e *Engine) ForgetExec(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.sessions, id)
}
