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

// kernel knows of kills what it is told, and writes down what it is told by the view.
type kernel struct {
	mu     sync.Mutex // guards following
	killed bool
	heard  []string
}

func (k *kernel) hear(what, id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.heard = append(k.heard, what+" "+id)
}

func (k *kernel) Expect(id string, _ cgroup.Group) func() { k.hear("expect", id); return func() {} }
func (k *kernel) Running(id string, _ int)                { k.hear("running", id) }
func (k *kernel) Started(id string)                       { k.hear("started", id) }
func (k *kernel) Slain(id string)                         { k.hear("slain", id) }
func (k *kernel) Died(id string)                          { k.hear("died", id) }
func (k *kernel) Deaf()                                   { k.hear("deaf", "") }
func (k *kernel) Drop(id string)                          { k.hear("drop", id) }
func (k *kernel) Forget(func(string) bool)                { k.hear("forget", "") }

func (k *kernel) Killed(_ context.Context, id string, _ bool, _ int, finished time.Time) bool {
	k.hear("killed", id)
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.killed && !finished.IsZero()
}

// about returns what was heard of id, without repetitions.
func (k *kernel) about(id string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []string
	for _, line := range k.heard {
		if what, ok := strings.CutSuffix(line, " "+id); ok && !slices.Contains(all, what) {
			all = append(all, what)
		}
	}
	return all
}

// Docker's flag is for the life of a container and may be missing: it is the kernel's count
// that says whether one is OOMKilled.
func TestOOMKilledIsNotDockersWord(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		k := &kernel{killed: killed}
		n := newNode(t, func(n *node) { n.oom = k })
		id := n.container(n.sandbox("web"), "a")
		// The events of what is started before the view listens are never heard.
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
		c, err := n.view.Container(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Status.GetReason() == "OOMKilled"; got != killed {
			t.Errorf("reason %s, want OOMKilled: %v", c.Status.GetReason(), killed)
		}
		n.remove(id)
		enginetest.Until(t, "it is not dropped", func() bool { return slices.Contains(k.about(id), "drop") })
		heard := k.about(id)
		slain, died := slices.Index(heard, "slain"), slices.Index(heard, "died")
		if slain < 0 || died < slain || !slices.Contains(heard, "started") || !slices.Contains(heard, "running") {
			t.Errorf("heard of %v", heard)
		}
	}
}

// A brokenKernel panics for one container.
type brokenKernel struct {
	kernel
	id string
}

func (k *brokenKernel) Running(id string, pid int) {
	if id == k.id {
		panic("no such cgroup")
	}
	k.kernel.Running(id, pid)
}

// A container that berth cannot cope with ends neither the daemon nor what is known of the others.
func TestPanicWhileInspectingConcernsOneContainer(t *testing.T) {
	k := &brokenKernel{}
	n := newNode(t, func(n *node) { n.oom = k })
	sandbox := n.sandbox("web")
	k.id = n.container(sandbox, "bad")
	good := n.container(sandbox, "good")
	n.start(k.id)
	n.start(good)
	n.becomes(good, "RUNNING")
	if _, err := n.view.Refresh(t.Context(), k.id); !errdefs.IsInternal(err) {
		t.Errorf("error %v, want Internal", err)
	}
	n.remove(good)
	n.becomes(good, "")
}
