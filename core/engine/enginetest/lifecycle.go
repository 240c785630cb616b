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
	exitNotExecutable = 126
	exitNotFound      = 127
	exitStartFailed   = 128
	exitKilled        = 137

	sigKill       = 9
	stopTimeout   = 10 // seconds, the default grace period
	killTimeout   = 2 * time.Second
	jsonLogDriver = "json-file"
)

// start is POST /containers/{id}/start.
func (e *Engine) start(c *call) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.findContainerLocked(c.name)
	switch {
	case err != nil:
		return err
	case b.state.Paused:
		return errorf(http.StatusConflict, "cannot start a paused container, try unpause instead")
	case b.state.Running:
		return c.respond(http.StatusNotModified, nil)
	}
	if err := e.startLocked(b); err != nil {
		return err
	}
	return c.respond(http.StatusNoContent, nil)
}

// startLocked starts b. If that fails, b keeps its status and gets the error, without an event.
func (e *Engine) startLocked(b *fakeContainer) error {
	if b.removing || b.state.Dead {
		return errorf(http.StatusConflict, "container is marked for removal and cannot be started")
	}
	code, err := e.checkStartLocked(b)
	if err != nil {
		b.state.ExitCode, b.state.Error = code, err.Error()
		return err
	}
	program, _ := e.programLocked(b.command(), true)
	e.writeFilesLocked(b)
	b.exited = make(chan struct{})
	b.state = container.State{
		Status: container.StateRunning, Running: true, Pid: e.PID(b.id), StartedAt: formatTime(time.Now()), FinishedAt: b.state.FinishedAt,
	}
	logFile, local := b.logPath, b.host.LogConfig.Type == "local"
	if local {
		logFile = filepath.Join(e.containerDir(b.id), "local-logs", "container.log")
	}
	if err := b.output.open(logFile, local); err != nil {
		e.t.Error(err)
	}
	p := e.newProcess(b, b.stdin, b.command(), b.config.Env, b.config.Tty)
	p.isInit = true
	p.onExit = func(code int) { e.exited(b, code) }
	p.Stdout, p.Stderr = b.output.writer(stdout), b.output.writer(stderr)
	if b.config.OpenStdin {
		p.Stdin = p.stdin
	}
	b.process = p
	e.emitLocked(b, events.ActionStart, nil)
	run := func() int { return program(p) }
	if program == nil {
		run = untilSignal(p)
	}
	e.processes.Go(func() { p.exit(run()) })
	return nil
}

// runcStartError is how the error of a start begins if runc could not start the process.
const runcStartError = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process"

