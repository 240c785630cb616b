package enginetest

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// What goes wrong is ordered by what it concerns, in one of four forms:
//
//	"GET /containers/{id}/json"     every call of a route
//	"GET /containers/web/json"      a call as it is on the wire, without version
//	the ID or name of a container   every call about it
//	""                              every call there is

// A fault is an order that calls fail.
type fault struct {
	target       string
	status       int
	text         string // of the answer, "" for any
	nth          int    // which call, counted from now; 0 is all
	count        int
	dropResponse bool
}

// A delay is an order that calls take long.
type delay struct {
	target   string
	duration time.Duration   // if release is nil
	release  <-chan struct{} // closed when it is over
}

// HangUp as a status makes the Engine break the connection instead of
// answering.
const HangUp = -1

// Fail has the Engine answer what with status from now on, or hang up if status is
// HangUp, until Heal. Nothing else happens in such a call.
func (e *Engine) Fail(what string, status int) { e.addFault(&fault{target: what, status: status}) }

// FailSaying has the Engine answer what with status and text from now on, until Heal.
func (e *Engine) FailSaying(what string, status int, text string) {
	e.addFault(&fault{target: what, status: status, text: text})
}

// FailOnce has the Engine answer the nth call of what, counted from now and
// from 1, with status, or hang up if status is HangUp.
func (e *Engine) FailOnce(what string, status, nth int) {
	e.addFault(&fault{target: what, status: status, nth: nth})
}

// Lose has the Engine do the nth call of what, counted from now and from 1, and
// hang up instead of telling.
func (e *Engine) Lose(what string, nth int) {
	e.addFault(&fault{target: what, nth: nth, dropResponse: true})
}

func (e *Engine) addFault(f *fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults = append(e.faults, f)
}

// Heal takes back every Fail, FailOnce, Lose, Delay and On of what. What hangs
// goes on hanging until it is released.
func (e *Engine) Heal(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults = slices.DeleteFunc(e.faults, func(f *fault) bool { return f.target == what })
	e.delays = slices.DeleteFunc(e.delays, func(d delay) bool { return d.target == what && d.release == nil })
	delete(e.hooks, what)
}

// Delay has every call of what wait for d before anything happens.
func (e *Engine) Delay(what string, d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.delays = append(e.delays, delay{target: what, duration: d})
}

// Hang has every call of what wait until release is called, the client hangs up
// or the Engine stops; only after a release does anything happen. Release may be
// called more than once.
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

// On calls do whenever a call of what comes in, before anything happens.
func (e *Engine) On(what string, do func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hooks[what] = append(e.hooks[what], do)
}

// Calls counts the calls of routes, for example "GET /containers/json", since
// the start or the last ResetCalls, also those that failed. Without routes it
// counts all but pings.
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

// ResetCalls makes Calls count from zero.
func (e *Engine) ResetCalls() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.callCounts)
}

// injectFaults counts a call and lets go wrong what was ordered to. If lose is
// true the call is to be done, but not answered.
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

// containerdError is what Docker 20.10 says of a containerd that nobody listens for.
const containerdError = `connection error: desc = "transport: Error while dialing dial unix /var/run/docker/containerd/containerd.sock: connect: connection refused": unavailable`

// LoseContainerd has the Engine lose its connection to containerd until find is called:
// nothing can be started, killed or executed.
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

// HangShims has the Engine take starts of execs and not begin them until goOn is
// called, as with a containerd-shim that hangs: Docker 20.10 answers with the stream,
// and says of the exec that it runs and has no process.
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

// Routes returns the names of all that is served.
func (e *Engine) Routes() []string {
	var names []string
	for _, r := range e.routes {
		names = append(names, r.name)
	}
	return names
}

// Called returns the routes that have been called since the start or the last
// ResetCalls.
func (e *Engine) Called() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.callCounts))
}
