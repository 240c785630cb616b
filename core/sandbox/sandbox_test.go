package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/checkpoint"
	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/sandbox"
	"berth/core/state"
	"berth/network"
)

// cables are a network of maps. Every step is written down and can be made to
// fail, or to do something else first.
type cables struct {
	mu       sync.Mutex // guards following
	bound    map[string]bool
	attached map[string]bool
	broken   map[string]bool
	before   map[string]func()
	steps    []string
	plans    map[string]*network.Plan // of the last detach, by ID
	kept     []string                 // by the last gc

	detaching func(id string) // called without mu by each Detach; may be nil
}

func newCables() *cables {
	return &cables{bound: map[string]bool{}, attached: map[string]bool{}, broken: map[string]bool{}, before: map[string]func(){}, plans: map[string]*network.Plan{}}
}

var errCut = errors.New("the cable is cut")

func (c *cables) step(name string, do func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.steps = append(c.steps, name)
	if first := c.before[name]; first != nil {
		first()
	}
	if c.broken[name] {
		return errCut
	}
	do()
	return nil
}

func (c *cables) Plan(pod network.Pod) (network.Plan, error) {
	return network.Plan{Pod: pod, Network: "maps"}, c.step("plan", func() {})
}

func (c *cables) Bind(id string, _ int) (string, error) {
	return "/run/netns/" + id, c.step("bind", func() { c.bound[id] = true })
}

func (c *cables) Attach(_ context.Context, plan network.Plan) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")}, c.step("attach", func() { c.attached[plan.Pod.ID] = true })
}

func (c *cables) Detach(_ context.Context, plan *network.Plan, id string) error {
	c.mu.Lock()
	c.plans[id] = plan
	c.mu.Unlock()
	if c.detaching != nil {
		c.detaching(id)
	}
	return c.step("detach", func() { c.forget(id) })
}

func (c *cables) Forget(_ context.Context, id string) error {
	return c.step("forget", func() { c.forget(id) })
}

func (c *cables) forget(id string) {
	delete(c.attached, id)
	delete(c.bound, id)
}

func (c *cables) GC(_ context.Context, keep []string) error {
	return c.step("gc", func() { c.kept = keep })
}

func (c *cables) keys(m map[string]bool) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for id := range m {
		ids = append(ids, id)
	}
	return ids
}

func (c *cables) Attached() []string { return c.keys(c.attached) }
func (c *cables) Bound() []string    { return c.keys(c.bound) }

func (c *cables) Addresses(id string) ([]netip.Addr, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return []netip.Addr{netip.MustParseAddr("10.0.0.7")}, c.attached[id]
}

func (c *cables) InNetNS(string, int) bool { return true }

// breaks has steps fail from now on, and no others.
func (c *cables) breaks(steps ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken, c.steps = map[string]bool{}, nil
	for _, s := range steps {
		c.broken[s] = true
	}
}

// detachedWith returns the plans of the last detach, by ID.
func (c *cables) detachedWith() map[string]*network.Plan {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.plans)
}

// first has do done before each step of that name from now on.
func (c *cables) first(step string, do func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before[step] = do
}

// took returns the steps since the last breaks.
func (c *cables) took() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.steps, " ")
}

// simple stands for the rooms next door: one pause image, no logs, and
// containers that Docker itself ends.
type simple struct {
	docker *client.Client
}