// checkStartLocked returns why b cannot be started, if so, and the exit code that it gets then.
func (e *Engine) checkStartLocked(b *fakeContainer) (int, error) {
	const broken = http.StatusInternalServerError
	if e.containerdLost {
		return exitStartFailed, errorf(broken, "%s", containerdError)
	}
	if name, ok := strings.CutPrefix(string(b.host.NetworkMode), "container:"); ok && !b.config.NetworkDisabled {
		holder, err := e.findContainerLocked(name)
		if err != nil {
			return exitStartFailed, err
		}
		if !holder.state.Running {
			return exitStartFailed, errorf(http.StatusConflict, "cannot join network of a non running container: %s", holder.id)
		}
	}
	if name, ok := strings.CutPrefix(string(b.host.IpcMode), "container:"); ok {
		holder, err := e.findContainerLocked(name)
		if err != nil {
			return exitStartFailed, err
		}
		if !holder.state.Running {
			return exitStartFailed, errorf(broken, "can't join IPC of container %s: container %[1]s is not running", holder.id)
		}
		if holder.host.IpcMode == container.IPCModePrivate || holder.host.IpcMode == container.IPCModeNone {
			return exitStartFailed, errorf(broken, "can't join IPC of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", holder.id)
		}
	}
	if name, ok := strings.CutPrefix(string(b.host.PidMode), "container:"); ok {
		holder, err := e.findContainerLocked(name)
		if err != nil {
			return exitStartFailed, err
		}
		if !holder.state.Running {
			return exitStartFailed, errorf(broken, "container %s is not running", holder.id)
		}
	}
	if user, _, _ := strings.Cut(b.config.User, ":"); strings.Trim(user, "0123456789") != "" && !b.hasUser(user) {
		return exitStartFailed, errorf(broken, "unable to find user %s: no matching entries in passwd file", user)
	}
	if err := e.checkSubPathsLocked(b); err != nil {
		return exitStartFailed, err
	}
	for _, option := range b.host.SecurityOpt {
		profile, ok := strings.CutPrefix(option, "seccomp=")
		named := profile == "unconfined" || profile == "builtin" && e.supportsLocked("1.42")
		if ok && !named && !json.Valid([]byte(profile)) {
			return exitStartFailed, errorf(broken, "Decoding seccomp profile failed: invalid character %.1q looking for beginning of value", profile)
		}
	}
	if requests := b.host.DeviceRequests; len(requests) > 0 {
		if len(e.infoLocked().CDISpecDirs) == 0 || requests[0].Driver != "cdi" {
			return exitStartFailed, errorf(broken, "could not select device driver %q with capabilities: []", requests[0].Driver)
		}
		// There are no CDI specifications.
		return exitStartFailed, errorf(broken, "CDI device injection failed: unresolvable CDI devices %s", strings.Join(requests[0].DeviceIDs, ", "))
	}
	if b.host.OomScoreAdj < e.oomFloor {
		return exitStartFailed, errorf(broken, "%s: can't get final child's PID from pipe: EOF: unknown", runcStartError)
	}
	if _, failure := e.programLocked(b.command(), true); failure != nil {
		return failure.Code, errorf(failure.Status, "%s: %s: unknown", runcStartError, failure.Text)
	}
	return 0, nil
}

// hasUser reports whether /etc/passwd of b has user.
func (b *fakeContainer) hasUser(user string) bool {
	for line := range strings.Lines(b.files["/etc/passwd"]) {
		if strings.HasPrefix(line, user+":") {
			return true
		}
	}
	return false
}

