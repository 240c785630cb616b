// Package enginetest is a fake Docker Engine for tests. It serves the Engine API on a Unix
// socket, so that tests use the real client, JSON, event streams and errors.
//
// Its type is Engine. It runs no processes and stores no images: a process is a Go function
// (Program), an image a description (Image), a registry a map. Faults can be injected: calls
// that fail, hang or lose their response, lost events, a stop and restart, another version.
// By default it is a Docker Engine 20.10 (API 1.41).
//
// The laws of core/engine/enginelaws run on it and on real Engines, so that it does not
// deviate from Docker in what this project relies on.
package enginetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"

	"berth/core/testdir"
)

// cleanupTimeout is how long the cleanup of New waits for processes to end.
const cleanupTimeout = 5 * time.Second

// An Engine is a fake Docker Engine. All methods may be called at any time and from any
// goroutine.
type Engine struct {
	// Host is the URL of its socket, as in engine.Config.
	Host string
	// RootDir is its data root. It has the log files, layer sizes and files of containers
	// (hosts, resolv.conf, hostname) that Docker has there.
	RootDir string
	// PID returns the PID reported for the container or exec session with the ID. By default it
	// is that of the test. It must be set before the first start.
	PID func(id string) int

	t         testing.TB
	ctx       context.Context // of processes
	cancel    context.CancelFunc
	routes    []route
	processes sync.WaitGroup // running Programs

	mu          sync.Mutex // guards following
	traced      []TracedRequest
	server      *apiServer // nil while stopped
	api, minAPI string
	liveRestore bool
	editInfo    []func(*system.Info)
	lastID      int // counter for newIDLocked

	containers  map[string]*fakeContainer // by ID
	leakedNames map[string]bool           // see LeakName
	execs       map[string]*execSession
	removeTakes time.Duration
	oomFloor    int

	containerdLost bool
	shimHangs      chan struct{} // closed when execs may start; nil if they may

	programs      map[string]Program
	startFailures map[string]StartFailure

	images     map[string]*fakeImage // by ID
	refs       map[string]string     // IDs by familiar name with tag or digest
	registries map[string]*Remote    // by normalized name
	pulls      []Pull
	resolves   []Pull

	pastEvents    []events.Message
	subscribers   map[*subscriber]struct{}
	dropEvents    bool
	lastEventTime int64

	callCounts map[string]int
	faults     []*fault
	delays     []delay
	hooks      map[string][]func()
}