func (simple) Pause(context.Context) (string, error)  { return "pause", nil }
func (simple) ForgetPause()                           {}
func (simple) Keep(context.Context, *cache.Container) {}
func (simple) Drop(string)                            {}
func (s simple) Kill(ctx context.Context, id string) error {
	return s.docker.ContainerKill(ctx, id, "KILL")
}
func (s simple) Remove(ctx context.Context, id string) error {
	err := s.docker.ContainerRemove(ctx, id, container.RemoveOptions{Force: true})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// A room is the sandbox room with what it works on.
type room struct {
	*testing.T
	engine *enginetest.Engine
	client *client.Client
	cables *cables
	view   *cache.Cache
	dir    string
	docker *engine.Engine
	state  sandbox.State
	tmpfs  *fakeTmpfs
	*sandbox.Service
}

func newRoom(t *testing.T) *room { return newRoomOn(t, (*enginetest.Engine).Connect) }

// newRoomOn is newRoom with an Engine that is connected to in another way.
func newRoomOn(t *testing.T, connect func(*enginetest.Engine, testing.TB) *engine.Engine) *room {
	r := &room{T: t, engine: enginetest.New(t), cables: newCables(), dir: t.TempDir(), tmpfs: newFakeTmpfs()}
	r.engine.AddImage(enginetest.Image{Config: container.Config{Entrypoint: []string{"pause"}}}, "pause")
	r.client = r.engine.Client(t)
	r.docker = connect(r.engine, t)
	notes, err := state.Open(filepath.Join(r.dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	if r.state, err = sandbox.OpenState(notes); err != nil {
		t.Fatal(err)
	}
	r.view = cache.New(cache.Config{Network: r.cables, SandboxUpdates: r.state.Updates, Logs: simple{}}, r.docker, slog.New(slog.DiscardHandler))
	enginetest.Background(t, r.view.Run)
	r.serve(false)
	enginetest.Until(t, "no view", func() bool { return r.view.Ready(t.Context()) == nil })
	return r
}

// serve puts a service into the room, as a daemon does that starts.
func (r *room) serve(bridge bool) {
	next := simple{docker: r.client}
	r.Service = sandbox.New(sandbox.Config{
		Docker: r.docker, Cache: r.view, Images: next, Containers: next, Network: r.cables, State: r.state, Log: slog.New(slog.DiscardHandler),
		RunDir: filepath.Join(r.dir, "run"), Bridge: bridge, Checkpoints: checkpoint.Dir(filepath.Join(r.dir, "checkpoints")), Tmpfs: r.tmpfs,
	})
}

// hasty connects to an Engine whose short calls have to be very short.
func hasty(e *enginetest.Engine, t testing.TB) *engine.Engine {
	docker, err := engine.New(engine.Config{Host: e.Host, Timeout: time.Second / 2}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	enginetest.Background(t, docker.Run)
	if _, err := docker.WaitConn(t.Context()); err != nil {
		t.Fatal(err)
	}
	return docker
}

// Run is that of the room, not that of the test.
func (r *room) Run(ctx context.Context, pod *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	return r.Service.Run(ctx, pod, handler)
}

func pod() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "ns", Uid: "u"}, Hostname: "web",
	}
}

var nameOf = names.Name{Container: names.Pod, Pod: "web", Namespace: "ns", UID: "u"}.String()

func (r *room) run() string {
	r.Helper()
	id, err := r.Run(r.Context(), pod(), "")
	if err != nil {
		r.Fatal(err)
	}
	return id
}

// leftovers lists all that a pod may leave.
func (r *room) leftovers() []string {
	left := r.engine.Leftovers()
	for _, id := range r.cables.Bound() {
		left = append(left, "namespace of "+id)
	}
	for _, id := range r.cables.Attached() {
		left = append(left, "attachment of "+id)
	}
	left = append(left, r.tmpfs.mounted()...)
	for _, pattern := range []string{"run/pods/*", "journal/*/*/*", "checkpoints/*"} {
		files, err := filepath.Glob(filepath.Join(r.dir, pattern))
		if err != nil {
			r.Fatal(err)
		}
		left = append(left, files...)
	}
	return left
}

func (r *room) clean(after string) {
	r.Helper()
	if left := r.leftovers(); len(left) > 0 {
		r.Errorf("after %s there is left: %v", after, left)
	}
	if list, err := r.List(r.Context(), nil); err == nil && len(list) > 0 {
		r.Errorf("after %s there are listed: %v", after, list)
	}
}

func TestALife(t *testing.T) {
	r := newRoom(t)
	ctx := t.Context()
	id := r.run()
	s, err := r.Status(ctx, id)
	if err != nil || s.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || s.Status.GetNetwork().GetIp() != "10.0.0.7" {
		t.Errorf("status %v, %v", s, err)
	}
	if got := r.cables.took(); got != "plan bind attach" {
		t.Errorf("network steps %q", got)
	}
	hosts, err := os.ReadFile(filepath.Join(r.dir, "run", "pods", id, "hosts"))
	if err != nil || !strings.Contains(string(hosts), "10.0.0.7\tweb") || !strings.Contains(string(hosts), "fd00::7\tweb") {
		t.Errorf("hosts %q, %v", hosts, err)
	}
	if name, err := os.ReadFile(filepath.Join(r.dir, "run", "pods", id, "hostname")); err != nil || string(name) != "web\n" {
		t.Errorf("hostname %q, %v", name, err)
	}
	if again := r.run(); again != id {
		t.Errorf("the same pod again is %s, want %s", again, id)
	}
	for range 2 {
		if err := r.Stop(ctx, id); err != nil {
			t.Fatal(err)
		}
		if s, err := r.Status(ctx, id); err != nil || s.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("status %v, %v", s, err)
		}
	}
	for range 2 {
		if err := r.Remove(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Status(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("status: %v, want NotFound", err)
	}
	r.clean("a whole life")
	if err := errors.Join(r.Stop(ctx, "nothing"), r.Remove(ctx, "nothing")); err != nil {
		t.Errorf("stop and removal of what is not there: %v", err)
	}
}

// The files say what the Engine calls the host, whatever the kubelet has sent.
func TestOneHostname(t *testing.T) {
	for name, hostname := range map[string]string{"said": "web-0", "too long": strings.Repeat("a", 62) + "-tail", "none": ""} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			config := pod()
			config.Hostname = hostname
			id, err := r.Run(t.Context(), config, "")
			if err != nil {
				t.Fatal(err)
			}
			seen, err := r.client.ContainerInspect(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			for file, want := range map[string]string{"hostname": seen.Config.Hostname + "\n", "hosts": "10.0.0.7\t" + seen.Config.Hostname + "\n"} {
				if text, err := os.ReadFile(filepath.Join(r.dir, "run", "pods", id, file)); err != nil || !strings.Contains("\n"+string(text), "\n"+want) {
					t.Errorf("%s %q, %v; want %q in it", file, text, err, want)
				}
			}
		})
	}
}

