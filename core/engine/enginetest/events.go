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

// maxPastEvents is how many events an Engine keeps for clients that use "since".
const maxPastEvents = 256

// A subscriber receives events. Engine.mu guards queue.
type subscriber struct {
	accept   func(events.Message) bool
	isClient bool // an event stream, rather than a wait call
	queue    []events.Message
	wake     chan struct{} // has an element if queue may not be empty
}

// subscribeLocked adds a subscriber.
func (e *Engine) subscribeLocked(accept func(events.Message) bool) *subscriber {
	l := &subscriber{accept: accept, wake: make(chan struct{}, 1)}
	e.subscribers[l] = struct{}{}
	return l
}

func (e *Engine) unsubscribe(l *subscriber) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.subscribers, l)
}

// takeEvents empties the queue of l and returns it.
func (e *Engine) takeEvents(l *subscriber) []events.Message {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := l.queue
	l.queue = nil
	return all
}

// publishLocked sends an event to all subscribers.
func (e *Engine) publishLocked(m events.Message) {
	// Times are unique, so that "since" is exact.
	e.lastEventTime = max(time.Now().UnixNano(), e.lastEventTime+1)
	m.Scope, m.Time, m.TimeNano = "local", e.lastEventTime/int64(time.Second), e.lastEventTime
	if e.supportsLocked("1.52") {
		m.Status, m.ID, m.From = "", "", "" //nolint:staticcheck // older Engines send them
	}
	if !e.dropEvents {
		e.pastEvents = append(e.pastEvents, m)
		e.pastEvents = e.pastEvents[max(0, len(e.pastEvents)-maxPastEvents):]
	}
	for l := range e.subscribers {
		if l.isClient && e.dropEvents || !l.accept(m) {
			continue
		}
		l.queue = append(l.queue, m)
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// DropEvents sets whether events are dropped, as an Engine does for a client that reads them too
// slowly. Dropped events are lost.
func (e *Engine) DropEvents(on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dropEvents = on
}

// BreakEvents breaks all event streams, as a proxy may.
func (e *Engine) BreakEvents() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for l := range e.subscribers {
		if l.isClient {
			delete(e.subscribers, l)
			close(l.wake)
		}
	}
}

// Listeners returns the number of event streams.
func (e *Engine) Listeners() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.listenersLocked()
}

// listenersLocked is Listeners with e.mu held.
func (e *Engine) listenersLocked() (n int) {
	for l := range e.subscribers {
		if l.isClient {
			n++
		}
	}
	return n
}

// Event publishes an event that the test has made.
func (e *Engine) Event(m events.Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.publishLocked(m)
}

// events is GET /events.
func (e *Engine) events(c *call) error {
	args, err := filters.FromJSON(c.query.Get("filters"))
	if err != nil {
		return errorf(http.StatusBadRequest, "%v", err)
	}
	since, past, err := parseTime(c.query.Get("since"))
	if err != nil {
		return errorf(http.StatusBadRequest, "%v", err)
	}
	until, ends, err := parseTime(c.query.Get("until"))
	if err != nil {
		return errorf(http.StatusBadRequest, "%v", err)
	}
	if ends && past && until.Before(since) {
		return errorf(http.StatusBadRequest, "`since` time (%s) cannot be after `until` time (%s)", c.query.Get("since"), c.query.Get("until"))
	}
	accept := func(m events.Message) bool { return matchesFilters(args, m) }

	e.mu.Lock()
	l := e.subscribeLocked(accept)
	l.isClient = true
	var buffered []events.Message
	if past {
		for _, m := range e.pastEvents {
			at := time.Unix(0, m.TimeNano)
			if !at.Before(since) && (!ends || !at.After(until)) && accept(m) {
				buffered = append(buffered, m)
			}
		}
	}
	e.mu.Unlock()
	defer e.unsubscribe(l)

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
			for _, m := range e.takeEvents(l) {
				if err := send(m); err != nil {
					return errHangUp
				}
			}
		case <-over:
			return nil
		case <-c.Context().Done():
			return errHangUp
		case <-c.server.ctx.Done():
			return errHangUp
		}
	}
}

// matchesFilters reports whether m matches the filters of an event stream.
func matchesFilters(args filters.Args, m events.Message) bool {
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

// parseTime parses a time of the query: seconds, perhaps with a fraction, or RFC 3339. ok is
// false if text is empty.
func parseTime(text string) (at time.Time, ok bool, err error) {
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