// An apiServer serves the API between a start and a stop of the Engine.
type apiServer struct {
	ctx    context.Context
	cancel context.CancelFunc
	l      net.Listener
	srv    *http.Server
	calls  sync.WaitGroup // requests in progress

	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

// An Option configures an Engine before its start.
type Option func(*Engine)

// API sets the newest API version of the Engine, for example "1.51".
func API(newest string) Option { return func(e *Engine) { e.api = newest } }

// LiveRestore has containers outlive a stop of the Engine.
func LiveRestore() Option { return func(e *Engine) { e.liveRestore = true } }

// Info edits GET /info, as SetInfo does.
func Info(edit func(*system.Info)) Option {
	return func(e *Engine) { e.editInfo = append(e.editInfo, edit) }
}

// New starts an Engine that runs until t ends.
func New(t testing.TB, opts ...Option) *Engine {
	t.Helper()
	dir := testdir.New(t)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	e := &Engine{
		Host:    "unix://" + filepath.Join(dir, "docker.sock"),
		RootDir: filepath.Join(dir, "data"),
		PID:     func(string) int { return os.Getpid() },
		t:       t, ctx: ctx, cancel: cancel,
		api: "1.41", minAPI: "1.12",
		containers: map[string]*fakeContainer{}, leakedNames: map[string]bool{}, execs: map[string]*execSession{},
		oomFloor: -1000,
		programs: programs(), startFailures: startFailures(),
		images: map[string]*fakeImage{}, refs: map[string]string{}, registries: map[string]*Remote{},
		subscribers: map[*subscriber]struct{}{},
		callCounts:  map[string]int{}, hooks: map[string][]func(){},
	}
	e.routes = e.newRoutes()
	for _, o := range opts {
		o(e)
	}
	t.Cleanup(func() {
		e.SetLiveRestore(false)
		e.Stop()
		cancel()
		if !within(cleanupTimeout, e.processes.Wait) {
			t.Error("enginetest: a Program does not return although its context has ended")
		}
	})
	if err := os.MkdirAll(e.RootDir, 0o700); err != nil {
		t.Fatal(err)
	}
	e.Restart()
	return e
}

// within reports whether wait returns within d.
func within(d time.Duration, wait func()) bool {
	done := make(chan struct{})
	go func() {
		wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}

// Client returns a client of e that has negotiated an API version.
func (e *Engine) Client(t testing.TB) *client.Client {
	t.Helper()
	c, err := client.NewClientWithOpts(client.WithHost(e.Host), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	c.NegotiateAPIVersion(t.Context())
	return c
}

// Stop stops the Engine: its socket is removed, connections and event streams break, calls in
// progress get no response. Without live restore its containers exit with 137.
func (e *Engine) Stop() {
	e.mu.Lock()
	r := e.server
	e.server = nil
	e.mu.Unlock()
	if r == nil {
		return
	}
	r.cancel()
	_ = r.srv.Close()
	_ = r.l.Close() // the server may not have started to accept
	r.mu.Lock()
	for c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()

	e.mu.Lock()
	var toKill []*Process
	for _, s := range e.execs {
		if !e.liveRestore && s.process != nil {
			toKill = append(toKill, s.process)
		}
	}
	for _, b := range e.containers {
		if !e.liveRestore && b.process != nil {
			toKill = append(toKill, b.process)
		}
	}
	e.mu.Unlock()
	for _, p := range toKill {
		p.exit(exitKilled)
	}
	r.calls.Wait()
}

// Restart stops the Engine if it runs, and starts it again on the same socket with the same
// containers and images. Past events and exec sessions are lost.
func (e *Engine) Restart() {
	e.t.Helper()
	e.Stop()
	l, err := net.Listen("unix", e.Host[len("unix://"):])
	if err != nil {
		e.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(e.ctx)
	r := &apiServer{ctx: ctx, cancel: cancel, l: l, conns: map[net.Conn]struct{}{}}
	r.srv = &http.Server{
		Handler:     e.handler(r),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnState: func(c net.Conn, s http.ConnState) {
			r.mu.Lock()
			defer r.mu.Unlock()
			switch s {
			case http.StateNew, http.StateActive, http.StateIdle, http.StateHijacked:
				r.conns[c] = struct{}{}
			case http.StateClosed:
				delete(r.conns, c)
			}
		},
	}
	e.mu.Lock()
	e.server = r
	e.pastEvents, e.execs = nil, map[string]*execSession{}
	clear(e.leakedNames)
	e.mu.Unlock()
	go func() { _ = r.srv.Serve(l) }()
}

// Version changes the newest API version, as an upgrade or downgrade does. Clients that have
// negotiated a newer one are refused.
func (e *Engine) Version(newest string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.api = newest
}

// MinAPI sets the oldest API version that clients may use.
func (e *Engine) MinAPI(oldest string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.minAPI = oldest
}

// SetLiveRestore sets whether containers outlive a stop of the Engine.
func (e *Engine) SetLiveRestore(on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.liveRestore = on
}

// SetInfo edits GET /info. The features that requests are checked against, such as runtimes and
// the cgroup driver, follow.
func (e *Engine) SetInfo(edit func(*system.Info)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.editInfo = append(e.editInfo, edit)
}

// Reload has the Engine reload its configuration, as SIGHUP does, with edit applied to GET /info.
func (e *Engine) Reload(edit func(*system.Info)) {
	e.SetInfo(edit)
	e.Event(events.Message{Type: events.DaemonEventType, Action: events.ActionReload})
}

// Leftovers lists all containers and all running exec sessions.
func (e *Engine) Leftovers() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var left []string
	for _, b := range e.containers {
		left = append(left, fmt.Sprintf("container %s (%s)", b.name, b.state.Status))
	}
	for _, s := range e.execs {
		if s.process != nil {
			left = append(left, fmt.Sprintf("exec %s in %s: %q", s.id[:12], s.container.name, s.options.Cmd))
		}
	}
	slices.Sort(left)
	return left
}

// newIDLocked returns an ID that is unique, also among several fake Engines.
func (e *Engine) newIDLocked() string {
	e.lastID++
	return sha256Hex(fmt.Sprintf("%s %d", e.Host, e.lastID))
}

// sha256Hex returns the SHA-256 of text in hexadecimal.
func sha256Hex(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}
