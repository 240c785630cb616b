package sandbox_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
)

// While Run is called again for a pod, the cache hides that pod. GC must keep its network.
func TestGCKeepsNetworkOfHiddenPod(t *testing.T) {
	e := newEnv(t)
	id := e.run()
	seen, err := e.cache.Sandbox(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer e.cache.Hide(seen.Name).Reveal()
	enginetest.Background(t, e.RunGC)
	enginetest.Until(t, "the network plugins had no GC", func() bool {
		e.network.mu.Lock()
		defer e.network.mu.Unlock()
		return slices.Contains(e.network.steps, "gc")
	})
	e.network.mu.Lock()
	defer e.network.mu.Unlock()
	if !slices.Equal(e.network.kept, []string{id}) {
		t.Errorf("GC was called to keep %v, want %s", e.network.kept, id)
	}
}

// The host ports of an orphan are in its checkpoint, which is needed for the next try.
func TestGCKeepsCheckpointUntilNetworkIsReleased(t *testing.T) {
	e := newEnv(t)
	id, err := e.Run(t.Context(), podWithHostPort(), "")
	if err != nil {
		t.Fatal(err)
	}
	e.network.fail("detach")
	if err := e.client.ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	enginetest.Until(t, "the cache does not notice the removal", func() bool { s, err := e.Status(t.Context(), id); return err == nil && s.Orphaned })
	e.cache.Forget(id) // as after a restart of the daemon
	enginetest.Background(t, e.RunGC)
	enginetest.Until(t, "RunGC had no pass", func() bool { return strings.Count(e.network.stepNames(), "gc") > 1 })
	if _, err := os.Stat(filepath.Join(e.dir, "checkpoints", id)); err != nil {
		t.Error(err)
	}
	e.network.fail()
	enginetest.Until(t, "leftovers stay", func() bool { return len(e.leftovers()) == 0 })
	if plan := e.network.detachedWith()[id]; plan == nil || len(plan.Pod.Ports) != 1 {
		t.Errorf("detached with %+v, want its ports", plan)
	}
}

// An Engine call that hangs does not block the clean-up of other sandboxes.
func TestGCCleansUpWhileAnEngineCallHangs(t *testing.T) {
	for name, tt := range map[string]struct {
		begin func(e *env) (hangs string)
		then  func(e *env)
	}{
		"inspect of a pod": {begin: func(e *env) string { return e.run() }},
		"inspect of an unfinished pod": {begin: func(e *env) string {
			id := e.run()
			if err := e.PutIntent(dockerName); err != nil {
				e.Fatal(err)
			}
			return id
		}},
		"create of a pod": {
			begin: func(*env) string { return "POST /containers/create" },
			then: func(e *env) {
				enginetest.Background(e.T, func(ctx context.Context) error { _, _ = e.Run(ctx, pod(), ""); return nil })
				enginetest.Until(e.T, "the Engine got no call", func() bool { return e.engine.Calls("POST /containers/create") > 0 })
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			connect := connectWithShortTimeout
			if tt.then != nil {
				connect = (*enginetest.Engine).Connect
			}
			e := newEnvWith(t, connect)
			orphan := filepath.Join(e.dir, "run", "pods", strings.Repeat("f", 64))
			if err := os.MkdirAll(orphan, 0o755); err != nil {
				t.Fatal(err)
			}
			release := e.engine.Hang(tt.begin(e))
			if tt.then != nil {
				tt.then(e)
			}
			enginetest.Background(t, e.RunGC)
			t.Cleanup(release)
			enginetest.Until(t, "the orphan was not removed", func() bool { _, err := os.Stat(orphan); return err != nil })
		})
	}
}

// A network plugin that needs long for some pods does not delay others.
func TestGCReleasesNetworksInParallel(t *testing.T) {
	e := newEnv(t)
	var all sync.WaitGroup
	all.Add(3)
	e.network.detaching = func(string) { all.Done(); all.Wait() }
	for _, digit := range []string{"a", "b", "c"} {
		if _, err := e.network.Bind(strings.Repeat(digit, 64), 1); err != nil {
			t.Fatal(err)
		}
	}
	enginetest.Background(t, e.RunGC)
	enginetest.Until(t, "networks are released one after the other", func() bool { return len(e.network.keys(e.network.bound)) == 0 })
}

// A network that cannot be released does not keep the plugins' own GC from running.
func TestGCOfPluginsRunsAfterFailedDetach(t *testing.T) {
	e := newEnv(t)
	if _, err := e.network.Bind(strings.Repeat("f", 64), 1); err != nil {
		t.Fatal(err)
	}
	e.network.fail("detach")
	enginetest.Background(t, e.RunGC)
	enginetest.Until(t, "the network plugins had no GC", func() bool { return strings.Contains(e.network.stepNames(), "detach gc") })
	if len(e.network.keys(e.network.bound)) == 0 {
		t.Error("the network namespace was unbound although its release failed")
	}
}

// A sandbox of cri-dockerd that was removed with docker rm can leave nothing but its update.
func TestGCRemovesUpdatesOfMissingSandboxes(t *testing.T) {
	e := newEnv(t)
	id := e.run()
	missing := strings.Repeat("0f", 32)
	for _, id := range []string{id, missing} {
		if err := e.state.Updates.Put(id, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: id}); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if names, err := e.state.Updates.Keys(); err != nil || !slices.Equal(names, []string{id}) {
		t.Errorf("sandboxes with updates = %q, %v, want %s", names, err, id)
	}
}

// GC runs beside Run and must not delete the intents that it has just stored.
func TestGCKeepsIntentsOfRunningCalls(t *testing.T) {
	e := newEnv(t)
	ctx, stop := context.WithCancel(t.Context())
	var gc sync.WaitGroup
	gc.Go(func() {
		for ctx.Err() == nil {
			_ = e.GC(ctx)
		}
	})
	for i := range 30 {
		config := pod()
		config.Metadata.Attempt = uint32(i)
		id, err := e.Run(t.Context(), config, "")
		if err == nil {
			err = e.Remove(t.Context(), id)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	stop()
	gc.Wait()
	e.requireClean("pods beside a continuous GC")
}
