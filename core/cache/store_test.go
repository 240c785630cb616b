package cache_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/testmain"
)

// Most tests wait for an Engine that hangs, or for a timeout.
func TestMain(m *testing.M) { testmain.M{M: m}.Run() }

// attached is a Network to which every pod with a known process is attached.
type attached struct{}

func (attached) Addresses(string) ([]netip.Addr, bool, error) {
	return []netip.Addr{netip.MustParseAddr("10.0.0.7")}, true, nil
}
func (attached) InNetNS(_ string, pid int) bool { return pid != 0 }

// fakeLogs calls keep before the result of an inspect is in the cache, and drop once a
// container is removed; both may be nil.
type fakeLogs struct {
	keep func()
	drop func(id string)
}

func (l fakeLogs) Observe(context.Context, *cache.Container) {
	if l.keep != nil {
		l.keep()
	}
}

func (l fakeLogs) Discard(id string) {
	if l.drop != nil {
		l.drop(id)
	}
}

// A node is a cache of a fake Engine.
type node struct {
	*testing.T
	engine *enginetest.Engine
	docker *engine.Engine
	client *client.Client
	cache  *cache.Cache
	logs   fakeLogs
	oom    cache.OOM
}

func newNode(t *testing.T, before ...func(*node)) *node {
	n := &node{T: t, engine: enginetest.New(t)}
	n.engine.AddImage(enginetest.Image{}, "server")
	n.client = n.engine.Client(t)
	for _, do := range before {
		do(n)
	}
	n.docker = n.engine.Connect(t)
	n.cache = cache.New(cache.Config{Network: attached{}, Logs: n.logs, OOM: n.oom}, n.docker, slog.New(slog.DiscardHandler))
	enginetest.Background(t, n.cache.Run)
	return n
}

