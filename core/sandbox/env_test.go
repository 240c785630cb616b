package sandbox_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/checkpoint"
	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/names"
	"berth/core/ociruntime"
	"berth/core/podpolicy"
	"berth/core/sandbox"
	"berth/core/specfiles"
	"berth/core/state"
	"berth/network"
)

// fakeNetwork keeps its state in maps. It records every step, and tests can make
// steps fail or call a hook before them.
type fakeNetwork struct {
	mu       sync.Mutex // guards following
	bound    map[string]bool
	attached map[string]bool
	failing  map[string]bool   // by step
	hooks    map[string]func() // called before a step
	steps    []string
	plans    map[string]*network.Plan // of the last detach, by ID
	kept     []string                 // by the last gc

	detaching func(id string) // called without mu by each Detach; may be nil
}

func newFakeNetwork() *fakeNetwork {
	return &fakeNetwork{bound: map[string]bool{}, attached: map[string]bool{}, failing: map[string]bool{}, hooks: map[string]func(){}, plans: map[string]*network.Plan{}}
}

var errNetwork = errors.New("network step failed")

func (n *fakeNetwork) step(name string, do func()) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.steps = append(n.steps, name)
	if first := n.hooks[name]; first != nil {
		first()
	}
	if n.failing[name] {
		return errNetwork
	}
	do()
	return nil
}

func (n *fakeNetwork) Plan(pod network.Pod) (network.Plan, error) {
	return network.Plan{Pod: pod, Network: "maps"}, n.step("plan", func() {})
}

func (n *fakeNetwork) Bind(id string, _ int) (string, error) {
	return "/run/netns/" + id, n.step("bind", func() { n.bound[id] = true })
}

func (n *fakeNetwork) Attach(_ context.Context, plan network.Plan) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")}, n.step("attach", func() { n.attached[plan.Pod.ID] = true })
}

func (n *fakeNetwork) Detach(_ context.Context, plan *network.Plan, id string) error {
	n.mu.Lock()
	n.plans[id] = plan
	n.mu.Unlock()
	if n.detaching != nil {
		n.detaching(id)
	}
	return n.step("detach", func() { n.forget(id) })
}

func (n *fakeNetwork) Forget(_ context.Context, id string) error {
	return n.step("forget", func() { n.forget(id) })
}

func (n *fakeNetwork) forget(id string) {
	delete(n.attached, id)
	delete(n.bound, id)
}

func (n *fakeNetwork) GC(_ context.Context, keep []string) error {
	return n.step("gc", func() { n.kept = keep })
}

func (n *fakeNetwork) keys(m map[string]bool) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ids []string
	for id := range m {
		ids = append(ids, id)
	}
	return ids
}

func (n *fakeNetwork) Attached() ([]string, error) { return n.keys(n.attached), nil }
func (n *fakeNetwork) Bound() ([]string, error)    { return n.keys(n.bound), nil }

func (n *fakeNetwork) Addresses(id string) ([]netip.Addr, bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return []netip.Addr{netip.MustParseAddr("10.0.0.7")}, n.attached[id], nil
}

func (n *fakeNetwork) InNetNS(string, int) bool { return true }

// fail makes these steps fail from now on, and no others. It clears the record of steps.
func (n *fakeNetwork) fail(steps ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failing, n.steps = map[string]bool{}, nil
	for _, s := range steps {
		n.failing[s] = true
	}
}

// detachedWith returns the plans of the last detach, by ID.
func (n *fakeNetwork) detachedWith() map[string]*network.Plan {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.plans)
}

// before makes do run before each step of that name from now on.
func (n *fakeNetwork) before(step string, do func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hooks[step] = do
}

// stepNames returns the steps since the last fail.
func (n *fakeNetwork) stepNames() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.steps, " ")
}

// fakeServices replaces packages image, logs and container: there is one pause image and no
// logs, and Docker itself kills and removes containers.
type fakeServices struct {
	docker *client.Client
}

