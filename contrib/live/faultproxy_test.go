package live

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/events"
)

// A fault is what the proxy does to requests to Docker instead of forwarding them.
type fault struct {
	method string         // of the requests, "" for any
	path   *regexp.Regexp // of the requests, without their query
	skip   int            // how many requests that match are forwarded before the first fault
	times  int            // how many requests have it, 0 for all
	chance float64        // that a request that matches has it, 0 for always

	kind  faultKind
	after bool          // Docker handles the request; only the response is lost
	code  int           // of faultStatus
	wait  time.Duration // of faultDelay and faultHang, 0 for a hang until the faults are lifted
}

type faultKind string

const (
	faultHang     faultKind = "hang"   // no response until the client leaves, the faults are lifted or wait has passed
	faultDelay    faultKind = "delay"  // the response is late
	faultStatus   faultKind = "status" // an error of Docker
	faultCut      faultKind = "cut"    // the connection breaks without a response
	faultTruncate faultKind = "half"   // the connection breaks in the middle of the response
	faultEmpty    faultKind = "empty"  // a response without a body

	// Of GET /events.
	eventsDrop    faultKind = "drop events"      // each second one
	eventsDouble  faultKind = "double events"    // each one
	eventsReorder faultKind = "reorder events"   // each pair
	eventsLate    faultKind = "late events"      // by wait
	eventsClosed  faultKind = "events closed"    // after wait
	eventsGarbage faultKind = "garbage in event" // each fifth is half of one
)

func (f *fault) String() string {
	s := string(f.kind)
	if f.kind == faultStatus {
		s = fmt.Sprint(f.code)
	}
	if f.after {
		s += " after"
	}
	return s
}

// endpoint is the path of requests to Docker's API, whose version is before it.
func endpoint(path string) *regexp.Regexp { return regexp.MustCompile(`^(?:/v[0-9.]+)?` + path + `$`) }

// inject adds faults. If one is for events, all streams of events are cut, so that the next ones have it.
func (p *proxy) inject(list ...*fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, list...)
	for _, f := range list {
		if f.path.MatchString("/events") {
			p.cutEventsLocked()
		}
	}
	if p.lifted == nil {
		p.lifted = make(chan struct{})
	}
}

func (p *proxy) cutEventsLocked() {
	for _, cut := range p.streams {
		cut()
	}
}

// lift ends all faults, and breaks the connections that hang.
func (p *proxy) lift() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.faults {
		if f.path.MatchString("/events") {
			p.cutEventsLocked()
		}
	}
	p.faults = nil
	if p.lifted != nil {
		close(p.lifted)
		p.lifted = nil
	}
}

// faulty returns the fault for a request, nil for none, and a channel that is closed when the faults are lifted.
func (p *proxy) faulty(r *http.Request) (*fault, chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, f := range p.faults {
		switch {
		case f.method != "" && f.method != r.Method, !f.path.MatchString(r.URL.Path), f.chance > 0 && rand.Float64() >= f.chance:
			continue
		case f.skip > 0:
			f.skip--
			continue
		}
		p.hits++
		if f.times == 1 {
			p.faults = append(p.faults[:i:i], p.faults[i+1:]...)
		} else if f.times > 1 {
			f.times--
		}
		return f, p.lifted
	}
	return nil, nil
}

// serve handles a request with the fault.
func (f *fault) serve(p *proxy, lifted chan struct{}, w http.ResponseWriter, r *http.Request) {
	var whole bool
	switch f.kind {
	case faultDelay:
		wait(r.Context(), lifted, f.wait)
		whole = p.pass(w, r)
	case eventsClosed:
		ctx, cancel := context.WithTimeout(r.Context(), f.wait)
		defer cancel()
		whole = p.pass(w, r.WithContext(ctx))
	case eventsDrop, eventsDouble, eventsReorder, eventsLate, eventsGarbage:
		whole = p.pass(&eventWriter{ResponseWriter: w, fault: f}, r)
	default:
		f.respond(p, lifted, w, r)
		return
	}
	if !whole {
		panic(http.ErrAbortHandler) // the connection breaks
	}
}

