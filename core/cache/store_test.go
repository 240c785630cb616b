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

// Most tests wait for an Engine that hangs, or for time to pass.
func TestMain(m *testing.M) { testmain.M{M: m}.Run() }

// attached is a network that every pod is on whose process is known.
type attached struct{}

func (attached) Addresses(string) ([]netip.Addr, bool) {
	return []netip.Addr{netip.MustParseAddr("10.0.0.7")}, true
}
func (attached) InNetNS(_ string, pid int) bool { return pid != 0 }

// noLogs keeps none. Keep is called, if there is one, before a container that
// was looked at is put into the view, and drop once it is gone.
type noLogs struct {
	keep func()
	drop func(id string)
}

func (l noLogs) Keep(context.Context, *cache.Container) {
	if l.keep != nil {
		l.keep()
	}
}

func (l noLogs) Drop(id string) {
	if l.drop != nil {
		l.drop(id)
	}
}

// A node is a view of an Engine.
type node struct {
	*testing.T
	engine *enginetest.Engine
	docker *engine.Engine
	client *client.Client
	view   *cache.Cache
	logs   noLogs
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
	n.view = cache.New(cache.Config{Network: attached{}, Logs: n.logs, OOM: n.oom}, n.docker, slog.New(slog.DiscardHandler))
	enginetest.Background(t, n.view.Run)
	return n
}

