package enginetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
)

const (
	exitNotRun   = 126
	exitNotFound = 127
	exitNoStart  = 128
	exitKilled   = 137

	sigKill       = 9
	stopTimeout   = 10 // seconds, if nobody says otherwise
	killPatience  = 2 * time.Second
	jsonLogDriver = "json-file"
)

// start is POST /containers/{id}/start.
func (e *Engine) start(c *call) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(c.name)
	switch {
	case err != nil:
		return err
	case b.state.Paused:
		return refusal(http.StatusConflict, "cannot start a paused container, try unpause instead")
	case b.state.Running:
		return c.answer(http.StatusNotModified, nil)
	}
	if err := e.begin(b); err != nil {
		return err
	}
	return c.answer(http.StatusNoContent, nil)
}

// begin starts b. If it cannot be started it stays created, or exited, with
// the reason written on it, and there is no event. e.mu is held.
func (e *Engine) begin(b *box) error {
	if b.removing || b.state.Dead {
		return refusal(http.StatusConflict, "container is marked for removal and cannot be started")
	}
	code, err := e.obstacle(b)
	if err != nil {
		b.state.ExitCode, b.state.Error = code, err.Error()
		return err
	}
	program, _ := e.program(b.words(), true)
	e.furnish(b)
	b.over = make(chan struct{})
	b.state = container.State{
		Status: container.StateRunning, Running: true, Pid: e.PID(b.id), StartedAt: stamp(time.Now()), FinishedAt: b.state.FinishedAt,
	}
	if err := b.out.open(b.logs); err != nil {
		e.t.Error(err)
	}
	p := e.newProcess(b, b.input, b.words(), b.config.Env, b.config.Tty)
	p.first = true
	p.ended = func(code int) { e.ended(b, code) }
	p.Stdout, p.Stderr = b.out.writer(stdout), b.out.writer(stderr)
	if b.config.OpenStdin {
		p.Stdin = p.input
	}
	b.process = p
	e.tell(b, events.ActionStart, nil)
	e.procs.Go(func() { p.finish(program(p)) })
	return nil
}

// runcCannot is how Engines begin to say that runc could not start a process.
const runcCannot = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process"

// obstacle is why b cannot be started, if anything, and the exit code that it
// gets for that. e.mu is held.
func (e *Engine) obstacle(b *box) (int, error) {
	const broken = http.StatusInternalServerError
	if e.containerdLost {
		return exitNoStart, refusal(broken, "%s", containerdText)
	}
	if name, ok := strings.CutPrefix(string(b.host.NetworkMode), "container:"); ok && !b.config.NetworkDisabled {
		holder, err := e.find(name)
		if err != nil {
			return exitNoStart, err
		}
		if !holder.state.Running {
			return exitNoStart, refusal(http.StatusConflict, "cannot join network of a non running container: %s", holder.id)
		}
	}
	if name, ok := strings.CutPrefix(string(b.host.IpcMode), "container:"); ok {
		holder, err := e.find(name)
		if err != nil {
			return exitNoStart, err
		}
		if !holder.state.Running {
			return exitNoStart, refusal(broken, "can't join IPC of container %s: container %[1]s is not running", holder.id)
		}
		if holder.host.IpcMode == container.IPCModePrivate || holder.host.IpcMode == container.IPCModeNone {
			return exitNoStart, refusal(broken, "can't join IPC of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", holder.id)
		}
	}
	if name, ok := strings.CutPrefix(string(b.host.PidMode), "container:"); ok {
		holder, err := e.find(name)
		if err != nil {
			return exitNoStart, err
		}
		if !holder.state.Running {
			return exitNoStart, refusal(broken, "container %s is not running", holder.id)
		}
	}
	if user, _, _ := strings.Cut(b.config.User, ":"); strings.Trim(user, "0123456789") != "" && !b.hasUser(user) {
		return exitNoStart, refusal(broken, "unable to find user %s: no matching entries in passwd file", user)
	}
	if err := e.findSubPaths(b); err != nil {
		return exitNoStart, err
	}
	for _, option := range b.host.SecurityOpt {
		profile, ok := strings.CutPrefix(option, "seccomp=")
		named := profile == "unconfined" || profile == "builtin" && e.since("1.42")
		if ok && !named && !json.Valid([]byte(profile)) {
			return exitNoStart, refusal(broken, "Decoding seccomp profile failed: invalid character %.1q looking for beginning of value", profile)
		}
	}
	if requests := b.host.DeviceRequests; len(requests) > 0 {
		if len(e.self().CDISpecDirs) == 0 || requests[0].Driver != "cdi" {
			return exitNoStart, refusal(broken, "could not select device driver %q with capabilities: []", requests[0].Driver)
		}
		// There are no CDI specifications.
		return exitNoStart, refusal(broken, "CDI device injection failed: unresolvable CDI devices %s", strings.Join(requests[0].DeviceIDs, ", "))
	}
	if b.host.OomScoreAdj < e.oomFloor {
		return exitNoStart, refusal(broken, "%s: can't get final child's PID from pipe: EOF: unknown", runcCannot)
	}
	if _, failure := e.program(b.words(), true); failure != nil {
		return failure.Code, refusal(failure.Status, "%s: %s: unknown", runcCannot, failure.Text)
	}
	return 0, nil
}

