package enginetest

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
)

// remembered is how many events an Engine keeps for those who ask for the past.
const remembered = 256

// An ear is somebody who listens to events. Engine.mu guards queue.
type ear struct {
	accept func(events.Message) bool
	client bool // rather than the Engine itself
	queue  []events.Message
	wake   chan struct{} // has one element if there is something in queue
}

// listen adds an ear. e.mu is held.
func (e *Engine) listen(accept func(events.Message) bool) *ear {
	l := &ear{accept: accept, wake: make(chan struct{}, 1)}
	e.ears[l] = struct{}{}
	return l
}

func (e *Engine) unlisten(l *ear) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.ears, l)
}

// hear takes what l has heard.
func (e *Engine) hear(l *ear) []events.Message {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := l.queue
	l.queue = nil
	return all
}

// publish tells all who listen. e.mu is held.
func (e *Engine) publish(m events.Message) {
	// No two at the same moment, so that time tells them apart.
	e.lastNano = max(time.Now().UnixNano(), e.lastNano+1)
	m.Scope, m.Time, m.TimeNano = "local", e.lastNano/int64(time.Second), e.lastNano
	if e.since("1.52") {
		m.Status, m.ID, m.From = "", "", "" //nolint:staticcheck // older Engines send them
	}
	if !e.deaf {
		e.ring = append(e.ring, m)
		e.ring = e.ring[max(0, len(e.ring)-remembered):]
	}
	for l := range e.ears {
		if l.client && e.deaf || !l.accept(m) {
			continue
		}
		l.queue = append(l.queue, m)
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// LoseEvents tells whether events get lost, as an Engine drops those of a
// listener that it finds slow. Lost ones do not come back.
func (e *Engine) LoseEvents(on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.deaf = on
}

// BreakEvents ends all event streams with an error, as a proxy may.
func (e *Engine) BreakEvents() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for l := range e.ears {
		if l.client {
			delete(e.ears, l)
			close(l.wake)
		}
	}
}

// Listeners tells how many event streams there are.
func (e *Engine) Listeners() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.listeners()
}

// listeners is Listeners for those who hold e.mu.
func (e *Engine) listeners() (n int) {
	for l := range e.ears {
		if l.client {
			n++
		}
	}
	return n
}

// Event publishes an event of the test's own making.
func (e *Engine) Event(m events.Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.publish(m)
}

// events is GET /events.
func (e *Engine) events(c *call) error {
	args, err := filters.FromJSON(c.query.Get("filters"))
	if err != nil {
		return refusal(http.StatusBadRequest, "%v", err)
	}
	since, past, err := moment(c.query.Get("since"))
	if err != nil {
		return refusal(http.StatusBadRequest, "%v", err)
	}
	until, ends, err := moment(c.query.Get("until"))
	if err != nil {
		return refusal(http.StatusBadRequest, "%v", err)
	}
	if ends && past && until.Before(since) {
		return refusal(http.StatusBadRequest, "`since` time (%s) cannot be after `until` time (%s)", c.query.Get("since"), c.query.Get("until"))
	}
	accept := func(m events.Message) bool { return wanted(args, m) }

	e.mu.Lock()
	l := e.listen(accept)
	l.client = true
	var buffered []events.Message
	if past {
		for _, m := range e.ring {
			at := time.Unix(0, m.TimeNano)
			if !at.Before(since) && (!ends || !at.After(until)) && accept(m) {
				buffered = append(buffered, m)
			}
		}
	}
	e.mu.Unlock()
	defer e.unlisten(l)

	send := c.stream()
	for _, m := range buffered {
		if err := send(m); err != nil {
			return errHangUp
		}
	}
	var over <-chan time.Time
	if ends {
		over = time.After(time.Until(until))
	}
	for {
		select {
		case _, ok := <-l.wake:
			if !ok {
				return errHangUp
			}
			for _, m := range e.hear(l) {
				if err := send(m); err != nil {
					return errHangUp
				}
			}
		case <-over:
			return nil
		case <-c.Context().Done():
			return errHangUp
		case <-c.run.ctx.Done():
			return errHangUp
		}
	}
}

// wanted reports whether filters let m through.
func wanted(args filters.Args, m events.Message) bool {
	action, _, _ := strings.Cut(string(m.Action), ":")
	named := func(kind events.Type, key string) bool {
		if !args.Contains(key) {
			return true
		}
		if m.Type != kind {
			return false
		}
		name := m.Actor.Attributes["name"]
		return args.FuzzyMatch(key, m.Actor.ID) || args.ExactMatch(key, name) || slices.ContainsFunc(args.Get(key), func(v string) bool {
			return strings.TrimSuffix(v, ":latest") == strings.TrimSuffix(name, ":latest")
		})
	}
	if args.Contains("image") && m.Type == events.ContainerEventType {
		if !args.ExactMatch("image", m.Actor.Attributes["image"]) {
			return false
		}
	} else if !named(events.ImageEventType, "image") {
		return false
	}
	return (args.ExactMatch("event", string(m.Action)) || args.ExactMatch("event", action)) &&
		args.ExactMatch("type", string(m.Type)) &&
		args.ExactMatch("scope", m.Scope) &&
		args.MatchKVList("label", m.Actor.Attributes) &&
		named(events.ContainerEventType, "container") &&
		named(events.NetworkEventType, "network") && named(events.VolumeEventType, "volume")
}

// moment reads a time as clients send it: seconds, perhaps with a fraction, or
// RFC 3339. ok is false if there is none.
func moment(text string) (at time.Time, ok bool, err error) {
	if text == "" {
		return at, false, nil
	}
	if at, err = time.Parse(time.RFC3339Nano, text); err == nil {
		return at, true, nil
	}
	whole, fraction, _ := strings.Cut(text, ".")
	s, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return at, false, fmt.Errorf("failed to parse value as time or duration: %q", text)
	}
	n, err := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
	if err != nil {
		return at, false, fmt.Errorf("failed to parse value as time or duration: %q", text)
	}
	return time.Unix(s, n), true, nil
}