// sandbox makes a sandbox in the Engine, behind the view's back.
func (n *node) sandbox(pod string) string {
	n.Helper()
	return n.make(names.Name{Container: names.Pod, Pod: pod, Namespace: "ns", UID: "u"}, labels.Set{
		Kind: labels.Sandbox, Config: fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"ns","uid":"u"}}`, pod), Labels: map[string]string{"app": pod},
	})
}

// container makes a container in a sandbox, behind the view's back.
func (n *node) container(sandbox, name string) string {
	n.Helper()
	return n.make(names.Name{Container: name, Pod: sandbox[:12], Namespace: "ns", UID: "u"}, labels.Set{
		Kind: labels.Container, SandboxID: sandbox, Config: fmt.Sprintf(`{"metadata":{"name":%q}}`, name), Labels: map[string]string{"app": name},
	})
}

func (n *node) make(name names.Name, said labels.Set) string {
	n.Helper()
	made, err := n.client.ContainerCreate(n.Context(), &container.Config{
		Image: "server", Cmd: []string{"serve"}, Labels: said.Encode(), NetworkDisabled: true,
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

// remove removes a container, behind the view's back.
func (n *node) remove(id string) {
	n.Helper()
	if err := n.client.ContainerRemove(n.Context(), id, container.RemoveOptions{Force: true}); err != nil {
		n.Fatal(err)
	}
}

// state is what the view says of a container, "" if it has none.
func (n *node) state(id string) string {
	c, err := n.view.Container(n.Context(), id)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(c.Row.GetState().String(), "CONTAINER_")
}

// becomes waits for the view to say so.
func (n *node) becomes(id, state string) {
	n.Helper()
	enginetest.Until(n, fmt.Sprintf("container %s is %q, want %q", id, n.state(id), state), func() bool { return n.state(id) == state })
}

func TestEventsAreFollowed(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	pod := n.sandbox("web")
	id := n.container(pod, "a")
	n.becomes(id, "CREATED")
	n.start(id)
	n.becomes(id, "RUNNING")
	n.engine.OOM(id)
	n.becomes(id, "EXITED")
	c, err := n.view.Container(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Status; s.GetReason() != "OOMKilled" || s.GetExitCode() != 137 || s.GetFinishedAt() == 0 {
		t.Errorf("status %v, want killed for want of memory", s)
	}
	n.remove(id)
	n.becomes(id, "")

	// A sandbox that goes behind our back is not ready, until it is forgotten.
	n.start(pod)
	ready := func() string {
		s, err := n.view.Sandbox(t.Context(), pod)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%v gone=%v", s.Row.GetState(), s.Gone)
	}
	enginetest.Until(t, "the sandbox does not get ready", func() bool { return ready() == "SANDBOX_READY gone=false" })
	n.remove(pod)
	enginetest.Until(t, "the sandbox stays ready", func() bool { return ready() == "SANDBOX_NOTREADY gone=true" })
	n.view.Forget(pod)
	if _, err := n.view.Sandbox(t.Context(), pod); !errdefs.IsNotFound(err) {
		t.Errorf("a forgotten sandbox: %v, want NotFound", err)
	}
}

func TestAsksNothingOfTheEngine(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	pod := n.sandbox("web")
	id := n.container(pod, "a")
	n.becomes(id, "CREATED")
	enginetest.Until(t, "no sandbox", func() bool { _, err := n.view.Sandbox(t.Context(), pod); return err == nil })
	// What follows up the events of the creates may still be under way: one
	// round that costs nothing is proof, since a read that asks does so each time.
	enginetest.Until(t, "reads ask the Engine", func() bool {
		before := n.engine.Calls()
		for range 100 {
			for _, err := range []error{
				second(n.view.Containers(t.Context(), nil)), second(n.view.Sandboxes(t.Context(), nil)),
				second(n.view.Container(t.Context(), id)), second(n.view.Sandbox(t.Context(), pod)),
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
		"all":                  {nil, []string{c, b, a}},
		"by ID":                {&runtimeapi.ContainerFilter{Id: a}, []string{a}},
		"by part of an ID":     {&runtimeapi.ContainerFilter{Id: a[:10]}, []string{a}},
		"by sandbox":           {&runtimeapi.ContainerFilter{PodSandboxId: pod}, []string{b, a}},
		"by state":             {&runtimeapi.ContainerFilter{State: running}, []string{b}},
		"by label":             {&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"app": "c"}}, []string{c}},
		"by sandbox and label": {&runtimeapi.ContainerFilter{PodSandboxId: pod, LabelSelector: map[string]string{"app": "c"}}, nil},
		"by what is not there": {&runtimeapi.ContainerFilter{Id: "nothing"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := n.view.Containers(t.Context(), tt.filter)
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

func TestResyncAfterABrokenStream(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	pod := n.sandbox("web")
	stays, dies, goes := n.container(pod, "stays"), n.container(pod, "dies"), n.container(pod, "goes")
	for _, id := range []string{stays, dies, goes} {
		n.start(id)
		n.becomes(id, "RUNNING")
	}
	// All this while nobody listens.
	list := n.engine.Hang("GET /containers/json")
	n.engine.BreakEvents()
	listening := func() bool { return n.engine.Listeners() > 1 } // one is for the Engine's configuration
	n.engine.Die(dies, 3)
	n.remove(goes)
	list()
	enginetest.Until(t, "nobody listens again", listening)
	n.becomes(dies, "EXITED")
	n.becomes(goes, "")
	n.becomes(stays, "RUNNING")
}

func TestNoOldAnswersAfterTheEngineWasAway(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.engine.SetLiveRestore(true)
	id := n.container(n.sandbox("web"), "a")
	n.start(id)
	n.becomes(id, "RUNNING")
	n.engine.Stop()
	enginetest.Until(t, "nobody notices that the Engine is away", func() bool { _, err := n.docker.Conn(); return err != nil })
	if _, err := n.view.Containers(t.Context(), nil); !errdefs.IsUnavailable(err) {
		t.Errorf("list while the Engine is away: %v, want Unavailable", err)
	}
	n.engine.Die(id, 4)
	n.engine.Restart()
	if _, err := n.docker.WaitConn(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The first answer after it is back is that of the Engine as it is now.
	c, err := n.view.Container(t.Context(), id)
	if err != nil || c.Status.GetExitCode() != 4 {
		t.Errorf("status %v, %v; want exit code 4", c, err)
	}
}

func TestReadYourWrites(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	id := n.container(n.sandbox("web"), "a")
	n.becomes(id, "CREATED")
	n.engine.LoseEvents(true)
	for range 20 {
		n.start(id)
		if _, err := n.view.Refresh(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if s := n.state(id); s != "RUNNING" {
			t.Fatalf("state %s right after the start, want RUNNING", s)
		}
		n.engine.Die(id, 0)
		if _, err := n.view.Refresh(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if s := n.state(id); s != "EXITED" {
			t.Fatalf("state %s right after the end, want EXITED", s)
		}
	}
	n.remove(id)
	if _, err := n.view.Refresh(t.Context(), id); !errdefs.IsNotFound(err) || n.state(id) != "" {
		t.Errorf("refresh of what is gone: %v, state %q", err, n.state(id))
	}
}

// A slow look must not bring back what was removed meanwhile, even if it is the
// first that would have been seen of it.
func TestLateLooksBringNothingBack(t *testing.T) {
	t.Parallel()
	looked, removed := make(chan struct{}, 10), make(chan struct{})
	n := newNode(t, func(n *node) {
		n.logs.keep = func() {
			looked <- struct{}{}
			<-removed
		}
	})
	if err := n.view.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := n.container(n.sandbox("web"), "a")
	<-looked // and not in the view yet
	n.remove(id)
	if _, err := n.view.Refresh(t.Context(), id); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want NotFound", err)
	}
	close(removed)
	time.Sleep(100 * time.Millisecond)
	if s := n.state(id); s != "" {
		t.Errorf("a removed container is %s", s)
	}
}

func TestOneHungContainerDelaysNoOther(t *testing.T) {
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
	// While it runs: the others are told of at once.
	enginetest.Until(t, "no view", func() bool { return n.view.Ready(t.Context()) == nil })
	began := time.Now()
	n.start(other)
	n.becomes(other, "RUNNING")
	n.engine.Die(other, 1)
	n.becomes(other, "EXITED")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("another container's news took %v", took)
	}
	// The hung one is not hidden: the list has told of it.
	if s := n.state(hung); s != "RUNNING" {
		t.Errorf("the hung one is %q, want RUNNING, as the list says", s)
	}
	release()
	enginetest.Until(t, "the hung one is never looked at", func() bool {
		c, err := n.view.Container(t.Context(), hung)
		return err == nil && c.Pid > 0
	})
}

func TestAFailedLookIsTriedAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	id := n.container(n.sandbox("web"), "a")
	n.becomes(id, "CREATED")
	n.engine.FailOnce("GET /containers/"+id+"/json", http.StatusInternalServerError, 1)
	n.start(id)
	n.becomes(id, "RUNNING")
}

func TestHalfMadeThingsAreHidden(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	done := n.view.Hide(names.Name{Container: names.Pod, Pod: "web", Namespace: "ns", UID: "u"}.String()).Reveal
	id := n.sandbox("web")
	if _, err := n.view.Refresh(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if list, err := n.view.Sandboxes(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("list %v, %v; want none", list, err)
	}
	done()
	done() // no harm
	if list, err := n.view.Sandboxes(t.Context(), nil); err != nil || len(list) != 1 {
		t.Errorf("list %v, %v; want one", list, err)
	}
}

func TestWhatIsNotOursIsNotSeen(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	made, err := n.client.ContainerCreate(t.Context(), &container.Config{Image: "server"}, nil, nil, nil, "mine")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.view.Refresh(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := n.view.Container(t.Context(), made.ID); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want NotFound", err)
	}
}

func TestEachRunsOnceAConnection(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	tries := make(chan *engine.Conn, 10)
	failed := errors.New("not yet")
	wake := make(chan struct{})
	enginetest.Background(t, func(ctx context.Context) error {
		return n.view.ReconcileLoop(ctx, "test", wake, func(_ context.Context, conn *engine.Conn) error {
			tries <- conn
			err := failed
			failed = nil
			return err
		})
	})
	first, again := <-tries, <-tries // the first one failed
	wake <- struct{}{}
	if woken := <-tries; woken != first {
		t.Errorf("woken with connection %p, want %p", woken, first)
	}
	n.engine.Stop()
	enginetest.Until(t, "nobody notices that the Engine is away", func() bool { _, err := n.docker.Conn(); return err != nil })
	n.engine.Restart()
	if third := <-tries; first != again || third == first {
		t.Errorf("connections %p, %p, %p", first, again, third)
	}
}

// What fails is tried again ever more seldom, but at once where the Engine has
// gone and come back.
func TestEachLosesPatience(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	tries := make(chan time.Time, 10)
	enginetest.Background(t, func(ctx context.Context) error {
		return n.view.ReconcileLoop(ctx, "test", nil, func(context.Context, *engine.Conn) error {
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

// An Engine that was too busy to answer in time is connected to again, and the
// stream of the connection before is as good as ever: nothing breaks it.
func TestAnotherConnectionBesideAStreamThatLives(t *testing.T) {
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
		for n.view.Ready(t.Context()) != nil {
			if time.Now().After(limit) {
				t.Fatal("nothing is answered any more")
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	n.start(id)
	n.becomes(id, "RUNNING")
}

// says is what there is to say of a container or sandbox, but for its mounts
// and names.
func (n *node) says(id string) string {
	n.Helper()
	if s, err := n.view.Sandbox(n.Context(), id); err == nil {
		return fmt.Sprintf("%v %s pid=%v started=%d", s.Row.GetState(), s.Status.GetNetwork().GetIp(), s.Pid > 0, s.StartedAt)
	}
	c, err := n.view.Container(n.Context(), id)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%v %s %d pid=%v started=%d", c.Row.GetState(), c.Status.GetReason(), c.Status.GetExitCode(), c.Pid > 0, c.Status.GetStartedAt())
}

// told collects the kinds of changes told of id from now on.
func (n *node) told(id string) (sofar func() string) {
	var mu sync.Mutex
	var all []string
	enginetest.Background(n.T, func(ctx context.Context) error {
		err := n.view.Subscribe(ctx, func(e *runtimeapi.ContainerEventResponse) error {
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

// hang has all looks at ids hang until release is called.
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

// What is known stays when the Engine cannot tell it again; what is news is as
// the list has it.
func TestAHungLookUndoesNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	pod := n.sandbox("web")
	runs, ended, dies := n.container(pod, "runs"), n.container(pod, "ended"), n.container(pod, "dies")
	for _, id := range []string{pod, runs, ended, dies} {
		n.start(id)
	}
	n.engine.Die(ended, 3)
	n.becomes(runs, "RUNNING")
	n.becomes(ended, "EXITED")
	n.becomes(dies, "RUNNING")
	enginetest.Until(t, "the pod is not ready", func() bool { return strings.HasPrefix(n.says(pod), "SANDBOX_READY 10.0.0.7 pid=true") })
	before := map[string]string{pod: n.says(pod), runs: n.says(runs), ended: n.says(ended)}
	started := n.says(dies)[strings.Index(n.says(dies), "started="):]
	told := map[string]func() string{pod: n.told(pod), runs: n.told(runs), ended: n.told(ended), dies: n.told(dies)}

	release := n.hang(pod, runs, ended, dies)
	defer release()
	list := n.engine.Hang("GET /containers/json")
	n.engine.BreakEvents()
	enginetest.Until(t, "the break is not noticed", func() bool { return n.view.Ready(t.Context()) != nil })
	n.engine.Die(dies, 4)
	list()
	enginetest.Until(t, "no view", func() bool { return n.view.Ready(t.Context()) == nil })
	check := func(when string) {
		t.Helper()
		for id, want := range before {
			if got := n.says(id); got != want {
				t.Errorf("%s: got %q, want %q", when, got, want)
			}
			if got := told[id](); got != "" {
				t.Errorf("%s: told of %s", when, got)
			}
		}
		if got, want := n.says(dies), "CONTAINER_EXITED Error 4 pid=false "+started; got != want {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
		if got, want := told[dies](), "STOPPED"; got != want {
			t.Errorf("%s: told of %q, want %q", when, got, want)
		}
	}
	check("hung")
	release()
	for _, id := range []string{pod, runs, ended, dies} {
		if _, err := n.view.Refresh(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	check("after it")
}

// What is not known yet is as the list has it. Of that no log is kept, for the
// list does not tell which file it is in.
func TestAHungFirstLook(t *testing.T) {
	t.Parallel()
	var pod, runs, ended string
	var kept atomic.Int32
	var release func()
	n := newNode(t, func(n *node) {
		pod = n.sandbox("web")
		runs, ended = n.container(pod, "runs"), n.container(pod, "ended")
		for _, id := range []string{pod, runs, ended} {
			n.start(id)
		}
		n.engine.Die(ended, 3)
		release = n.hang(pod, runs, ended)
		n.logs.keep = func() { kept.Add(1) }
	})
	defer release()
	enginetest.Until(t, "no view", func() bool { return n.view.Ready(t.Context()) == nil })
	for id, want := range map[string]string{
		pod:   "SANDBOX_READY 10.0.0.7 pid=false",
		runs:  "CONTAINER_RUNNING  0 pid=false",
		ended: "CONTAINER_EXITED Error 3 pid=false",
	} {
		if got := n.says(id); !strings.HasPrefix(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := kept.Load(); got != 0 {
		t.Errorf("the logs of %d containers are kept by what the list says", got)
	}
	told := n.told(runs)
	release()
	enginetest.Until(t, "never looked at", func() bool {
		return strings.Contains(n.says(pod), "pid=true") && strings.Contains(n.says(runs), "pid=true")
	})
	// When it was started is known better now, and no news.
	if got := told(); got != "" {
		t.Errorf("told of %s", got)
	}
}

// What was not there for a while, perhaps because a disk was mounted late, is
// seen again.
func TestWhatTheEngineHasAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	id := n.container(n.sandbox("web"), "a")
	n.start(id)
	n.becomes(id, "RUNNING")
	n.engine.Fail("GET /containers/"+id+"/json", http.StatusNotFound)
	if _, err := n.view.Refresh(t.Context(), id); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want NotFound", err)
	}
	n.becomes(id, "")
	n.engine.Heal("GET /containers/" + id + "/json")
	n.engine.BreakEvents()
	n.becomes(id, "RUNNING")
}

// A container that came up after the list was made is not in it, and not gone.
func TestALateListTakesNothingAway(t *testing.T) {
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
	looks := make(chan struct{}, 100)
	lists := n.engine.Calls("GET /containers/json")
	n.engine.On("GET /containers/"+slow+"/json", func() {
		if n.engine.Calls("GET /containers/json") > lists { // it is no look of before
			looks <- struct{}{}
		}
	})
	release := n.hang(slow)
	defer release()
	n.engine.BreakEvents()
	<-looks // the list is there
	id := n.container(pod, "a")
	if _, err := n.view.Refresh(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	release()
	n.becomes(id, "CREATED")
	mu.Lock()
	defer mu.Unlock()
	if dropped[id] {
		t.Error("the log of a container that is there was let go")
	}
}

// What is said to the logs must not be older than what was said before, for they do
// what they are told last.
func TestLogsAreToldInOrder(t *testing.T) {
	t.Parallel()
	var inside, kept atomic.Int32
	var holding, overlap atomic.Bool
	hold := make(chan struct{})
	n := newNode(t, func(n *node) {
		n.logs.keep = func() {
			if inside.Add(1) > 1 {
				overlap.Store(true)
			}
			kept.Add(1)
			if holding.Load() {
				<-hold
			}
			inside.Add(-1)
		}
	})
	id := n.container(n.sandbox("web"), "a")
	n.becomes(id, "CREATED")
	n.engine.LoseEvents(true)
	refresh := func() <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := n.view.Refresh(t.Context(), id)
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

	// Two that have both seen it.
	holding.Store(true)
	began := kept.Load()
	first := refresh()
	enginetest.Until(t, "not kept", func() bool { return kept.Load() == began+1 })
	second := refresh()
	time.Sleep(100 * time.Millisecond)
	holding.Store(false)
	close(hold)
	must(<-first)
	must(<-second)
	if overlap.Load() {
		t.Error("told of two looks at the same time")
	}

	// One that has been overtaken.
	came, goOn := make(chan struct{}), make(chan struct{})
	var held atomic.Bool
	n.engine.On("GET /containers/"+id+"/json", func() {
		if held.CompareAndSwap(false, true) {
			close(came)
			<-goOn
		}
	})
	began = kept.Load()
	first = refresh()
	<-came
	must(<-refresh())
	close(goOn)
	must(<-first)
	if got := kept.Load() - began; got != 1 {
		t.Errorf("told %d times, want once: the first look was overtaken", got)
	}
}

// A container is a pod's as long as it has the name of one, which no image can give it.
func TestRenamedContainersBelongToNobody(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	pod := n.sandbox("web")
	id := n.container(pod, "c")
	n.start(pod)
	n.becomes(id, "CREATED")
	ready := func(want runtimeapi.PodSandboxState) {
		t.Helper()
		enginetest.Until(n, want.String(), func() bool {
			s, err := n.view.Sandbox(t.Context(), pod)
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
	ready(runtimeapi.PodSandboxState_SANDBOX_NOTREADY) // until the kubelet has had it removed
	if err := n.client.ContainerRename(t.Context(), id, names.Name{Container: "c", Pod: pod[:12], Namespace: "ns", UID: "u"}.String()); err != nil {
		t.Fatal(err)
	}
	n.becomes(id, "CREATED")
}

// The first event about a pod shows it as it is once it is complete: a kubelet that
// goes by events would otherwise take it for one without a ready sandbox.
func TestEventsOfAHiddenSandboxComeOnceItIsRevealed(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	var mu sync.Mutex
	var got []string
	subscribed := make(chan struct{})
	enginetest.Background(t, func(ctx context.Context) error {
		close(subscribed)
		_ = n.view.Subscribe(ctx, func(e *runtimeapi.ContainerEventResponse) error {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, fmt.Sprint(e.GetContainerEventType(), " ", e.GetPodSandboxStatus().GetState()))
			return nil
		})
		return nil
	})
	<-subscribed
	hidden := n.view.Hide(names.Name{Container: names.Pod, Pod: "web", Namespace: "ns", UID: "u"}.String())
	id := n.sandbox("web")
	n.start(id)
	enginetest.Until(t, "the sandbox does not run", func() bool {
		s, err := n.view.Sandbox(t.Context(), id)
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

	// One that never is complete has none.
	hidden = n.view.Hide(names.Name{Container: names.Pod, Pod: "half", Namespace: "ns", UID: "u"}.String())
	half := n.sandbox("half")
	if _, err := n.view.Refresh(t.Context(), half); err != nil {
		t.Fatal(err)
	}
	n.remove(half)
	n.view.Forget(half)
	hidden.Reveal()
	n.container(id, "after")
	enginetest.Until(t, "no event of what comes after", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got) > len(want)
	})
	if last := got[len(got)-1]; last != "CONTAINER_CREATED_EVENT SANDBOX_READY" || len(got) != len(want)+1 {
		t.Errorf("events %v", got)
	}
}