// respond is serve for faults of the response itself.
func (f *fault) respond(p *proxy, lifted chan struct{}, w http.ResponseWriter, r *http.Request) {
	if f.kind == faultTruncate && r.Header.Get("Upgrade") != "" {
		p.pass(&cutWriter{w, 3}, r) // half a header of a stream
		panic(http.ErrAbortHandler)
	}
	response := httptest.NewRecorder()
	if f.after || f.kind == faultTruncate || f.kind == faultEmpty {
		if !p.pass(response, r.WithContext(context.WithoutCancel(r.Context()))) {
			panic(http.ErrAbortHandler)
		}
	}
	switch f.kind {
	case faultHang:
		wait(r.Context(), lifted, f.wait)
	case faultStatus:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(f.code)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": "a fault on purpose"})
		return
	case faultEmpty, faultTruncate:
		body := response.Body.Bytes()
		maps.Copy(w.Header(), response.Header())
		if f.kind == faultEmpty {
			w.Header().Del("Content-Length")
			w.WriteHeader(response.Code)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(max(len(body), 2)))
		w.WriteHeader(response.Code)
		_, _ = w.Write(body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
	default:
	}
	panic(http.ErrAbortHandler) // the connection breaks
}

// pass forwards a request to Docker, and reports whether the response is complete.
func (p *proxy) pass(w http.ResponseWriter, r *http.Request) (whole bool) {
	defer func() {
		// The reverse proxy panics if the client or Docker ends the connection in the middle.
		if broken := recover(); broken != nil && broken != http.ErrAbortHandler { //nolint:errorlint // it is panicked with as it is
			panic(broken)
		}
	}()
	p.rev.ServeHTTP(w, r)
	return true
}

// wait waits until d has passed, unless it is 0, the request has ended or the faults are lifted.
func wait(ctx context.Context, lifted chan struct{}, d time.Duration) {
	var over <-chan time.Time
	if d > 0 {
		over = time.After(d)
	}
	select {
	case <-ctx.Done():
	case <-lifted:
	case <-over:
	}
}

// A cutWriter breaks a hijacked connection after so many bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (w *cutWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack implements http.Hijacker.
func (w *cutWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return &cutConn{Conn: conn, left: w.left}, rw, nil
}

type cutConn struct {
	net.Conn
	left int
	once sync.Once
}

func (c *cutConn) Write(p []byte) (int, error) {
	if n := min(len(p), c.left); n < len(p) {
		_, _ = c.Conn.Write(p[:n])
		c.once.Do(func() { c.Close() })
		return n, net.ErrClosed
	}
	c.left -= len(p)
	return c.Conn.Write(p)
}

// An eventWriter forwards events, one a line, with a fault.
type eventWriter struct {
	http.ResponseWriter
	fault *fault
	rest  []byte // the beginning of an event
	held  []byte // an event that is sent after the next one
	count int
}

func (w *eventWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write implements http.ResponseWriter.
func (w *eventWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		end := bytes.IndexByte(w.rest, '\n')
		if end < 0 {
			return len(p), nil
		}
		event := bytes.Clone(w.rest[:end+1])
		w.rest = w.rest[end+1:]
		w.count++
		switch w.fault.kind {
		case eventsDrop:
			if w.count%2 == 0 {
				continue
			}
		case eventsDouble:
			event = append(event, event...)
		case eventsReorder:
			if w.held == nil {
				w.held = event
				continue
			}
			event, w.held = append(event, w.held...), nil
		case eventsLate:
			var m events.Message
			_ = json.Unmarshal(event, &m)                                      // any other is passed on at once
			time.Sleep(time.Until(time.Unix(0, m.TimeNano).Add(w.fault.wait))) // each by as much, also of many at a time
		case eventsGarbage:
			if w.count%5 == 0 {
				event = []byte(strings.ToUpper(string(event[:len(event)/2])) + "\n")
			}
		default:
		}
		if _, err := w.ResponseWriter.Write(event); err != nil {
			return 0, err
		}
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
}