// A pod that is asked for again is hidden for that time, and no garbage.
func TestAHiddenPodIsNoGarbage(t *testing.T) {
	r := newRoom(t)
	id := r.run()
	seen, err := r.view.Sandbox(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer r.view.Hide(seen.Name).Reveal()
	enginetest.Background(t, r.RunGC)
	enginetest.Until(t, "no garbage is collected", func() bool {
		r.cables.mu.Lock()
		defer r.cables.mu.Unlock()
		return slices.Contains(r.cables.steps, "gc")
	})
	r.cables.mu.Lock()
	defer r.cables.mu.Unlock()
	if !slices.Equal(r.cables.kept, []string{id}) {
		t.Errorf("kept are %v, want %s", r.cables.kept, id)
	}
}

const noRoom = "no room for files"

func TestRunLeavesNothing(t *testing.T) {
	refuse := func(route string) func(*room, func()) {
		return func(r *room, _ func()) { r.engine.FailOnce(route, http.StatusInternalServerError, 1) }
	}
	lose := func(route string) func(*room, func()) { return func(r *room, _ func()) { r.engine.Lose(route, 1) } }
	hangUpAt := func(route string) func(*room, func()) {
		return func(r *room, hangUp func()) { r.engine.On(route, hangUp) }
	}
	cut := func(steps ...string) func(*room, func()) {
		return func(r *room, _ func()) { r.cables.breaks(steps...) }
	}
	hangUpIn := func(step string) func(*room, func()) {
		return func(r *room, hangUp func()) { r.cables.first(step, hangUp) }
	}
	for name, spoil := range map[string]func(r *room, hangUp func()){
		"create refused":          refuse("POST /containers/create"),
		"create not answered":     lose("POST /containers/create"),
		"hung up in create":       hangUpAt("POST /containers/create"),
		"start refused":           refuse("POST /containers/{id}/start"),
		"start not answered":      lose("POST /containers/{id}/start"),
		"hung up in start":        hangUpAt("POST /containers/{id}/start"),
		"look refused":            refuse("GET /containers/{id}/json"),
		"hung up in look":         hangUpAt("GET /containers/{id}/json"),
		"no plan":                 cut("plan"),
		"no namespace":            cut("bind"),
		"no network":              cut("attach"),
		"hung up in attach":       hangUpIn("attach"),
		"hung up before":          func(_ *room, hangUp func()) { hangUp() },
		"the pause process ends":  func(r *room, _ func()) { r.engine.Program("pause", func(*enginetest.Process) int { return 1 }) },
		"the pause cannot be run": func(r *room, _ func()) { r.engine.FailStart("pause", enginetest.StartFailure{Code: 127}) },
		noRoom:                    func(r *room, _ func()) { block(r.T, filepath.Join(r.dir, "run")) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			r.engine.LoseEvents(true) // or the view has looks of its own
			enginetest.Background(t, r.RunGC)
			ctx, hangUp := context.WithCancel(t.Context())
			defer hangUp()
			spoil(r, hangUp)
			if id, err := r.Run(ctx, pod(), ""); err == nil || id != "" {
				t.Errorf("%q, %v; want an error and no ID", id, err)
			}
			if name == noRoom {
				// Its directory cannot be removed either; the next try does.
				if err := errors.Join(os.Remove(filepath.Join(r.dir, "run")), r.Remove(t.Context(), r.run())); err != nil {
					t.Error(err)
				}
			}
			// What could not be taken back at once is later.
			for limit := time.Now().Add(enginetest.Patience); len(r.leftovers()) > 0 && time.Now().Before(limit); {
				time.Sleep(10 * time.Millisecond)
			}
			if left := r.leftovers(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// block makes path a file, in which nothing can be put.
func block(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAnEngineThatGoesAway has the Engine go in every call of Run, before and
// after it is done. It cannot be taken back then: KeepClean does it later.
func TestAnEngineThatGoesAway(t *testing.T) {
	for _, route := range []string{"POST /containers/create", "POST /containers/{id}/start", "GET /containers/{id}/json"} {
		t.Run(route, func(t *testing.T) {
			r := newRoom(t)
			r.engine.SetLiveRestore(true)
			r.engine.LoseEvents(true)
			enginetest.Background(t, r.RunGC)
			release := r.engine.Hang(route)
			done := make(chan error, 1)
			before := r.engine.Calls(route)
			go func() { _, err := r.Run(t.Context(), pod(), ""); done <- err }()
			enginetest.Until(t, "no call", func() bool { return r.engine.Calls(route) > before })
			r.engine.Stop()
			if err := <-done; err == nil {
				t.Error("no error")
			}
			release()
			r.engine.Restart()
			enginetest.Until(t, fmt.Sprintf("left: %v", r.leftovers()), func() bool { return len(r.leftovers()) == 0 })
			enginetest.Until(t, "no view", func() bool { return r.view.Ready(t.Context()) == nil })
			if err := r.Remove(t.Context(), r.run()); err != nil {
				t.Error(err)
			}
			r.clean("another try")
		})
	}
}

// TestARestartInTheMiddle leaves a pod half made, with a note of it, as a
// daemon that is killed does. The next one asked for the pod makes a whole one.
func TestARestartInTheMiddle(t *testing.T) {
	r := newRoom(t)
	r.cables.breaks("attach", "detach")
	r.engine.Fail("DELETE /containers/{id}", http.StatusInternalServerError)
	if _, err := r.Run(t.Context(), pod(), ""); !errors.Is(err, errCut) {
		t.Fatalf("%v, want that the cable is cut", err)
	}
	if left := r.leftovers(); len(left) < 3 {
		t.Fatalf("left %v, want a container, a namespace and a note", left)
	}
	r.cables.breaks()
	r.engine.Heal("DELETE /containers/{id}")
	id := r.run()
	if left := r.engine.Leftovers(); len(left) != 1 {
		t.Errorf("there are %v", left)
	}
	if err := r.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	r.clean("a second try")
}

func TestNameConflicts(t *testing.T) {
	t.Run("a sandbox that has ended", func(t *testing.T) {
		r := newRoom(t)
		first := r.run()
		r.engine.Die(first, 1)
		if second := r.run(); second == first {
			t.Error("the one that has ended again")
		}
		if left := r.engine.Leftovers(); len(left) != 1 || len(r.cables.Attached()) != 1 {
			t.Errorf("there are %v, attached %v", left, r.cables.Attached())
		}
	})
	t.Run("a stranger", func(t *testing.T) {
		r := newRoom(t)
		if _, err := r.client.ContainerCreate(t.Context(), &container.Config{Image: "pause"}, nil, nil, nil, nameOf); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Run(t.Context(), pod(), ""); !errdefs.IsAlreadyExists(err) {
			t.Errorf("%v, want AlreadyExists", err)
		}
		if left := r.leftovers(); len(left) != 1 {
			t.Errorf("there are %v, want the stranger alone", left)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		r := newRoom(t)
		r.engine.LeakName(nameOf)
		id := r.run()
		if c, _ := r.engine.Container(id); !strings.HasPrefix(c.Name, "/"+nameOf+"_") {
			t.Errorf("it is called %s", c.Name)
		}
		if again := r.run(); again != id {
			t.Errorf("the same pod again is %s, want %s", again, id)
		}
		if err := r.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
		r.clean("a removal")
	})
	t.Run("nobody, and it fails", func(t *testing.T) {
		for name, spoil := range map[string]func(r *room){
			"create not answered": func(r *room) { r.engine.Lose("POST /containers/create", 2) },
			"no network":          func(r *room) { r.cables.breaks("attach") },
		} {
			t.Run(name, func(t *testing.T) {
				r := newRoom(t)
				r.engine.LeakName(nameOf)
				r.cables.first("attach", func() {
					if list, err := r.List(t.Context(), nil); err != nil || len(list) > 0 {
						t.Errorf("half made there are listed %v, %v", list, err)
					}
				})
				spoil(r)
				if _, err := r.Run(t.Context(), pod(), ""); err == nil {
					t.Error("no error")
				}
				r.clean("a failure")
			})
		}
	})
	t.Run("five calls at once", func(t *testing.T) {
		r := newRoom(t)
		var all errgroup.Group
		ids := make([]string, 5)
		for i := range ids {
			all.Go(func() (err error) { ids[i], err = r.Run(t.Context(), pod(), ""); return err })
		}
		if err := all.Wait(); err != nil || len(slices.Compact(ids)) != 1 {
			t.Errorf("%v, %v; want one sandbox", ids, err)
		}
	})
}

func TestAnEngineThatMayNotLowerOOMScores(t *testing.T) {
	r := newRoom(t)
	r.engine.OOMFloor(-500)
	id := r.run()
	if c, _ := r.engine.Container(id); c.HostConfig.OomScoreAdj < -500 || !c.State.Running {
		t.Errorf("it has %d, running %v", c.HostConfig.OomScoreAdj, c.State.Running)
	}
	if err := r.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	r.clean("a removal")
	before := r.engine.Calls("POST /containers/create")
	r.run()
	if n := r.engine.Calls("POST /containers/create") - before; n != 1 {
		t.Errorf("%d creates for the next pod, want one: it is known by now", n)
	}
}

func TestHostNetworkHasNoCables(t *testing.T) {
	r := newRoom(t)
	p := pod()
	p.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
	}}
	id, err := r.Run(t.Context(), p, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Stop(t.Context(), id), r.Remove(t.Context(), id)); err != nil {
		t.Error(err)
	}
	if got := r.cables.took(); got != "" {
		t.Errorf("network steps %q, want none", got)
	}
	r.clean("a removal")
}

func TestStopKeepsThePodUntilItsNetworkIsTakenBack(t *testing.T) {
	r := newRoom(t)
	ctx := t.Context()
	id := r.run()
	r.cables.breaks("detach")
	for range 20 {
		if err := r.Stop(ctx, id); !errors.Is(err, errCut) {
			t.Fatalf("%v, want that the cable is cut: it is so for no time", err)
		}
	}
	r.serve(false)
	r.SetDetachGrace(0)
	r.cables.breaks("detach")
	for try := range 9 {
		if err := r.Stop(ctx, id); !errors.Is(err, errCut) {
			t.Fatalf("try %d: %v, want that the cable is cut", try, err)
		}
		if err := r.Remove(ctx, id); try == 0 && !errors.Is(err, errCut) {
			t.Errorf("removal: %v, want that the cable is cut", err)
		} else if err == nil {
			break // let go of by now
		}
	}
	if got := r.cables.took(); !strings.HasSuffix(got, "forget") {
		t.Errorf("network steps %q, want that it is let go in the end", got)
	}
	if err := r.Remove(ctx, id); err != nil {
		t.Error(err)
	}
	r.clean("ten tries")
}

// ported is a pod with a port of the node.
func ported() *runtimeapi.PodSandboxConfig {
	p := pod()
	p.PortMappings = []*runtimeapi.PortMapping{{HostPort: 8080, ContainerPort: 80}}
	return p
}

// A plugin that is slow to take back does not keep the pause process running.
func TestRollbackDoesNotWaitForPlugins(t *testing.T) {
	r := newRoom(t)
	r.cables.breaks("attach")
	r.cables.first("detach", func() {
		for limit := time.Now().Add(enginetest.Patience); len(r.engine.Leftovers()) > 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Error("it still runs")
				return
			}
		}
	})
	if _, err := r.Run(t.Context(), pod(), ""); !errors.Is(err, errCut) {
		t.Errorf("%v, want that the cable is cut", err)
	}
	r.clean("a rollback")
}

// What a rollback could not take back is taken back later, with all that is known of
// it, by KeepClean or, where the container is still there, with the kubelet's help.
func TestAfterAFailedRollback(t *testing.T) {
	fail := func(r *room) (id string) {
		r.cables.breaks("attach", "detach")
		if _, err := r.Run(r.Context(), ported(), ""); !errors.Is(err, errCut) {
			r.Fatalf("%v, want that the cable is cut", err)
		}
		for id := range r.cables.detachedWith() {
			return id
		}
		return ""
	}
	ports := func(r *room, id string) {
		if plan := r.cables.detachedWith()[id]; plan == nil || plan.Network != "maps" || len(plan.Pod.Ports) != 1 {
			r.Errorf("detached with %+v, want the plan that it was attached with", plan)
		}
	}
	t.Run("KeepClean is woken", func(t *testing.T) {
		r := newRoom(t)
		enginetest.Background(t, r.RunGC)
		enginetest.Until(t, "no round", func() bool { return r.cables.took() == "gc" })
		id := fail(r)
		r.cables.breaks()
		enginetest.Until(t, "it stays", func() bool { return len(r.leftovers()) == 0 })
		ports(r, id)
	})
	t.Run("the kubelet removes it", func(t *testing.T) {
		r := newRoom(t)
		r.engine.Fail("DELETE /containers/{id}", http.StatusInternalServerError)
		id := fail(r)
		r.engine.Heal("DELETE /containers/{id}")
		r.cables.breaks()
		enginetest.Until(t, "it is not shown", func() bool { _, err := r.Status(t.Context(), id); return err == nil })
		if err := r.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
		ports(r, id)
		r.clean("a removal")
	})
}

// An orphan whose network cannot be taken back keeps what tells of it.
func TestOrphansKeepTheirCheckpoints(t *testing.T) {
	r := newRoom(t)
	id, err := r.Run(t.Context(), ported(), "")
	if err != nil {
		t.Fatal(err)
	}
	r.cables.breaks("detach")
	if err := r.client.ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	enginetest.Until(t, "nobody notices", func() bool { s, err := r.Status(t.Context(), id); return err == nil && s.Gone })
	r.view.Forget(id) // as a daemon does that starts then
	enginetest.Background(t, r.RunGC)
	enginetest.Until(t, "no round", func() bool { return strings.Count(r.cables.took(), "gc") > 1 })
	if _, err := os.Stat(filepath.Join(r.dir, "checkpoints", id)); err != nil {
		t.Error(err)
	}
	r.cables.breaks()
	enginetest.Until(t, "it stays", func() bool { return len(r.leftovers()) == 0 })
	if plan := r.cables.detachedWith()[id]; plan == nil || len(plan.Pod.Ports) != 1 {
		t.Errorf("detached with %+v, want its ports", plan)
	}
}

// What hangs does not keep the rest from being cleaned up.
func TestCleansAroundWhatHangs(t *testing.T) {
	for name, tt := range map[string]struct {
		begin func(r *room) (hangs string)
		then  func(r *room)
	}{
		"a pod": {begin: func(r *room) string { return r.run() }},
		"a pod never finished": {begin: func(r *room) string {
			id := r.run()
			if err := r.PutIntent(nameOf); err != nil {
				r.Fatal(err)
			}
			return id
		}},
		"a call": {
			begin: func(*room) string { return "POST /containers/create" },
			then: func(r *room) {
				enginetest.Background(r.T, func(ctx context.Context) error { _, _ = r.Run(ctx, pod(), ""); return nil })
				enginetest.Until(r.T, "no call", func() bool { return r.engine.Calls("POST /containers/create") > 0 })
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			connect := hasty
			if tt.then != nil {
				connect = (*enginetest.Engine).Connect
			}
			r := newRoomOn(t, connect)
			orphan := filepath.Join(r.dir, "run", "pods", strings.Repeat("f", 64))
			if err := os.MkdirAll(orphan, 0o755); err != nil {
				t.Fatal(err)
			}
			release := r.engine.Hang(tt.begin(r))
			if tt.then != nil {
				tt.then(r)
			}
			enginetest.Background(t, r.RunGC)
			t.Cleanup(release)
			enginetest.Until(t, "the orphan stays", func() bool { _, err := os.Stat(orphan); return err != nil })
		})
	}
}

// A network plugin that takes long for some pods does not keep others from being cleaned up.
func TestOrphansAreCleanedUpSideBySide(t *testing.T) {
	r := newRoom(t)
	var all sync.WaitGroup
	all.Add(3)
	r.cables.detaching = func(string) { all.Done(); all.Wait() }
	for _, digit := range []string{"a", "b", "c"} {
		if _, err := r.cables.Bind(strings.Repeat(digit, 64), 1); err != nil {
			t.Fatal(err)
		}
	}
	enginetest.Background(t, r.RunGC)
	enginetest.Until(t, "they wait for each other", func() bool { return len(r.cables.Bound()) == 0 })
}

// A pod that cannot give its network back does not keep the plugins from
// cleaning up.
func TestCollectsWhileSomethingFails(t *testing.T) {
	r := newRoom(t)
	if _, err := r.cables.Bind(strings.Repeat("f", 64), 1); err != nil {
		t.Fatal(err)
	}
	r.cables.breaks("detach")
	enginetest.Background(t, r.RunGC)
	enginetest.Until(t, "nothing is collected", func() bool { return strings.Contains(r.cables.took(), "detach gc") })
	if len(r.cables.Bound()) == 0 {
		t.Error("it was let go of")
	}
}

func TestGoneBehindOurBack(t *testing.T) {
	r := newRoom(t)
	id := r.run()
	if err := r.client.ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	enginetest.Until(t, "nobody notices", func() bool { s, err := r.Status(t.Context(), id); return err == nil && s.Gone })
	if s, err := r.Status(t.Context(), id); err != nil || s.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("status %v, %v; want not ready, so that the kubelet takes it down", s, err)
	}
	if err := errors.Join(r.Stop(t.Context(), id), r.Remove(t.Context(), id)); err != nil {
		t.Error(err)
	}
	r.clean("a removal")
}

// TestPodsFromBeforeDockersBridge has a node change to --network-plugin="" while
// pods run that plugins have attached.
func TestPodsFromBeforeDockersBridge(t *testing.T) {
	for name, end := range map[string]func(r *room, id string) error{
		"running":       func(r *room, id string) error { return r.Remove(r.Context(), id) },
		"ended by then": func(r *room, id string) error { r.engine.Die(id, 1); return r.Remove(r.Context(), id) },
		"replaced": func(r *room, id string) error {
			r.engine.Die(id, 1)
			return r.Remove(r.Context(), r.run())
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			id := r.run()
			r.serve(true)
			r.cables.breaks()
			if err := end(r, id); err != nil {
				t.Error(err)
			}
			if got := r.cables.took(); got != "detach" {
				t.Errorf("network steps %q, want that the old pod gives its address back, and no other", got)
			}
			r.clean("a removal")
		})
	}
	t.Run("forgotten", func(t *testing.T) {
		r := newRoom(t)
		if _, err := r.cables.Bind(strings.Repeat("f", 64), 1); err != nil {
			t.Fatal(err)
		}
		r.serve(true)
		enginetest.Background(t, r.RunGC)
		enginetest.Until(t, "it stays", func() bool { return len(r.leftovers()) == 0 })
	})
}

func TestStopRefusedKeepsThePod(t *testing.T) {
	r := newRoom(t)
	id := r.run()
	r.engine.Unkillable(id, true)
	if err := r.Stop(t.Context(), id); err == nil {
		t.Error("stopped, although it cannot be killed")
	}
	r.engine.Unkillable(id, false)
	if err := errors.Join(r.Stop(t.Context(), id), r.Remove(t.Context(), id)); err != nil {
		t.Error(err)
	}
	r.clean("a removal")
}

// A sandbox of cri-dockerd that was removed with docker rm can leave nothing but its update.
func TestGCRemovesUpdatesOfMissingSandboxes(t *testing.T) {
	r := newRoom(t)
	id := r.run()
	missing := strings.Repeat("0f", 32)
	for _, id := range []string{id, missing} {
		if err := r.state.Updates.Put(id, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: id}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if names, err := r.state.Updates.Names(); err != nil || !slices.Equal(names, []string{id}) {
		t.Errorf("sandboxes with updates = %q, %v, want %s", names, err, id)
	}
}

// Giving up one pod's network may take long. No other pod waits for it.
func TestForgettingANetworkKeepsNoOtherPodWaiting(t *testing.T) {
	r := newRoom(t)
	slow := slowForget{cables: r.cables, entered: make(chan struct{}), leave: make(chan struct{})}
	next := simple{docker: r.client}
	s := sandbox.New(sandbox.Config{
		Docker: r.docker, Cache: r.view, Images: next, Containers: next, Network: slow, State: r.state, Log: slog.New(slog.DiscardHandler),
		RunDir: filepath.Join(r.dir, "run2"), Checkpoints: checkpoint.Dir(filepath.Join(r.dir, "checkpoints2")),
	})
	s.SetDetachGrace(0)
	var ids []string
	for _, name := range []string{"slow", "other"} {
		config := pod()
		config.Metadata.Name = name
		id, err := s.Run(t.Context(), config, "")
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	r.cables.breaks("detach")
	for range 9 {
		if err := s.Stop(t.Context(), ids[0]); err == nil {
			t.Error("stopped with its network attached")
		}
	}
	stopped := make(chan error, 1)
	go func() { stopped <- s.Stop(t.Context(), ids[0]) }()
	<-slow.entered
	r.cables.breaks()
	limited, cancel := context.WithTimeout(t.Context(), enginetest.Patience)
	defer cancel()
	other := make(chan error, 1)
	go func() { other <- s.Stop(limited, ids[1]) }()
	select {
	case err := <-other:
		if err != nil {
			t.Error(err)
		}
	case <-limited.Done():
		t.Error("another pod cannot be stopped meanwhile")
	}
	close(slow.leave)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// slowForget is a network that takes its time to forget a pod.
type slowForget struct {
	*cables
	entered, leave chan struct{}
}

func (s slowForget) Forget(ctx context.Context, id string) error {
	close(s.entered)
	<-s.leave
	return s.cables.Forget(ctx, id)
}

// GC runs beside calls that begin. It must not take away what they have just written down.
func TestGCLeavesIntentsOfRunningCallsAlone(t *testing.T) {
	r := newRoom(t)
	ctx, stop := context.WithCancel(t.Context())
	var gc sync.WaitGroup
	gc.Go(func() {
		for ctx.Err() == nil {
			_ = r.GC(ctx)
		}
	})
	for i := range 30 {
		config := pod()
		config.Metadata.Attempt = uint32(i)
		id, err := r.Run(t.Context(), config, "")
		if err == nil {
			err = r.Remove(t.Context(), id)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	stop()
	gc.Wait()
	r.clean("pods beside a GC that never rests")
}

// An earlier sandbox of the same name is removed as the kubelet would have it removed:
// with its containers, and with its network, even if nothing is recorded of it.
func TestRunReplacesASandboxThatNobodyRemembers(t *testing.T) {
	r := newRoom(t)
	first := r.run()
	inside, err := r.client.ContainerCreate(t.Context(), &container.Config{Image: "pause", Labels: labels.Set{
		Kind: labels.Container, SandboxID: first, Config: `{"metadata":{"name":"c"}}`,
	}.Encode()}, &container.HostConfig{Init: new(bool)}, nil, nil, "k8s_c_web_ns_u_0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.view.Refresh(t.Context(), inside.ID); err != nil {
		t.Fatal(err)
	}
	// What berth and libcni have kept is lost.
	if err := r.cables.Forget(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(r.dir, "checkpoints")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.view.Refresh(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	second := r.run()
	if second == first {
		t.Fatal("the sandbox without a network again")
	}
	if _, asked := r.cables.detachedWith()[first]; !asked {
		t.Error("the plugins were not asked to take the first one's network back")
	}
	if c, there := r.engine.Container(inside.ID); there {
		t.Errorf("its container is still there: %s", c.Name)
	}
}
