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
)

var operations = flag.Int("operations", 2000, "how many things TestAnythingMayHappen does")

// TestAnythingMayHappen does many things to an Engine: by its API, behind
// everybody's back, and to its connections. Whenever it is quiet the view must
// say what the Engine has.
func TestAnythingMayHappen(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	n := newNode(t)
	n.engine.SetLiveRestore(true)
	var pods, all []string
	pick := func() string { return all[dice.IntN(len(all))] }
	for op := range *operations {
		switch d := dice.IntN(1000); {
		case len(pods) == 0 || d < 20 && len(pods) < 10:
			pods = append(pods, n.sandbox(fmt.Sprintf("pod%d", op)))
			all = append(all, pods[len(pods)-1])
		case d < 200 && len(all) < 40:
			all = append(all, n.container(pods[dice.IntN(len(pods))], fmt.Sprintf("c%d", op)))
		case d < 450:
			n.start(pick())
		case d < 650:
			n.die(pick(), dice.IntN(3))
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
			n.engine.SetLiveRestore(dice.IntN(2) == 0)
			n.engine.Stop()
			for range 5 { // while nobody can know
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

// die ends a container by itself, if it runs.
func (n *node) die(id string, code int) {
	if n.runs(id) {
		n.engine.Die(id, code)
	}
}

func (n *node) refresh(id string) {
	// It may fail while the Engine is away, which is no matter.
	_, _ = n.view.Refresh(n.Context(), id)
}

// compare waits for the view to say what the Engine has.
func (n *node) compare(op int, seed uint64) {
	n.Helper()
	var want, got map[string]string
	same := func() bool {
		want, got = n.engineSays(), n.viewSays()
		return maps.Equal(want, got)
	}
	for limit := time.Now().Add(enginetest.Patience); !same(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(limit) {
			n.Fatalf("seed %d, after %d operations (-Engine +view):\n%s", seed, op, cmp.Diff(want, got))
		}
	}
}

// engineSays is the state of all there is, by ID.
func (n *node) engineSays() map[string]string {
	says := map[string]string{}
	list, err := n.client.ContainerList(n.Context(), container.ListOptions{All: true})
	if err != nil {
		return map[string]string{"error": err.Error()}
	}
	for _, row := range list {
		c, ok := n.engine.Container(row.ID)
		if !ok {
			continue
		}
		says[row.ID] = fmt.Sprint(c.State.Running, c.State.Running && row.State != "", code(c.State))
	}
	return says
}

func code(s *container.State) int {
	if s.Running {
		return 0
	}
	return s.ExitCode
}

// viewSays is the same as the view has it.
func (n *node) viewSays() map[string]string {
	says := map[string]string{}
	containers, err := n.view.Containers(n.Context(), nil)
	if err != nil {
		return map[string]string{"view": err.Error()}
	}
	for _, c := range containers {
		says[c.ID()] = fmt.Sprint(c.Running, c.Row.GetState().String() == "CONTAINER_RUNNING", c.Status.GetExitCode())
	}
	sandboxes, err := n.view.Sandboxes(n.Context(), nil)
	if err != nil {
		return map[string]string{"view": err.Error()}
	}
	for _, s := range sandboxes {
		if s.Gone {
			n.view.Forget(s.ID()) // as the kubelet has it done
			continue
		}
		c, ok := n.engine.Container(s.ID())
		if !ok {
			says[s.ID()] = "a sandbox that is not there"
			continue
		}
		says[s.ID()] = fmt.Sprint(s.Running, s.Row.GetState().String() == "SANDBOX_READY", code(c.State))
	}
	return says
}
