// Package enginetest is a Docker Engine made of a few maps. It speaks the
// Engine's HTTP API on a Unix socket, so that tests go through the real client,
// the real JSON, the real event stream and the real errors.
//
// Nothing runs in it: a process is a Go function (Program), an image a few
// words about one, a registry a table. Everything that can go wrong with an
// Engine can be ordered: calls that fail, hang or lose their answer, an Engine
// that goes away and comes back, or comes back as another version.
//
// It earns its keep only as long as it is honest: Laws runs against it and
// against a real Engine alike, and says what both must do. Unless told
// otherwise it is a Docker Engine 20.10 (API 1.41).
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
)

// cleanupTimeout is how long New's clean-up waits for processes to end.
const cleanupTimeout = 5 * time.Second

// An Engine is a Docker Engine with nothing in it. All methods may be called at
// any time and from any goroutine.
type Engine struct {
	// Host is where it listens, as for engine.Config.
	Host string
	// RootDir is its data root. Log files, layer sizes and the files that it
	// gives to containers are really there.
	RootDir string
	// PID tells which process stands for a container or an exec session, by
	// its ID. It is the test's own unless it is set, before anything is started.
	PID func(id string) int

	t         testing.TB
	ctx       context.Context // of processes
	cancel    context.CancelFunc
	routes    []route
	processes sync.WaitGroup // processes under way

	mu          sync.Mutex // guards following
	server      *apiServer // nil while stopped
	api, minAPI string
	liveRestore bool
	editInfo    []func(*system.Info)
	lastID      int // of IDs

	containers  map[string]*fakeContainer // containers, by ID
	leakedNames map[string]bool           // taken by nobody
	execs       map[string]*execSession
	removeTakes time.Duration
	oomFloor    int

	containerdLost bool
	shimHangs      chan struct{} // execs are not started before it is closed; nil for at once

	programs      map[string]Program
	startFailures map[string]StartFailure

	images     map[string]*fakeImage // by ID
	refs       map[string]string     // familiar names, tagged or digested, to IDs
	registries map[string]*Remote    // what registries have, by normalized name
	pulls      []Pull

	pastEvents    []events.Message
	subscribers   map[*subscriber]struct{}
	dropEvents    bool
	lastEventTime int64

	callCounts map[string]int
	faults     []*fault
	delays     []delay
	hooks      map[string][]func()
}

// A apiServer is one life of the Engine's API, from start to stop.
type apiServer struct {
	ctx    context.Context
	cancel context.CancelFunc
	l      net.Listener
	srv    *http.Server
	calls  sync.WaitGroup // handlers under way

	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

// An Option is a way in which an Engine can differ from others from its start.
type Option func(*Engine)

// API makes it an Engine that speaks API versions up to newest, for example "1.51".
func API(newest string) Option { return func(e *Engine) { e.api = newest } }

// LiveRestore makes it an Engine whose containers outlive it.
func LiveRestore() Option { return func(e *Engine) { e.liveRestore = true } }

// Info changes what it says of itself, as SetInfo does.
func Info(edit func(*system.Info)) Option {
	return func(e *Engine) { e.editInfo = append(e.editInfo, edit) }
}

// New starts an Engine that lives as long as t.
func New(t testing.TB, opts ...Option) *Engine {
	t.Helper()
	// Not t.TempDir: what a test is called may be longer than the path of a
	// socket can be.
	dir, err := os.MkdirTemp("", "engine")
	if err != nil {
		t.Fatal(err)
	}
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
			t.Error("enginetest: a program goes on although its context has ended")
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
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

// Client returns a client of e that has agreed on an API version.
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

// Stop makes the Engine go away: its socket is gone, connections and event
// streams break, calls under way get no answer. Unless it is an Engine with live
// restore, its containers end with 137.
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
	_ = r.l.Close() // the server may not have begun
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

// Restart stops the Engine if it runs, and starts it again on the same socket
// with the same containers and images. Past events and exec sessions are
// forgotten.
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

// Version makes it an Engine that speaks API versions up to newest from now on,
// as if it had been upgraded or downgraded; clients that have agreed on a newer
// one are refused.
func (e *Engine) Version(newest string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.api = newest
}

// MinAPI has it refuse clients that speak an API older than oldest.
func (e *Engine) MinAPI(oldest string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.minAPI = oldest
}

// SetLiveRestore tells whether containers outlive the Engine.
func (e *Engine) SetLiveRestore(on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.liveRestore = on
}

// SetInfo changes what the Engine says of itself in GET /info. The features
// that it checks orders against (runtimes, cgroup driver) follow.
func (e *Engine) SetInfo(edit func(*system.Info)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.editInfo = append(e.editInfo, edit)
}

// Reload has it read its configuration again, as SIGHUP does, and find what edit
// changes in GET /info.
func (e *Engine) Reload(edit func(*system.Info)) {
	e.SetInfo(edit)
	e.Event(events.Message{Type: events.DaemonEventType, Action: events.ActionReload})
}

// Leftovers names everything that is not as in a new Engine, images apart:
// containers in whatever state, and exec sessions that run.
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

// newIDLocked makes an ID that no other Engine gives. e.mu is held.
func (e *Engine) newIDLocked() string {
	e.lastID++
	return sha256Hex(fmt.Sprintf("%s %d", e.Host, e.lastID))
}

// sha256Hex is the SHA-256 of text in hexadecimal.
func sha256Hex(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}
