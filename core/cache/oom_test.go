package cache_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"berth/core/cgroup"
	"berth/core/engine/enginetest"
)

// fakeOOM reports what its field killed says, and records its calls.
type fakeOOM struct {
	mu     sync.Mutex // guards following
	killed bool
	calls  []string
}

func (k *fakeOOM) record(method, id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, method+" "+id)
}

func (k *fakeOOM) ExpectCgroup(id string, _ cgroup.Group) func() {
	k.record("expect", id)
	return func() {}
}
func (k *fakeOOM) Running(id string, _ int) { k.record("running", id) }
func (k *fakeOOM) Started(id string)        { k.record("started", id) }
func (k *fakeOOM) KillSent(id string)       { k.record("sigkill", id) }
func (k *fakeOOM) Exited(id string)         { k.record("exited", id) }
func (k *fakeOOM) EventsLost()              { k.record("events lost", "") }
func (k *fakeOOM) Remove(id string)         { k.record("remove", id) }
func (k *fakeOOM) Prune(func(string) bool)  { k.record("prune", "") }

func (k *fakeOOM) OOMKilled(_ context.Context, id string, _ bool, _ int, finished time.Time) bool {
	k.record("killed", id)
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.killed && !finished.IsZero()
}

// callsFor returns the methods that were called for id, without repetitions.
func (k *fakeOOM) callsFor(id string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []string
	for _, call := range k.calls {
		if method, ok := strings.CutSuffix(call, " "+id); ok && !slices.Contains(all, method) {
			all = append(all, method)
		}
	}
	return all
}

// Docker sets State.OOMKilled also if a child process was killed, and may not set it at all:
// OOM decides.
func TestOOMKilledIsDecidedByOOMNotByDocker(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		k := &fakeOOM{killed: killed}
		n := newNode(t, func(n *node) { n.oom = k })
		id := n.container(n.sandbox("web"), "a")
		// Until it is in the cache: events before that are not received.
		n.becomes(id, "CREATED")
		n.start(id)
		n.becomes(id, "RUNNING")
		if !killed {
			n.engine.OOMChild(id)
		}
		if err := n.client.ContainerKill(t.Context(), id, "KILL"); err != nil {
			t.Fatal(err)
		}
		n.becomes(id, "EXITED")
		c, err := n.cache.Container(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Status.GetReason() == "OOMKilled"; got != killed {
			t.Errorf("reason %s, want OOMKilled: %v", c.Status.GetReason(), killed)
		}
		n.remove(id)
		enginetest.Until(t, "Remove is not called for the removed container", func() bool { return slices.Contains(k.callsFor(id), "remove") })
		calls := k.callsFor(id)
		killed, died := slices.Index(calls, "sigkill"), slices.Index(calls, "exited")
		if killed < 0 || died < killed || !slices.Contains(calls, "started") || !slices.Contains(calls, "running") {
			t.Errorf("calls %v, want sigkill before exited, started and running", calls)
		}
	}
}

// slowOOM takes its time to find out why a container exited, as one that waits for Docker's events.
type slowOOM struct {
	fakeOOM
	entered, proceed chan struct{}
}

func (k *slowOOM) OOMKilled(ctx context.Context, id string, flag bool, exitCode int, finished time.Time) bool {
	k.entered <- struct{}{}
	<-k.proceed
	return k.fakeOOM.OOMKilled(ctx, id, flag, exitCode, finished) // which would store the result
}

// A result that is stored when the container has been removed already would stay for good.
func TestOOMForgetsContainerRemovedDuringInspect(t *testing.T) {
	t.Parallel()
	k := &slowOOM{entered: make(chan struct{}, 10), proceed: make(chan struct{})}
	n := newNode(t, func(n *node) { n.oom = k })
	id := n.container(n.sandbox("web"), "a")
	n.becomes(id, "CREATED")
	n.start(id)
	n.becomes(id, "RUNNING")
	if err := n.client.ContainerKill(t.Context(), id, "KILL"); err != nil {
		t.Fatal(err)
	}
	<-k.entered
	n.remove(id)
	enginetest.Until(t, "Remove is not called", func() bool { return slices.Contains(k.callsFor(id), "remove") })
	close(k.proceed)
	enginetest.Until(t, "Remove is not called after OOMKilled", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		stored := slices.Index(k.calls, "killed "+id)
		return stored >= 0 && slices.Contains(k.calls[stored:], "remove "+id)
	})
}

// panickingOOM panics for one container.
type panickingOOM struct {
	fakeOOM
	id string
}

func (k *panickingOOM) Running(id string, pid int) {
	if id == k.id {
		panic("no such cgroup")
	}
	k.fakeOOM.Running(id, pid)
}

// A panic about one container ends neither the daemon nor the updates of others.
func TestPanicWhileInspectingConcernsOneContainer(t *testing.T) {
	k := &panickingOOM{}
	n := newNode(t, func(n *node) { n.oom = k })
	sandbox := n.sandbox("web")
	k.id = n.container(sandbox, "bad")
	good := n.container(sandbox, "good")
	n.start(k.id)
	n.start(good)
	n.becomes(good, "RUNNING")
	if _, err := n.cache.Refresh(t.Context(), k.id); !errdefs.IsInternal(err) {
		t.Errorf("error %v, want Internal", err)
	}
	n.remove(good)
	n.becomes(good, "")
}

// Docker's event of the removal may be lost, and lists do not have the container any more.
func TestForgottenContainerIsRemovedFromOOM(t *testing.T) {
	t.Parallel()
	k := &fakeOOM{}
	n := newNode(t, func(n *node) { n.oom = k })
	id := n.container(n.sandbox("web"), "a")
	n.becomes(id, "CREATED")
	n.engine.DropEvents(true)
	n.remove(id)
	n.cache.Forget(id)
	if calls := k.callsFor(id); !slices.Contains(calls, "remove") {
		t.Errorf("calls %v, want remove among them", calls)
	}
}