// sandbox creates a sandbox in the Engine, without the cache.
func (n *node) sandbox(pod string) string {
	n.Helper()
	return n.make(names.Name{Container: names.Pod, Pod: pod, Namespace: "ns", UID: "u"}, labels.Set{
		Kind: labels.Sandbox, Config: fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"ns","uid":"u"}}`, pod), Labels: map[string]string{"app": pod},
	})
}

// container creates a container in a sandbox, without the cache.
func (n *node) container(sandbox, name string) string {
	n.Helper()
	return n.make(names.Name{Container: name, Pod: sandbox[:12], Namespace: "ns", UID: "u"}, labels.Set{
		Kind: labels.Container, SandboxID: sandbox, Config: fmt.Sprintf(`{"metadata":{"name":%q}}`, name), Labels: map[string]string{"app": name},
	})
}

func (n *node) make(name names.Name, set labels.Set) string {
	n.Helper()
	made, err := n.client.ContainerCreate(n.Context(), &container.Config{
		Image: "server", Cmd: []string{"serve"}, Labels: set.Encode(), NetworkDisabled: true,
	}, &container.HostConfig{NetworkMode: "none", Init: new(bool)}, nil, nil, name.String())
	if err != nil {
		n.Fatal(err)
	}
	return made.ID
}

func (n *node) start(id string) {
	n.Helper()
	if err := n.client.ContainerStart(n.Context(), id, container.StartOptions{}); err != nil {
		n.Fatal(err)
	}
}

// remove removes a container from the Engine, without the cache.
func (n *node) remove(id string) {
	n.Helper()
	if err := n.client.ContainerRemove(n.Context(), id, container.RemoveOptions{Force: true}); err != nil {
		n.Fatal(err)
	}
}

// state returns the state of a container in the cache, "" if it does not have it.
func (n *node) state(id string) string {
	c, err := n.cache.Container(n.Context(), id)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(c.Row.GetState().String(), "CONTAINER_")
}

// becomes waits until a container has the state in the cache.
func (n *node) becomes(id, state string) {
	n.Helper()
	enginetest.Until(n, fmt.Sprintf("container %s is %q, want %q", id, n.state(id), state), func() bool { return n.state(id) == state })
}

func TestEventsUpdateTheCache(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	pod := n.sandbox("web")
	id := n.container(pod, "a")
	n.becomes(id, "CREATED")
	n.start(id)
	n.becomes(id, "RUNNING")
	n.engine.OOM(id)
	n.becomes(id, "EXITED")
	c, err := n.cache.Container(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Status; s.GetReason() != "OOMKilled" || s.GetExitCode() != 137 || s.GetFinishedAt() == 0 {
		t.Errorf("status %v, want OOMKilled, 137", s)
	}
	n.remove(id)
	n.becomes(id, "")

	// A sandbox that somebody else removes stays, not ready, until it is forgotten.
	n.start(pod)
	ready := func() string {
		s, err := n.cache.Sandbox(t.Context(), pod)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%v gone=%v", s.Row.GetState(), s.Orphaned)
	}
	enginetest.Until(t, "the sandbox does not become ready", func() bool { return ready() == "SANDBOX_READY gone=false" })
	n.remove(pod)
	enginetest.Until(t, "the sandbox stays ready", func() bool { return ready() == "SANDBOX_NOTREADY gone=true" })
	n.cache.Forget(pod)
	if _, err := n.cache.Sandbox(t.Context(), pod); !errdefs.IsNotFound(err) {
		t.Errorf("a forgotten sandbox: %v, want NotFound", err)
	}
}

func TestReadsMakeNoEngineCalls(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	pod := n.sandbox("web")
	id := n.container(pod, "a")
	n.becomes(id, "CREATED")
	enginetest.Until(t, "the sandbox is not in the cache", func() bool { _, err := n.cache.Sandbox(t.Context(), pod); return err == nil })
	// Inspects after the create events may still be running. One round without calls is
	// proof, since a read that makes a call does so each time.
	enginetest.Until(t, "reads ask the Engine", func() bool {
		before := n.engine.Calls()
		for range 100 {
			for _, err := range []error{
				second(n.cache.Containers(t.Context(), nil)), second(n.cache.Sandboxes(t.Context(), nil)),
				second(n.cache.Container(t.Context(), id)), second(n.cache.Sandbox(t.Context(), pod)),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		return n.engine.Calls() == before
	})
}

func second[T any](_ T, err error) error { return err }

func TestFilters(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	pod, other := n.sandbox("web"), n.sandbox("db")
	a, b, c := n.container(pod, "a"), n.container(pod, "b"), n.container(other, "c")
	n.start(b)
	n.becomes(a, "CREATED")
	n.becomes(b, "RUNNING")
	n.becomes(c, "CREATED")
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	for name, tt := range map[string]struct {
		filter *runtimeapi.ContainerFilter
		want   []string
	}{
		"all":                    {nil, []string{c, b, a}},
		"by ID":                  {&runtimeapi.ContainerFilter{Id: a}, []string{a}},
		"by the prefix of an ID": {&runtimeapi.ContainerFilter{Id: a[:10]}, []string{a}},
		"by sandbox":             {&runtimeapi.ContainerFilter{PodSandboxId: pod}, []string{b, a}},
		"by state":               {&runtimeapi.ContainerFilter{State: running}, []string{b}},
		"by label":               {&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"app": "c"}}, []string{c}},
		"by sandbox and label":   {&runtimeapi.ContainerFilter{PodSandboxId: pod, LabelSelector: map[string]string{"app": "c"}}, nil},
		"by an unknown ID":       {&runtimeapi.ContainerFilter{Id: "nothing"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := n.cache.Containers(t.Context(), tt.filter)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range list {
				got = append(got, c.ID())
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("got %v, want %v, the newest first", got, tt.want)
			}
		})
	}
}

func TestSyncAfterBrokenEventStream(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	pod := n.sandbox("web")
	running, exited, removed := n.container(pod, "running"), n.container(pod, "exited"), n.container(pod, "removed")
	for _, id := range []string{running, exited, removed} {
		n.start(id)
		n.becomes(id, "RUNNING")
	}
	// All this without an event stream.
	release := n.engine.Hang("GET /containers/json")
	n.engine.BreakEvents()
	listening := func() bool { return n.engine.Listeners() > 1 } // one is for reloads of the Engine
	n.engine.Die(exited, 3)
	n.remove(removed)
	release()
	enginetest.Until(t, "no new event stream", listening)
	n.becomes(exited, "EXITED")
	n.becomes(removed, "")
	n.becomes(running, "RUNNING")
}

func TestNoStaleReadsAfterReconnect(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.engine.SetLiveRestore(true)
	id := n.container(n.sandbox("web"), "a")
	n.start(id)
	n.becomes(id, "RUNNING")
	n.engine.Stop()
	enginetest.Until(t, "the stopped Engine still has a connection", func() bool { _, err := n.docker.Conn(); return err != nil })
	if _, err := n.cache.Containers(t.Context(), nil); !errdefs.IsUnavailable(err) {
		t.Errorf("list while the Engine is stopped: %v, want Unavailable", err)
	}
	n.engine.Die(id, 4)
	n.engine.Restart()
	if _, err := n.docker.WaitConn(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The first read after the reconnect has the current state.
	c, err := n.cache.Container(t.Context(), id)
	if err != nil || c.Status.GetExitCode() != 4 {
		t.Errorf("status %v, %v; want exit code 4", c, err)
	}
}

func TestRefreshReadsYourWrites(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	id := n.container(n.sandbox("web"), "a")
	n.becomes(id, "CREATED")
	n.engine.DropEvents(true)
	for range 20 {
		n.start(id)
		if _, err := n.cache.Refresh(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if s := n.state(id); s != "RUNNING" {
			t.Fatalf("state %s right after the start, want RUNNING", s)
		}
		n.engine.Die(id, 0)
		if _, err := n.cache.Refresh(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if s := n.state(id); s != "EXITED" {
			t.Fatalf("state %s right after the end, want EXITED", s)
		}
	}
	n.remove(id)
	if _, err := n.cache.Refresh(t.Context(), id); !errdefs.IsNotFound(err) || n.state(id) != "" {
		t.Errorf("refresh of a removed container: %v, state %q", err, n.state(id))
	}
}

// A slow inspect must not bring back a container that was removed meanwhile, even if it is
// the first inspect of it.
func TestLateInspectDoesNotRestoreRemovedContainer(t *testing.T) {
	t.Parallel()
	inspected, removed := make(chan struct{}, 10), make(chan struct{})
	n := newNode(t, func(n *node) {
		n.logs.keep = func() {
			inspected <- struct{}{}
			<-removed
		}
	})
	if err := n.cache.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := n.container(n.sandbox("web"), "a")
	<-inspected // and not in the cache yet
	n.remove(id)
	if _, err := n.cache.Refresh(t.Context(), id); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want NotFound", err)
	}
	close(removed)
	time.Sleep(100 * time.Millisecond)
	if s := n.state(id); s != "" {
		t.Errorf("a removed container is %s", s)
	}
}

func TestHungInspectDelaysNoOtherContainer(t *testing.T) {
	t.Parallel()
	var hung, other string
	var release func()
	n := newNode(t, func(n *node) {
		pod := n.sandbox("web")
		hung, other = n.container(pod, "hung"), n.container(pod, "other")
		n.start(hung)
		release = n.engine.Hang("GET /containers/" + hung + "/json")
	})
	defer release()
	// Other containers are current while the inspect hangs.
	enginetest.Until(t, "the cache does not get in sync", func() bool { return n.cache.Ready(t.Context()) == nil })
	began := time.Now()
	n.start(other)
	n.becomes(other, "RUNNING")
	n.engine.Die(other, 1)
	n.becomes(other, "EXITED")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("changes of another container took %v", took)
	}
	// The hung one is known from the list.
	if s := n.state(hung); s != "RUNNING" {
		t.Errorf("the hung one is %q, want RUNNING, as in the list", s)
	}
	release()
	enginetest.Until(t, "the hung one is not inspected again", func() bool {
		c, err := n.cache.Container(t.Context(), hung)
		return err == nil && c.Pid > 0
	})
}

func TestFailedInspectIsRetried(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	id := n.container(n.sandbox("web"), "a")
	n.becomes(id, "CREATED")
	n.engine.FailOnce("GET /containers/"+id+"/json", http.StatusInternalServerError, 1)
	n.start(id)
	n.becomes(id, "RUNNING")
}

func TestHiddenSandboxIsNotListed(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	reveal := n.cache.Hide(names.Name{Container: names.Pod, Pod: "web", Namespace: "ns", UID: "u"}.String()).Reveal
	id := n.sandbox("web")
	if _, err := n.cache.Refresh(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if list, err := n.cache.Sandboxes(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("list %v, %v; want none", list, err)
	}
	reveal()
	reveal() // has no effect
	if list, err := n.cache.Sandboxes(t.Context(), nil); err != nil || len(list) != 1 {
		t.Errorf("list %v, %v; want one", list, err)
	}
}

func TestContainersWithoutLabelsAreIgnored(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	made, err := n.client.ContainerCreate(t.Context(), &container.Config{Image: "server"}, nil, nil, nil, "mine")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.cache.Refresh(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := n.cache.Container(t.Context(), made.ID); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want NotFound", err)
	}
}

func TestReconcileLoopRunsOncePerConnection(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	tries := make(chan *engine.Conn, 10)
	failed := errors.New("not yet")
	wake := make(chan struct{})
	enginetest.Background(t, func(ctx context.Context) error {
		return n.cache.ReconcileLoop(ctx, "test", wake, func(_ context.Context, conn *engine.Conn) error {
			tries <- conn
			err := failed
			failed = nil
			return err
		})
	})
	first, second := <-tries, <-tries // the first one failed
	wake <- struct{}{}
	if woken := <-tries; woken != first {
		t.Errorf("woken with connection %p, want %p", woken, first)
	}
	n.engine.Stop()
	enginetest.Until(t, "the stopped Engine still has a connection", func() bool { _, err := n.docker.Conn(); return err != nil })
	n.engine.Restart()
	if third := <-tries; first != second || third == first {
		t.Errorf("connections %p, %p, %p", first, second, third)
	}
}

func TestReconcileLoopBacksOffUntilReconnect(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	tries := make(chan time.Time, 10)
	enginetest.Background(t, func(ctx context.Context) error {
		return n.cache.ReconcileLoop(ctx, "test", nil, func(context.Context, *engine.Conn) error {
			tries <- time.Now()
			return errors.New("not yet")
		})
	})
	<-tries
	second, third := <-tries, <-tries
	if pause := third.Sub(second); pause < 1500*time.Millisecond {
		t.Errorf("the second pause was %v", pause)
	}
	conn, err := n.docker.Conn()
	if err != nil {
		t.Fatal(err)
	}
	n.docker.MarkBroken(conn, errors.New("no answer within 5s"))
	if pause := (<-tries).Sub(third); pause > 3*time.Second {
		t.Errorf("%v until the next connection was used", pause)
	}
}

// After an Engine was too busy to answer in time there is a new connection, while the event
// stream of the old one is not broken.
func TestSyncsWithNewConnectionWhileOldEventStreamLives(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	id := n.container(n.sandbox("web"), "a")
	n.becomes(id, "CREATED")
	for range 3 {
		conn, err := n.docker.Conn()
		if err != nil {
			t.Fatal(err)
		}
		n.docker.MarkBroken(conn, errors.New("no answer within 5s"))
		limit := time.Now().Add(10 * time.Second)
		for n.cache.Ready(t.Context()) != nil {
			if time.Now().After(limit) {
				t.Fatal("the cache does not get in sync")
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	n.start(id)
	n.becomes(id, "RUNNING")
}

// describe returns the state of a container or sandbox in the cache.
func (n *node) describe(id string) string {
	n.Helper()
	if s, err := n.cache.Sandbox(n.Context(), id); err == nil {
		return fmt.Sprintf("%v %s pid=%v started=%d", s.Row.GetState(), s.Status.GetNetwork().GetIp(), s.Pid > 0, s.StartedAt)
	}
	c, err := n.cache.Container(n.Context(), id)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%v %s %d pid=%v started=%d", c.Row.GetState(), c.Status.GetReason(), c.Status.GetExitCode(), c.Pid > 0, c.Status.GetStartedAt())
}

// collectEvents collects the types of events of id from now on.
func (n *node) collectEvents(id string) (received func() string) {
	var mu sync.Mutex
	var all []string
	enginetest.Background(n.T, func(ctx context.Context) error {
		err := n.cache.Subscribe(ctx, func(e *runtimeapi.ContainerEventResponse) error {
			mu.Lock()
			defer mu.Unlock()
			if e.GetContainerId() == id {
				all = append(all, strings.TrimSuffix(strings.TrimPrefix(e.GetContainerEventType().String(), "CONTAINER_"), "_EVENT"))
			}
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
	time.Sleep(50 * time.Millisecond) // it is subscribed by then
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(all, " ")
	}
}

// hang makes all inspects of ids hang until release is called.
func (n *node) hang(ids ...string) (release func()) {
	var all []func()
	for _, id := range ids {
		all = append(all, n.engine.Hang("GET /containers/"+id+"/json"))
	}
	return func() {
		for _, r := range all {
			r()
		}
	}
}

// If inspects hang during a sync, the last inspect is kept where the state is that of the
// list; a new state is taken from the list.
func TestHungInspectKeepsLastState(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	pod := n.sandbox("web")
	running, exited, dies := n.container(pod, "running"), n.container(pod, "exited"), n.container(pod, "dies")
	for _, id := range []string{pod, running, exited, dies} {
		n.start(id)
	}
	n.engine.Die(exited, 3)
	n.becomes(running, "RUNNING")
	n.becomes(exited, "EXITED")
	n.becomes(dies, "RUNNING")
	enginetest.Until(t, "the pod is not ready", func() bool { return strings.HasPrefix(n.describe(pod), "SANDBOX_READY 10.0.0.7 pid=true") })
	before := map[string]string{pod: n.describe(pod), running: n.describe(running), exited: n.describe(exited)}
	started := n.describe(dies)[strings.Index(n.describe(dies), "started="):]
	received := map[string]func() string{pod: n.collectEvents(pod), running: n.collectEvents(running), exited: n.collectEvents(exited), dies: n.collectEvents(dies)}

	release := n.hang(pod, running, exited, dies)
	defer release()
	releaseList := n.engine.Hang("GET /containers/json")
	n.engine.BreakEvents()
	enginetest.Until(t, "the cache is in sync without an event stream", func() bool { return n.cache.Ready(t.Context()) != nil })
	n.engine.Die(dies, 4)
	releaseList()
	enginetest.Until(t, "the cache does not get in sync", func() bool { return n.cache.Ready(t.Context()) == nil })
	check := func(when string) {
		t.Helper()
		for id, want := range before {
			if got := n.describe(id); got != want {
				t.Errorf("%s: got %q, want %q", when, got, want)
			}
			if got := received[id](); got != "" {
				t.Errorf("%s: events %s, want none", when, got)
			}
		}
		if got, want := n.describe(dies), "CONTAINER_EXITED Error 4 pid=false "+started; got != want {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
		enginetest.Until(t, when+": no event of the exit", func() bool { return received[dies]() != "" })
		if got, want := received[dies](), "STOPPED"; got != want {
			t.Errorf("%s: events %q, want %q", when, got, want)
		}
	}
	check("while inspects hang")
	release()
	for _, id := range []string{pod, running, exited, dies} {
		if _, err := n.cache.Refresh(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	check("afterwards")
}

// A container whose first inspect hangs is taken from the list. Logs does not get it, because
// a list entry has no log path.
func TestHungFirstInspectUsesTheList(t *testing.T) {
	t.Parallel()
	var pod, running, exited string
	var kept atomic.Int32
	var release func()
	n := newNode(t, func(n *node) {
		pod = n.sandbox("web")
		running, exited = n.container(pod, "running"), n.container(pod, "exited")
		for _, id := range []string{pod, running, exited} {
			n.start(id)
		}
		n.engine.Die(exited, 3)
		release = n.hang(pod, running, exited)
		n.logs.keep = func() { kept.Add(1) }
	})
	defer release()
	enginetest.Until(t, "the cache does not get in sync", func() bool { return n.cache.Ready(t.Context()) == nil })
	for id, want := range map[string]string{
		pod:     "SANDBOX_READY 10.0.0.7 pid=false",
		running: "CONTAINER_RUNNING  0 pid=false",
		exited:  "CONTAINER_EXITED Error 3 pid=false",
	} {
		if got := n.describe(id); !strings.HasPrefix(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := kept.Load(); got != 0 {
		t.Errorf("Logs got %d containers from the list, want none", got)
	}
	received := n.collectEvents(running)
	release()
	enginetest.Until(t, "not inspected after the release", func() bool {
		return strings.Contains(n.describe(pod), "pid=true") && strings.Contains(n.describe(running), "pid=true")
	})
	// The start time has changed from an estimate, which is no transition.
	if got := received(); got != "" {
		t.Errorf("events %s, want none", got)
	}
}

// A container that the Engine did not have for a while, perhaps because a disk was mounted
// late, is in the cache again.
func TestContainerReturnsAfterNotFound(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	id := n.container(n.sandbox("web"), "a")
	n.start(id)
	n.becomes(id, "RUNNING")
	n.engine.Fail("GET /containers/"+id+"/json", http.StatusNotFound)
	if _, err := n.cache.Refresh(t.Context(), id); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want NotFound", err)
	}
	n.becomes(id, "")
	n.engine.ClearFaults("GET /containers/" + id + "/json")
	n.engine.BreakEvents()
	n.becomes(id, "RUNNING")
}

// A container that was created after the list was made is not in it, and must not be removed.
func TestLateListDoesNotRemoveNewContainer(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	dropped := map[string]bool{}
	n := newNode(t, func(n *node) {
		n.logs.drop = func(id string) {
			mu.Lock()
			defer mu.Unlock()
			dropped[id] = true
		}
	})
	pod := n.sandbox("web")
	slow := n.container(pod, "slow")
	n.becomes(slow, "CREATED")
	inspects := make(chan struct{}, 100)
	lists := n.engine.Calls("GET /containers/json")
	n.engine.On("GET /containers/"+slow+"/json", func() {
		if n.engine.Calls("GET /containers/json") > lists { // else the inspect is older than the list
			inspects <- struct{}{}
		}
	})
	release := n.hang(slow)
	defer release()
	n.engine.BreakEvents()
	<-inspects // after the list
	id := n.container(pod, "a")
	if _, err := n.cache.Refresh(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	release()
	n.becomes(id, "CREATED")
	mu.Lock()
	defer mu.Unlock()
	if dropped[id] {
		t.Error("the log of a new container was dropped")
	}
}

// Logs acts on the state that it gets last, so it must get the states of a container in order.
func TestLogsGetStatesInOrder(t *testing.T) {
	t.Parallel()
	var concurrent, kept atomic.Int32
	var holding, overlap atomic.Bool
	hold := make(chan struct{})
	n := newNode(t, func(n *node) {
		n.logs.keep = func() {
			if concurrent.Add(1) > 1 {
				overlap.Store(true)
			}
			kept.Add(1)
			if holding.Load() {
				<-hold
			}
			concurrent.Add(-1)
		}
	})
	id := n.container(n.sandbox("web"), "a")
	n.becomes(id, "CREATED")
	n.engine.DropEvents(true)
	refresh := func() <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := n.cache.Refresh(t.Context(), id)
			done <- err
		}()
		return done
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	// Two inspects with the same result.
	holding.Store(true)
	began := kept.Load()
	first := refresh()
	enginetest.Until(t, "Keep is not called", func() bool { return kept.Load() == began+1 })
	second := refresh()
	time.Sleep(100 * time.Millisecond)
	holding.Store(false)
	close(hold)
	must(<-first)
	must(<-second)
	if overlap.Load() {
		t.Error("Keep was called twice at the same time")
	}

	// An inspect that is slower than a later one.
	arrived, proceed := make(chan struct{}), make(chan struct{})
	var held atomic.Bool
	n.engine.On("GET /containers/"+id+"/json", func() {
		if held.CompareAndSwap(false, true) {
			close(arrived)
			<-proceed
		}
	})
	began = kept.Load()
	first = refresh()
	<-arrived
	must(<-refresh())
	close(proceed)
	must(<-first)
	if got := kept.Load() - began; got != 1 {
		t.Errorf("Keep was called %d times, want once: the first inspect is stale", got)
	}
}

// A container belongs to a pod only while it has a Docker name of that form, which no image
// can set.
func TestRenamedContainersDoNotBelongToPods(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	pod := n.sandbox("web")
	id := n.container(pod, "c")
	n.start(pod)
	n.becomes(id, "CREATED")
	ready := func(want runtimeapi.PodSandboxState) {
		t.Helper()
		enginetest.Until(n, want.String(), func() bool {
			s, err := n.cache.Sandbox(t.Context(), pod)
			return err == nil && s.Row.GetState() == want
		})
	}
	ready(runtimeapi.PodSandboxState_SANDBOX_READY)
	for _, what := range []string{id, pod} {
		if err := n.client.ContainerRename(t.Context(), what, "mine-"+what[:6]); err != nil {
			t.Fatal(err)
		}
	}
	n.becomes(id, "")
	ready(runtimeapi.PodSandboxState_SANDBOX_NOTREADY) // until RemovePodSandbox
	if err := n.client.ContainerRename(t.Context(), id, names.Name{Container: "c", Pod: pod[:12], Namespace: "ns", UID: "u"}.String()); err != nil {
		t.Fatal(err)
	}
	n.becomes(id, "CREATED")
}

// The first event about a pod must show its sandbox ready: a kubelet that uses events (feature
// gate EventedPLEG) would take the pod for one without a ready sandbox.
func TestEventsOfHiddenSandboxAreSentWhenRevealed(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	var mu sync.Mutex
	var got []string
	subscribed := make(chan struct{})
	enginetest.Background(t, func(ctx context.Context) error {
		close(subscribed)
		_ = n.cache.Subscribe(ctx, func(e *runtimeapi.ContainerEventResponse) error {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, fmt.Sprint(e.GetContainerEventType(), " ", e.GetPodSandboxStatus().GetState()))
			return nil
		})
		return nil
	})
	<-subscribed
	hidden := n.cache.Hide(names.Name{Container: names.Pod, Pod: "web", Namespace: "ns", UID: "u"}.String())
	id := n.sandbox("web")
	n.start(id)
	enginetest.Until(t, "the sandbox does not run", func() bool {
		s, err := n.cache.Sandbox(t.Context(), id)
		return err == nil && s.Running
	})
	mu.Lock()
	if len(got) > 0 {
		t.Errorf("while it is hidden: %v", got)
	}
	mu.Unlock()
	hidden.Reveal()
	want := []string{"CONTAINER_CREATED_EVENT SANDBOX_READY", "CONTAINER_STARTED_EVENT SANDBOX_READY"}
	enginetest.Until(t, "events are missing", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got) >= len(want)
	})
	if !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}

	// A sandbox that is never revealed has no events.
	hidden = n.cache.Hide(names.Name{Container: names.Pod, Pod: "incomplete", Namespace: "ns", UID: "u"}.String())
	incomplete := n.sandbox("incomplete")
	if _, err := n.cache.Refresh(t.Context(), incomplete); err != nil {
		t.Fatal(err)
	}
	n.remove(incomplete)
	n.cache.Forget(incomplete)
	hidden.Reveal()
	n.container(id, "after")
	enginetest.Until(t, "no event of the next container", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got) > len(want)
	})
	if last := got[len(got)-1]; last != "CONTAINER_CREATED_EVENT SANDBOX_READY" || len(got) != len(want)+1 {
		t.Errorf("events %v", got)
	}
}

// Docker's event of a change has the container inspected, too: one inspect is enough for both.
func TestRefreshUnlessWaitsForTheInspectOfAnEvent(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	id := n.container(n.sandbox("web"), "a")
	n.becomes(id, "CREATED")
	started := func(c *cache.Container) bool { return c.State != container.StateCreated }
	inspect := "GET /containers/" + id + "/json"
	release := n.engine.Hang(inspect)
	defer release()
	var inspects atomic.Int32
	n.engine.On(inspect, func() { inspects.Add(1) })
	n.start(id)
	enginetest.Until(t, "the event is not seen", func() bool { return inspects.Load() > 0 })
	refreshed := make(chan error, 1)
	go func() { refreshed <- n.cache.RefreshUnless(t.Context(), id, started) }()
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := n.cache.RefreshUnless(short, id, started); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller that leaves: %v", err)
	}
	release()
	if err := <-refreshed; err != nil {
		t.Fatal(err)
	}
	if state, calls := n.state(id), inspects.Load(); state != "RUNNING" || calls != 1 {
		t.Errorf("%s after %d inspects, want RUNNING after one", state, calls)
	}
	if err := n.cache.RefreshUnless(t.Context(), id, func(*cache.Container) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if calls := inspects.Load(); calls < 2 { // more if it was audited meanwhile
		t.Errorf("%d inspects, want another one for what the cache does not have", calls)
	}
	if err := n.cache.RefreshUnless(t.Context(), strings.Repeat("0", 64), started); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want NotFound", err)
	}
}
