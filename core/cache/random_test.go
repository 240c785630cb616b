package cache_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"

	"berth/core/engine/enginetest"
	"berth/core/testmain"
)

var operations = flag.Int("operations", testmain.Times(2000), "number of operations of TestRandomOperationsConverge")

// Random operations change the Engine through its API, directly, and break its connections.
// Between them the cache must become equal to the Engine.
func TestRandomOperationsConverge(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	n := newNode(t)
	n.engine.SetLiveRestore(true)
	var pods, all []string
	pick := func() string { return all[rng.IntN(len(all))] }
	for op := range *operations {
		switch d := rng.IntN(1000); {
		case len(pods) == 0 || d < 20 && len(pods) < 10:
			pods = append(pods, n.sandbox(fmt.Sprintf("pod%d", op)))
			all = append(all, pods[len(pods)-1])
		case d < 200 && len(all) < 40:
			all = append(all, n.container(pods[rng.IntN(len(pods))], fmt.Sprintf("c%d", op)))
		case d < 450:
			n.start(pick())
		case d < 650:
			n.die(pick(), rng.IntN(3))
		case d < 750:
			second := 1
			if err := n.client.ContainerStop(t.Context(), pick(), container.StopOptions{Timeout: &second}); err != nil {
				t.Fatal(err)
			}
		case d < 790:
			if id := pick(); n.runs(id) {
				n.engine.OOM(id)
			}
		case d < 950:
			id := pick()
			n.remove(id)
			all = slices.DeleteFunc(all, func(s string) bool { return s == id })
			pods = slices.DeleteFunc(pods, func(s string) bool { return s == id })
		case d < 990:
			n.refresh(pick())
		case d < 997:
			n.engine.BreakEvents()
		case d < 998:
			n.engine.SetLiveRestore(rng.IntN(2) == 0)
			n.engine.Stop()
			for range 5 { // without any event
				n.die(pick(), 9)
			}
			n.engine.Restart()
		default:
			n.compare(op, seed)
		}
		if t.Failed() {
			return
		}
	}
	n.compare(*operations, seed)
}

func (n *node) runs(id string) bool {
	c, ok := n.engine.Container(id)
	return ok && c.State.Running
}

// die ends the process of a container, if it runs.
func (n *node) die(id string, code int) {
	if n.runs(id) {
		n.engine.Die(id, code)
	}
}

func (n *node) refresh(id string) {
	// It may fail while the Engine is stopped.
	_, _ = n.cache.Refresh(n.Context(), id)
}

// compare waits until the cache is equal to the Engine.
func (n *node) compare(op int, seed uint64) {
	n.Helper()
	var want, got map[string]string
	equal := func() bool {
		want, got = n.engineState(), n.cacheState()
		return maps.Equal(want, got)
	}
	for limit := time.Now().Add(enginetest.WaitTimeout); !equal(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(limit) {
			n.Fatalf("seed %d, after %d operations (-Engine +cache):\n%s", seed, op, cmp.Diff(want, got))
		}
	}
}

// engineState returns the states of all containers in the Engine, by ID.
func (n *node) engineState() map[string]string {
	states := map[string]string{}
	list, err := n.client.ContainerList(n.Context(), container.ListOptions{All: true})
	if err != nil {
		return map[string]string{"error": err.Error()}
	}
	for _, row := range list {
		c, ok := n.engine.Container(row.ID)
		if !ok {
			continue
		}
		states[row.ID] = fmt.Sprint(c.State.Running, c.State.Running && row.State != "", code(c.State))
	}
	return states
}

func code(s *container.State) int {
	if s.Running {
		return 0
	}
	return s.ExitCode
}

// cacheState returns the same as the cache has it.
func (n *node) cacheState() map[string]string {
	states := map[string]string{}
	containers, err := n.cache.Containers(n.Context(), nil)
	if err != nil {
		return map[string]string{"error": err.Error()}
	}
	for _, c := range containers {
		states[c.ID()] = fmt.Sprint(c.Running, c.Row.GetState().String() == "CONTAINER_RUNNING", c.Status.GetExitCode())
	}
	sandboxes, err := n.cache.Sandboxes(n.Context(), nil)
	if err != nil {
		return map[string]string{"error": err.Error()}
	}
	for _, s := range sandboxes {
		if s.Orphaned {
			n.cache.Forget(s.ID()) // as RemovePodSandbox does
			continue
		}
		c, ok := n.engine.Container(s.ID())
		if !ok {
			states[s.ID()] = "sandbox that does not exist"
			continue
		}
		states[s.ID()] = fmt.Sprint(s.Running, s.Row.GetState().String() == "SANDBOX_READY", code(c.State))
	}
	return states
}