func (fakeServices) Pause(context.Context) (string, error)     { return "pause", nil }
func (fakeServices) ForgetPause()                              {}
func (fakeServices) Observe(context.Context, *cache.Container) {}
func (fakeServices) Discard(string)                            {}
func (s fakeServices) Kill(ctx context.Context, id string) error {
	return s.docker.ContainerKill(ctx, id, "KILL")
}
func (s fakeServices) Remove(ctx context.Context, id string) error {
	err := s.docker.ContainerRemove(ctx, id, container.RemoveOptions{Force: true})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// env is a Service with everything that it uses.
type env struct {
	*testing.T
	engine  *enginetest.Engine
	client  *client.Client
	network *fakeNetwork
	cache   *cache.Cache
	dir     string
	docker  *engine.Engine
	state   sandbox.State
	tmpfs   *fakeTmpfs
	policy  podpolicy.Policy // of the next start
	oci     *ociruntime.Store
	*sandbox.Service
}

func newEnv(t *testing.T) *env { return newEnvWith(t, (*enginetest.Engine).Connect) }

// newEnvWith is newEnv with another way to connect to the Engine.
func newEnvWith(t *testing.T, connect func(*enginetest.Engine, testing.TB) *engine.Engine) *env {
	e := &env{T: t, engine: enginetest.New(t), network: newFakeNetwork(), dir: t.TempDir(), tmpfs: newFakeTmpfs()}
	e.engine.AddImage(enginetest.Image{Config: container.Config{Entrypoint: []string{"pause"}}}, "pause")
	e.client = e.engine.Client(t)
	e.docker = connect(e.engine, t)
	e.oci = ociruntime.New(filepath.Join(e.dir, "oci"), func(engine.Features) error { return nil })
	store, err := state.Open(filepath.Join(e.dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	if e.state, err = sandbox.OpenState(store); err != nil {
		t.Fatal(err)
	}
	e.cache = cache.New(cache.Config{Network: e.network, SandboxUpdates: e.state.Updates, Logs: fakeServices{}}, e.docker, slog.New(slog.DiscardHandler))
	enginetest.Background(t, e.cache.Run)
	e.start(false)
	enginetest.Until(t, "the cache is not in sync", func() bool { return e.cache.Ready(t.Context()) == nil })
	return e
}

// start creates a new Service on the same state, as a restart of the daemon does.
func (e *env) start(bridge bool) {
	services := fakeServices{docker: e.client}
	e.Service = sandbox.New(sandbox.Config{
		Docker: e.docker, Cache: e.cache, Images: services, Containers: services, Network: e.network, State: e.state, Log: slog.New(slog.DiscardHandler),
		RunDir: filepath.Join(e.dir, "run"), Bridge: bridge, Checkpoints: checkpoint.Dir(filepath.Join(e.dir, "checkpoints")), Tmpfs: e.tmpfs, Policy: e.policy, OCI: e.oci, SpecFiles: specfiles.Config{SpecDir: filepath.Join(e.dir, "spec.d")},
	})
}

// connectWithShortTimeout connects to an Engine with a request timeout of half a second.
func connectWithShortTimeout(e *enginetest.Engine, t testing.TB) *engine.Engine {
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

// Run calls the Run of the Service; the one of testing.T would be ambiguous.
func (e *env) Run(ctx context.Context, pod *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	return e.Service.Run(ctx, pod, handler)
}

func pod() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "ns", Uid: "u"}, Hostname: "web",
	}
}

var dockerName = names.Name{Container: names.Pod, Pod: "web", Namespace: "ns", UID: "u"}.String()

func (e *env) run() string {
	e.Helper()
	id, err := e.Run(e.Context(), pod(), "")
	if err != nil {
		e.Fatal(err)
	}
	return id
}

// leftovers lists everything that a pod can leave.
func (e *env) leftovers() []string {
	left := e.engine.Leftovers()
	for _, id := range e.network.keys(e.network.bound) {
		left = append(left, "namespace of "+id)
	}
	for _, id := range e.network.keys(e.network.attached) {
		left = append(left, "attachment of "+id)
	}
	left = append(left, e.tmpfs.mounted()...)
	for _, pattern := range []string{"run/pods/*", "state/*/*/*", "checkpoints/*", "oci/*"} {
		files, err := filepath.Glob(filepath.Join(e.dir, pattern))
		if err != nil {
			e.Fatal(err)
		}
		left = append(left, files...)
	}
	return left
}

func (e *env) requireClean(after string) {
	e.Helper()
	if left := e.leftovers(); len(left) > 0 {
		e.Errorf("left after %s: %v", after, left)
	}
	if list, err := e.List(e.Context(), nil); err == nil && len(list) > 0 {
		e.Errorf("listed after %s: %v", after, list)
	}
}

// podWithHostPort returns the config of a pod with a host port.
func podWithHostPort() *runtimeapi.PodSandboxConfig {
	p := pod()
	p.PortMappings = []*runtimeapi.PortMapping{{HostPort: 8080, ContainerPort: 80}}
	return p
}