// hasUser reports whether /etc/passwd of b has user.
func (b *box) hasUser(user string) bool {
	for line := range strings.Lines(b.files["/etc/passwd"]) {
		if strings.HasPrefix(line, user+":") {
			return true
		}
	}
	return false
}

// furnish gives b the files that Engines give containers. e.mu is held.
func (e *Engine) furnish(b *box) {
	write := func(name, text string) string {
		path := filepath.Join(e.boxDir(b.id), name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			e.t.Error(err)
		}
		return path
	}
	if b.host.LogConfig.Type == jsonLogDriver {
		b.logs = filepath.Join(e.boxDir(b.id), b.id+"-json.log")
	}
	if name, ok := strings.CutPrefix(string(b.host.NetworkMode), "container:"); ok && !b.config.NetworkDisabled {
		if holder, err := e.find(name); err == nil {
			b.hosts, b.hostnameFile, b.dns, b.hostname = holder.hosts, holder.hostnameFile, holder.dns, holder.config.Hostname
		}
		return
	}
	if !b.config.NetworkDisabled || !e.since("1.52") {
		b.hostnameFile = write("hostname", b.config.Hostname+"\n")
	}
	if b.config.NetworkDisabled {
		return
	}
	b.hosts = write("hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	var resolv strings.Builder
	for _, s := range b.host.DNS {
		resolv.WriteString("nameserver " + s + "\n")
	}
	if len(b.host.DNSSearch) > 0 {
		resolv.WriteString("search " + strings.Join(b.host.DNSSearch, " ") + "\n")
	}
	if len(b.host.DNSOptions) > 0 {
		resolv.WriteString("options " + strings.Join(b.host.DNSOptions, " ") + "\n")
	}
	b.dns = write("resolv.conf", resolv.String())
	e.serial++
	b.sandboxID, b.endpoint = sum(fmt.Sprint("sandbox", b.id, e.serial)), sum(fmt.Sprint("endpoint", b.id, e.serial))
}

// ended writes on b that its process has ended with code.
func (e *Engine) ended(b *box, code int) {
	// The log is complete before anybody hears of the end.
	b.out.close()
	e.mu.Lock()
	b.process, b.input = nil, newPipe()
	b.state = container.State{
		Status: container.StateExited, OOMKilled: b.state.OOMKilled, ExitCode: code,
		StartedAt: b.state.StartedAt, FinishedAt: stamp(time.Now()),
	}
	b.sandboxID, b.endpoint, b.sizes, b.pending = "", "", nil, nil
	var dying []*Process
	for _, s := range e.sessions {
		if s.box == b && s.process != nil {
			dying = append(dying, s.process)
		}
	}
	for _, other := range e.boxes {
		// The first process of a PID namespace takes all others along.
		if other.process != nil && string(other.host.PidMode) == "container:"+b.id {
			dying = append(dying, other.process)
		}
	}
	e.tell(b, events.ActionDie, map[string]string{"exitCode": strconv.Itoa(code)})
	close(b.over)
	if b.host.AutoRemove && !b.removing && e.run != nil {
		e.forget(b)
	}
	e.mu.Unlock()
	for _, d := range dying {
		d.finish(exitKilled)
	}
}

// slay sends a signal to b, if it runs, and if that is KILL waits for its end.
func (e *Engine) slay(b *box, signal string) error {
	number, err := signalNumber(signal)
	if err != nil {
		return invalid("Invalid signal: %s", signal)
	}
	e.mu.Lock()
	p, over, stuck := b.process, b.over, b.stuck
	if p == nil {
		e.mu.Unlock()
		return nil
	}
	e.tell(b, events.ActionKill, map[string]string{"signal": strconv.Itoa(number)})
	waits := number != sigKill && b.state.Paused
	if waits {
		b.pending = append(b.pending, number)
	}
	e.mu.Unlock()
	switch {
	case waits:
		return nil
	case number != sigKill:
		p.signal(number)
		return nil
	case !stuck:
		p.finish(exitKilled)
	}
	select {
	case <-over:
		return nil
	case <-time.After(killPatience):
		return errors.New("tried to kill container, but did not receive an exit event")
	}
}

// kill is POST /containers/{id}/kill.
func (e *Engine) kill(c *call) error {
	signal := c.query.Get("signal")
	if signal == "" {
		signal = "KILL"
	}
	if _, err := signalNumber(signal); err != nil {
		return invalid("Invalid signal: %s", signal)
	}
	e.mu.Lock()
	b, err := e.find(c.name)
	running, lost := err == nil && b.process != nil, e.containerdLost
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if running && lost {
		return refusal(http.StatusInternalServerError, "Cannot kill container: %s: %s", c.name, containerdText)
	}
	if !running {
		if e.speaks("1.44") {
			return refusal(http.StatusConflict, "cannot kill container: %s: container %s is not running", c.name, b.id)
		}
		return refusal(http.StatusConflict, "Cannot kill container: %s: Container %s is not running", c.name, b.id)
	}
	if err := e.slay(b, signal); err != nil {
		return refusal(http.StatusInternalServerError, "Cannot kill container: %s: %v", c.name, err)
	}
	return c.answer(http.StatusNoContent, nil)
}

// stop is POST /containers/{id}/stop.
func (e *Engine) stop(c *call) error {
	stopped, err := e.halt(c)
	switch {
	case err != nil:
		return err
	case !stopped:
		return c.answer(http.StatusNotModified, nil)
	default:
		return c.answer(http.StatusNoContent, nil)
	}
}

// halt does what stop and restart begin with, and reports whether there was
// anything to do.
func (e *Engine) halt(c *call) (bool, error) {
	e.mu.Lock()
	b, err := e.find(c.name)
	if err != nil {
		e.mu.Unlock()
		return false, err
	}
	signal, timeout := "TERM", stopTimeout
	if b.config.StopSignal != "" {
		signal = b.config.StopSignal
	}
	if s := c.query.Get("signal"); s != "" && e.since("1.42") {
		signal = s
	}
	if b.config.StopTimeout != nil {
		timeout = *b.config.StopTimeout
	}
	running, over := b.process != nil, b.over
	e.mu.Unlock()
	if timeout, err = c.number("t", timeout); err != nil || !running {
		return false, err
	}
	if err := e.slay(b, signal); err != nil {
		return false, err
	}
	e.mu.Lock()
	if b.process != nil && b.state.Paused {
		e.thaw(b)
	}
	e.mu.Unlock()
	var late <-chan time.Time
	if timeout >= 0 {
		late = time.After(time.Duration(timeout) * time.Second)
	}
	select {
	case <-over:
	case <-c.run.ctx.Done():
		return false, errHangUp
	case <-late:
		if err := e.slay(b, "KILL"); err != nil {
			return false, refusal(http.StatusInternalServerError, "cannot stop container: %s: %v", c.name, err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tell(b, events.ActionStop, nil)
	return true, nil
}

// restart is POST /containers/{id}/restart.
func (e *Engine) restart(c *call) error {
	if _, err := e.halt(c); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(c.name)
	if err != nil {
		return err
	}
	if err := e.begin(b); err != nil {
		return refusal(http.StatusInternalServerError, "Cannot restart container %s: %v", c.name, err)
	}
	e.tell(b, events.ActionRestart, nil)
	return c.answer(http.StatusNoContent, nil)
}

// wait is POST /containers/{id}/wait.
func (e *Engine) wait(c *call) error {
	e.mu.Lock()
	b, err := e.find(c.name)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	over, running := b.over, b.process != nil
	exits := e.listen(func(m events.Message) bool { return m.Actor.ID == b.id && m.Action == events.ActionDie })
	e.mu.Unlock()
	defer e.unlisten(exits)
	send := c.stream()

	var end <-chan struct{} // nil for the removal alone
	switch container.WaitCondition(c.query.Get("condition")) {
	case container.WaitConditionNextExit:
		end = exits.wake
	case container.WaitConditionRemoved:
	default:
		if end = over; !running {
			closed := make(chan struct{})
			close(closed)
			end = closed
		}
	}
	select {
	case <-end:
	case <-b.gone:
	case <-c.Context().Done():
		return errHangUp
	case <-c.run.ctx.Done():
		return errHangUp
	}
	e.mu.Lock()
	code := int64(b.state.ExitCode)
	e.mu.Unlock()
	return send(struct {
		Error      *container.WaitExitError
		StatusCode int64
	}{nil, code})
}

// pause is POST /containers/{id}/pause.
func (e *Engine) pause(c *call) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(c.name)
	switch {
	case err != nil:
		return err
	case !b.state.Running:
		return refusal(http.StatusConflict, "Container %s is not running", b.id)
	case b.state.Paused:
		return refusal(http.StatusConflict, "Container %s is already paused", b.id)
	}
	b.state.Paused, b.state.Status = true, container.StatePaused
	e.tell(b, events.ActionPause, nil)
	return c.answer(http.StatusNoContent, nil)
}

// unpause is POST /containers/{id}/unpause.
func (e *Engine) unpause(c *call) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(c.name)
	switch {
	case err != nil:
		return err
	case !b.state.Paused:
		return refusal(http.StatusInternalServerError, "Container %s is not paused", b.id)
	}
	e.thaw(b)
	return c.answer(http.StatusNoContent, nil)
}

// thaw makes b run on. e.mu is held.
func (e *Engine) thaw(b *box) {
	b.state.Paused, b.state.Status = false, container.StateRunning
	e.tell(b, events.ActionUnPause, nil)
	for _, number := range b.pending {
		b.process.signal(number) // a first process, which no signal but KILL ends
	}
	b.pending = nil
}

// tell makes it known what has happened to b. e.mu is held.
func (e *Engine) tell(b *box, action events.Action, more map[string]string) {
	attributes := maps.Clone(b.config.Labels)
	attributes["image"], attributes["name"] = b.config.Image, b.name
	maps.Copy(attributes, more)
	e.publish(events.Message{
		Status: string(action), ID: b.id, From: b.config.Image,
		Type: events.ContainerEventType, Action: action, Actor: events.Actor{ID: b.id, Attributes: attributes},
	})
}

// Die ends the process of the container id with code, as if by itself.
func (e *Engine) Die(id string, code int) {
	e.t.Helper()
	var p *Process
	e.edit(id, func(b *box) { p = b.process })
	if p == nil {
		e.t.Errorf("enginetest: container %s does not run", id)
		return
	}
	p.finish(code)
}

// OOM kills the container id for want of memory.
func (e *Engine) OOM(id string) {
	e.t.Helper()
	e.OOMChild(id)
	e.Die(id, exitKilled)
}

// OOMChild kills a process in the container id for want of memory, but not its
// first one, which goes on.
func (e *Engine) OOMChild(id string) {
	e.t.Helper()
	e.edit(id, func(b *box) {
		b.state.OOMKilled = true
		e.tell(b, events.ActionOOM, nil)
	})
}

// OOMFloor makes it an Engine that may give no oom_score_adj below lowest, for
// want of CAP_SYS_RESOURCE: starts that need one fail.
func (e *Engine) OOMFloor(lowest int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.oomFloor = lowest
}
