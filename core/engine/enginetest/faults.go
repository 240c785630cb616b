package enginetest

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// The argument what of the methods below selects calls, in one of four forms:
//
//	"GET /containers/{id}/json"     every call of a route
//	"GET /containers/web/json"      calls with that path, without API version
//	the ID or name of a container   every call for that container
//	""                              every call

// A fault has calls fail.
type fault struct {
	target       string
	status       int
	text         string // of the error; a default if ""
	nth          int    // only the nth call from now; 0 for all
	count        int
	dropResponse bool
}

// A delay has calls wait.
type delay struct {
	target   string
	duration time.Duration   // if release is nil
	release  <-chan struct{} // ends the delay when closed
}

// HangUp as a status has the Engine close the connection instead of responding.
const HangUp = -1

// Fail has calls of what fail with status from now on, or close the connection if it is HangUp,
// until Heal. Such a call has no effect.
func (e *Engine) Fail(what string, status int) { e.addFault(&fault{target: what, status: status}) }

// FailWithText is Fail with the text of the error.
func (e *Engine) FailWithText(what string, status int, text string) {
	e.addFault(&fault{target: what, status: status, text: text})
}

// FailOnce has the nth call of what, counted from now and from 1, fail with status, or close the
// connection if it is HangUp.
func (e *Engine) FailOnce(what string, status, nth int) {
	e.addFault(&fault{target: what, status: status, nth: nth})
}

// DropResponse has the nth call of what, counted from now and from 1, take effect without a response: the
// connection is closed.
func (e *Engine) DropResponse(what string, nth int) {
	e.addFault(&fault{target: what, nth: nth, dropResponse: true})
}

func (e *Engine) addFault(f *fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults = append(e.faults, f)
}

// ClearFaults removes every Fail, FailOnce, Lose, Delay and On of what. Calls that hang do so until they
// are released.
func (e *Engine) ClearFaults(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults = slices.DeleteFunc(e.faults, func(f *fault) bool { return f.target == what })
	e.delays = slices.DeleteFunc(e.delays, func(d delay) bool { return d.target == what && d.release == nil })
	delete(e.hooks, what)
}

// Delay has every call of what wait for d before it takes effect.
func (e *Engine) Delay(what string, d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.delays = append(e.delays, delay{target: what, duration: d})
}

// Hang has every call of what wait until release is called, the client closes the connection, or
// the Engine stops; it takes effect only after a release. release may be called more than once.
func (e *Engine) Hang(what string) (release func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	over := make(chan struct{})
	e.delays = append(e.delays, delay{target: what, release: over})
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		for i, d := range e.delays {
			if d.release == over {
				e.delays = slices.Delete(e.delays, i, i+1)
				close(over)
				return
			}
		}
	}
}

// On calls do for every call of what, before it takes effect.
func (e *Engine) On(what string, do func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hooks[what] = append(e.hooks[what], do)
}

// Calls counts the calls of routes, for example "GET /containers/json", since the start or the
// last ResetCalls, including failed ones. Without routes it counts all but pings.
func (e *Engine) Calls(routes ...string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for name, count := range e.callCounts {
		if slices.Contains(routes, name) || len(routes) == 0 && !strings.HasSuffix(name, " /_ping") {
			n += count
		}
	}
	return n
}

// ResetCalls sets the counts of Calls to zero.
func (e *Engine) ResetCalls() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.callCounts)
}

// injectFaults counts a call and applies the faults, delays and hooks for it. If lose is true the
// call must take effect without a response.
func (e *Engine) injectFaults(c *call, name, line string) (lose bool, err error) {
	e.mu.Lock()
	e.callCounts[name]++
	subjects := []string{"", name}
	if line != name {
		subjects = append(subjects, line)
	}
	if strings.Contains(name, "/containers/{id}") {
		if b, err := e.findContainerLocked(c.name); err == nil {
			subjects = append(subjects, b.id, b.name)
		}
	}
	var hooks []func()
	for _, s := range subjects {
		hooks = append(hooks, e.hooks[s]...)
	}
	var pendingDelays []delay
	for _, d := range e.delays {
		if slices.Contains(subjects, d.target) {
			pendingDelays = append(pendingDelays, d)
		}
	}
	status, text := 0, ""
	for _, f := range e.faults {
		if !slices.Contains(subjects, f.target) {
			continue
		}
		f.count++
		switch {
		case f.nth != 0 && f.nth != f.count:
		case f.dropResponse:
			lose = true
		case status == 0:
			status, text = f.status, f.text
		}
	}
	e.mu.Unlock()

	for _, do := range hooks {
		do()
	}
	for _, w := range pendingDelays {
		var timer <-chan time.Time
		if w.release == nil {
			timer = time.After(w.duration)
		}
		select {
		case <-timer:
		case <-w.release:
		case <-c.Context().Done():
			return false, errHangUp
		case <-c.server.ctx.Done():
			return false, errHangUp
		}
	}
	switch status {
	case 0:
		return lose, nil
	case HangUp:
		return false, errHangUp
	default:
		if text == "" {
			text = "ordered to fail: " + http.StatusText(status)
		}
		return false, errorf(status, "%s", text)
	}
}

// containerdError is the error of Docker 20.10 if nothing listens on containerd's socket.
const containerdError = `connection error: desc = "transport: Error while dialing dial unix /var/run/docker/containerd/containerd.sock: connect: connection refused": unavailable`

// LoseContainerd breaks the Engine's connection to containerd until restore is called: starts,
// kills and execs fail.
func (e *Engine) LoseContainerd() (restore func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.containerdLost = true
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.containerdLost = false
	}
}

// HangShims has execs hang at their start until release is called, as with a containerd shim that
// hangs: Docker 20.10 responds with the stream, and reports the exec as running without a process.
func (e *Engine) HangShims() (release func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	hang := make(chan struct{})
	e.shimHangs = hang
	return sync.OnceFunc(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.shimHangs = nil
		close(hang)
	})
}

// Routes returns the names of all routes.
func (e *Engine) Routes() []string {
	var names []string
	for _, r := range e.routes {
		names = append(names, r.name)
	}
	return names
}

// Called returns the routes that were called since the start or the last ResetCalls.
func (e *Engine) Called() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.callCounts))
}