// writeFilesLocked creates the files that Docker mounts into b, and its log file.
func (e *Engine) writeFilesLocked(b *fakeContainer) {
	write := func(name, text string) string {
		path := filepath.Join(e.containerDir(b.id), name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			e.t.Error(err)
		}
		return path
	}
	if b.host.LogConfig.Type == jsonLogDriver {
		b.logPath = filepath.Join(e.containerDir(b.id), b.id+"-json.log")
	}
	if name, ok := strings.CutPrefix(string(b.host.NetworkMode), "container:"); ok && !b.config.NetworkDisabled {
		if holder, err := e.findContainerLocked(name); err == nil {
			b.hostsFile, b.hostnameFile, b.resolvConf, b.hostname = holder.hostsFile, holder.hostnameFile, holder.resolvConf, holder.config.Hostname
		}
		return
	}
	if !b.config.NetworkDisabled || !e.supportsLocked("1.52") {
		b.hostnameFile = write("hostname", b.config.Hostname+"\n")
	}
	if b.config.NetworkDisabled {
		return
	}
	b.hostsFile = write("hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
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
	b.resolvConf = write("resolv.conf", resolv.String())
	e.lastID++
	b.sandboxID, b.endpoint = sha256Hex(fmt.Sprint("sandbox", b.id, e.lastID)), sha256Hex(fmt.Sprint("endpoint", b.id, e.lastID))
}

// exited updates b after its process has exited with code.
func (e *Engine) exited(b *fakeContainer, code int) {
	// The log is complete before the exit is reported.
	b.output.close()
	e.mu.Lock()
	b.process, b.stdin = nil, newPipe()
	b.state = container.State{
		Status: container.StateExited, OOMKilled: b.state.OOMKilled, ExitCode: code,
		StartedAt: b.state.StartedAt, FinishedAt: formatTime(time.Now()),
	}
	b.sandboxID, b.endpoint, b.ttySizes, b.pendingSignals = "", "", nil, nil
	var toKill []*Process
	for _, s := range e.execs {
		if s.container == b && s.process != nil {
			toKill = append(toKill, s.process)
		}
	}
	for _, other := range e.containers {
		// A PID namespace ends with its first process.
		if other.process != nil && string(other.host.PidMode) == "container:"+b.id {
			toKill = append(toKill, other.process)
		}
	}
	e.emitLocked(b, events.ActionDie, map[string]string{"exitCode": strconv.Itoa(code)})
	close(b.exited)
	if b.host.AutoRemove && !b.removing && e.server != nil {
		e.deleteLocked(b)
	}
	e.mu.Unlock()
	for _, d := range toKill {
		d.exit(exitKilled)
	}
}

// sendSignal sends a signal to b if it runs, and after SIGKILL waits until it has exited.
func (e *Engine) sendSignal(b *fakeContainer, signal string) error {
	number, err := signalNumber(signal)
	if err != nil {
		return invalidParameter("Invalid signal: %s", signal)
	}
	e.mu.Lock()
	p, over, stuck := b.process, b.exited, b.unkillable
	if p == nil {
		e.mu.Unlock()
		return nil
	}
	e.emitLocked(b, events.ActionKill, map[string]string{"signal": strconv.Itoa(number)})
	pendingDelays := number != sigKill && b.state.Paused
	if pendingDelays {
		b.pendingSignals = append(b.pendingSignals, number)
	}
	e.mu.Unlock()
	switch {
	case pendingDelays:
		return nil
	case number != sigKill:
		p.signal(number)
		return nil
	case !stuck:
		p.exit(exitKilled)
	}
	select {
	case <-over:
		return nil
	case <-time.After(killTimeout):
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
		return invalidParameter("Invalid signal: %s", signal)
	}
	e.mu.Lock()
	b, err := e.findContainerLocked(c.name)
	running, lost := err == nil && b.process != nil, e.containerdLost
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if running && lost {
		return errorf(http.StatusInternalServerError, "Cannot kill container: %s: %s", c.name, containerdError)
	}
	if !running {
		if e.supports("1.44") {
			return errorf(http.StatusConflict, "cannot kill container: %s: container %s is not running", c.name, b.id)
		}
		return errorf(http.StatusConflict, "Cannot kill container: %s: Container %s is not running", c.name, b.id)
	}
	if err := e.sendSignal(b, signal); err != nil {
		return errorf(http.StatusInternalServerError, "Cannot kill container: %s: %v", c.name, err)
	}
	return c.respond(http.StatusNoContent, nil)
}

// stop is POST /containers/{id}/stop.
func (e *Engine) stop(c *call) error {
	stopped, err := e.stopAndWait(c)
	switch {
	case err != nil:
		return err
	case !stopped:
		return c.respond(http.StatusNotModified, nil)
	default:
		return c.respond(http.StatusNoContent, nil)
	}
}

// stopAndWait is the common part of stop and restart. It returns false if b does not run.
func (e *Engine) stopAndWait(c *call) (bool, error) {
	e.mu.Lock()
	b, err := e.findContainerLocked(c.name)
	if err != nil {
		e.mu.Unlock()
		return false, err
	}
	signal, timeout := "TERM", stopTimeout
	if b.config.StopSignal != "" {
		signal = b.config.StopSignal
	}
	if s := c.query.Get("signal"); s != "" && e.supportsLocked("1.42") {
		signal = s
	}
	if b.config.StopTimeout != nil {
		timeout = *b.config.StopTimeout
	}
	running, over := b.process != nil, b.exited
	e.mu.Unlock()
	if timeout, err = c.intParam("t", timeout); err != nil || !running {
		return false, err
	}
	if err := e.sendSignal(b, signal); err != nil {
		return false, err
	}
	e.mu.Lock()
	if b.process != nil && b.state.Paused {
		e.unpauseLocked(b)
	}
	e.mu.Unlock()
	var late <-chan time.Time
	if timeout >= 0 {
		late = time.After(time.Duration(timeout) * time.Second)
	}
	select {
	case <-over:
	case <-c.server.ctx.Done():
		return false, errHangUp
	case <-late:
		if err := e.sendSignal(b, "KILL"); err != nil {
			return false, errorf(http.StatusInternalServerError, "cannot stop container: %s: %v", c.name, err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.emitLocked(b, events.ActionStop, nil)
	return true, nil
}

// restart is POST /containers/{id}/restart.
func (e *Engine) restart(c *call) error {
	if _, err := e.stopAndWait(c); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.findContainerLocked(c.name)
	if err != nil {
		return err
	}
	if err := e.startLocked(b); err != nil {
		return errorf(http.StatusInternalServerError, "Cannot restart container %s: %v", c.name, err)
	}
	e.emitLocked(b, events.ActionRestart, nil)
	return c.respond(http.StatusNoContent, nil)
}

// wait is POST /containers/{id}/wait.
func (e *Engine) wait(c *call) error {
	e.mu.Lock()
	b, err := e.findContainerLocked(c.name)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	over, running := b.exited, b.process != nil
	exits := e.subscribeLocked(func(m events.Message) bool { return m.Actor.ID == b.id && m.Action == events.ActionDie })
	e.mu.Unlock()
	defer e.unsubscribe(exits)
	send := c.stream()

	var end <-chan struct{} // nil if only a removal ends the wait
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
	case <-b.removed:
	case <-c.Context().Done():
		return errHangUp
	case <-c.server.ctx.Done():
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
	b, err := e.findContainerLocked(c.name)
	switch {
	case err != nil:
		return err
	case !b.state.Running:
		return errorf(http.StatusConflict, "Container %s is not running", b.id)
	case b.state.Paused:
		return errorf(http.StatusConflict, "Container %s is already paused", b.id)
	}
	b.state.Paused, b.state.Status = true, container.StatePaused
	e.emitLocked(b, events.ActionPause, nil)
	return c.respond(http.StatusNoContent, nil)
}

// unpause is POST /containers/{id}/unpause.
func (e *Engine) unpause(c *call) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.findContainerLocked(c.name)
	switch {
	case err != nil:
		return err
	case !b.state.Paused:
		return errorf(http.StatusInternalServerError, "Container %s is not paused", b.id)
	}
	e.unpauseLocked(b)
	return c.respond(http.StatusNoContent, nil)
}

// unpauseLocked resumes b.
func (e *Engine) unpauseLocked(b *fakeContainer) {
	b.state.Paused, b.state.Status = false, container.StateRunning
	e.emitLocked(b, events.ActionUnPause, nil)
	for _, number := range b.pendingSignals {
		b.process.signal(number) // the first process, which only SIGKILL ends
	}
	b.pendingSignals = nil
}

// emitLocked publishes an event of b.
func (e *Engine) emitLocked(b *fakeContainer, action events.Action, more map[string]string) {
	attributes := maps.Clone(b.config.Labels)
	attributes["image"], attributes["name"] = b.config.Image, b.name
	maps.Copy(attributes, more)
	e.publishLocked(events.Message{
		Status: string(action), ID: b.id, From: b.config.Image,
		Type: events.ContainerEventType, Action: action, Actor: events.Actor{ID: b.id, Attributes: attributes},
	})
}

// Die ends the process of the container id with code.
func (e *Engine) Die(id string, code int) {
	e.t.Helper()
	var p *Process
	e.editContainer(id, func(b *fakeContainer) { p = b.process })
	if p == nil {
		e.t.Errorf("enginetest: container %s does not run", id)
		return
	}
	p.exit(code)
}

// OOM kills the container id for lack of memory.
func (e *Engine) OOM(id string) {
	e.t.Helper()
	e.OOMChild(id)
	e.Die(id, exitKilled)
}

// OOMChild kills a child process in the container id for lack of memory; the first process goes
// on.
func (e *Engine) OOMChild(id string) {
	e.t.Helper()
	e.editContainer(id, func(b *fakeContainer) {
		b.state.OOMKilled = true
		e.emitLocked(b, events.ActionOOM, nil)
	})
}

// OOMFloor has starts with an oom_score_adj below lowest fail, as those of an Engine without
// CAP_SYS_RESOURCE.
func (e *Engine) OOMFloor(lowest int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.oomFloor = lowest
}
