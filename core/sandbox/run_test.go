package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
	"berth/core/labels"
	"berth/core/podpolicy"
)

func TestSandboxFromRunToRemove(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	id := e.run()
	s, err := e.Status(ctx, id)
	if err != nil || s.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || s.Status.GetNetwork().GetIp() != "10.0.0.7" {
		t.Errorf("status %v, %v", s, err)
	}
	if got := e.network.stepNames(); got != "plan bind attach" {
		t.Errorf("network steps %q", got)
	}
	hosts, err := os.ReadFile(filepath.Join(e.dir, "run", "pods", id, "hosts"))
	if err != nil || !strings.Contains(string(hosts), "10.0.0.7\tweb") || !strings.Contains(string(hosts), "fd00::7\tweb") {
		t.Errorf("hosts %q, %v", hosts, err)
	}
	if name, err := os.ReadFile(filepath.Join(e.dir, "run", "pods", id, "hostname")); err != nil || string(name) != "web\n" {
		t.Errorf("hostname %q, %v", name, err)
	}
	if second := e.run(); second != id {
		t.Errorf("Run again returned %s, want %s", second, id)
	}
	for range 2 {
		if err := e.Stop(ctx, id); err != nil {
			t.Fatal(err)
		}
		if s, err := e.Status(ctx, id); err != nil || s.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("status %v, %v", s, err)
		}
	}
	for range 2 {
		if err := e.Remove(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.Status(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("status: %v, want NotFound", err)
	}
	e.requireClean("RemovePodSandbox")
	if err := errors.Join(e.Stop(ctx, "nothing"), e.Remove(ctx, "nothing")); err != nil {
		t.Errorf("stop and removal of a missing sandbox: %v", err)
	}
}

// The Engine shortens a long hostname of the kubelet and chooses one if there is none.
func TestFilesHaveTheHostnameOfTheEngine(t *testing.T) {
	for name, hostname := range map[string]string{"short": "web-0", "too long": strings.Repeat("a", 62) + "-tail", "none": ""} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			config := pod()
			config.Hostname = hostname
			id, err := e.Run(t.Context(), config, "")
			if err != nil {
				t.Fatal(err)
			}
			seen, err := e.client.ContainerInspect(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			for file, want := range map[string]string{"hostname": seen.Config.Hostname + "\n", "hosts": "10.0.0.7\t" + seen.Config.Hostname + "\n"} {
				if text, err := os.ReadFile(filepath.Join(e.dir, "run", "pods", id, file)); err != nil || !strings.Contains("\n"+string(text), "\n"+want) {
					t.Errorf("%s %q, %v; want %q in it", file, text, err, want)
				}
			}
		})
	}
}

const blockedRunDir = "run directory is a file"

func TestFailedRunLeavesNothing(t *testing.T) {
	refuse := func(route string) func(*env, func()) {
		return func(e *env, _ func()) { e.engine.FailOnce(route, http.StatusInternalServerError, 1) }
	}
	lose := func(route string) func(*env, func()) {
		return func(e *env, _ func()) { e.engine.DropResponse(route, 1) }
	}
	cancelAt := func(route string) func(*env, func()) {
		return func(e *env, cancel func()) { e.engine.On(route, cancel) }
	}
	cut := func(steps ...string) func(*env, func()) {
		return func(e *env, _ func()) { e.network.fail(steps...) }
	}
	cancelIn := func(step string) func(*env, func()) {
		return func(e *env, cancel func()) { e.network.before(step, cancel) }
	}
	for name, inject := range map[string]func(e *env, cancel func()){
		"create refused":         refuse("POST /containers/create"),
		"create has no response": lose("POST /containers/create"),
		"cancelled in create":    cancelAt("POST /containers/create"),
		"start refused":          refuse("POST /containers/{id}/start"),
		"start has no response":  lose("POST /containers/{id}/start"),
		"cancelled in start":     cancelAt("POST /containers/{id}/start"),
		"inspect refused":        func(e *env, _ func()) { e.engine.Fail("GET /containers/{id}/json", http.StatusInternalServerError) },
		"cancelled in inspect":   cancelAt("GET /containers/{id}/json"),
		"no plan":                cut("plan"),
		"no namespace":           cut("bind"),
		"no network":             cut("attach"),
		"cancelled in attach":    cancelIn("attach"),
		"cancelled before":       func(_ *env, cancel func()) { cancel() },
		"pause process exits": func(e *env, _ func()) {
			e.engine.Program("pause", func(*enginetest.Process) int { return 1 })
			e.engine.On("GET /containers/{id}/json", func() {
				enginetest.Until(e.T, "the pause process has not exited", func() bool {
					found, ok := e.engine.Container("k8s_POD_web_ns_u_0")
					return !ok || !found.State.Running
				})
			})
		},
		"pause cannot be executed": func(e *env, _ func()) { e.engine.FailStart("pause", enginetest.StartFailure{Code: 127}) },
		blockedRunDir:              func(e *env, _ func()) { block(e.T, filepath.Join(e.dir, "run")) },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			e.engine.DropEvents(true)
			enginetest.Background(t, e.RunGC)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			inject(e, cancel)
			if id, err := e.Run(ctx, pod(), ""); err == nil || id != "" {
				t.Errorf("%q, %v; want an error and no ID", id, err)
			}
			e.engine.ClearFaults("GET /containers/{id}/json") // not FailOnce: the cache may inspect first
			if name == blockedRunDir {
				// The rollback cannot remove the directory of the pod either; the next Run does.
				if err := errors.Join(os.Remove(filepath.Join(e.dir, "run")), e.Remove(t.Context(), e.run())); err != nil {
					t.Error(err)
				}
			}
			// What the rollback could not remove, RunGC removes.
			for limit := time.Now().Add(enginetest.WaitTimeout); len(e.leftovers()) > 0 && time.Now().Before(limit); {
				time.Sleep(10 * time.Millisecond)
			}
			if left := e.leftovers(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestRunAppliesLimitsOfAllowedNamespaces(t *testing.T) {
	e := newEnv(t)
	var err error
	if e.policy, err = podpolicy.New(podpolicy.Options{AllowAnnotations: []string{"berth.shm-size=ns"}}); err != nil {
		t.Fatal(err)
	}
	e.start(false)
	config := pod()
	config.Annotations = map[string]string{"berth.shm-size": "256Mi"}
	id, err := e.Run(t.Context(), config, "")
	if err != nil {
		t.Fatal(err)
	}
	if seen, err := e.client.ContainerInspect(t.Context(), id); err != nil || seen.HostConfig.ShmSize != 256<<20 {
		t.Errorf("/dev/shm of %d bytes, %v", seen.HostConfig.ShmSize, err)
	}
	if err := e.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	config.Metadata.Namespace = "other"
	if _, err := e.Run(t.Context(), config, ""); !errdefs.IsPermissionDenied(err) {
		t.Errorf("in another namespace: %v", err)
	}
	e.requireClean("a refused Run")
}

// block creates a file at path, so that no directory can be created there.
func block(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// The Engine stops during each call of Run. The rollback fails then, and RunGC cleans up after
// the Engine is back.
func TestRunGCCleansUpAfterEngineStopsDuringRun(t *testing.T) {
	for _, route := range []string{"POST /containers/create", "POST /containers/{id}/start", "GET /containers/{id}/json"} {
		t.Run(route, func(t *testing.T) {
			e := newEnv(t)
			e.engine.SetLiveRestore(true)
			e.engine.DropEvents(true)
			enginetest.Background(t, e.RunGC)
			release := e.engine.Hang(route)
			done := make(chan error, 1)
			before := e.engine.Calls(route)
			go func() { _, err := e.Run(t.Context(), pod(), ""); done <- err }()
			enginetest.Until(t, "the Engine got no call", func() bool { return e.engine.Calls(route) > before })
			e.engine.Stop()
			if err := <-done; err == nil {
				t.Error("no error")
			}
			release()
			e.engine.Restart()
			enginetest.Until(t, fmt.Sprintf("left: %v", e.leftovers()), func() bool { return len(e.leftovers()) == 0 })
			enginetest.Until(t, "the cache is not in sync", func() bool { return e.cache.Ready(t.Context()) == nil })
			if err := e.Remove(t.Context(), e.run()); err != nil {
				t.Error(err)
			}
			e.requireClean("another Run")
		})
	}
}

// A failed Run whose rollback fails too leaves a part of a pod and its intent, as a killed
// daemon does. The next Run for that pod cleans up first.
func TestRunCleansUpUnfinishedPod(t *testing.T) {
	e := newEnv(t)
	e.network.fail("attach", "detach")
	e.engine.Fail("DELETE /containers/{id}", http.StatusInternalServerError)
	if _, err := e.Run(t.Context(), pod(), ""); !errors.Is(err, errNetwork) {
		t.Fatalf("%v, want the error of the network", err)
	}
	if left := e.leftovers(); len(left) < 3 {
		t.Fatalf("left %v, want a container, a network namespace and an intent", left)
	}
	e.network.fail()
	e.engine.ClearFaults("DELETE /containers/{id}")
	id := e.run()
	if left := e.engine.Leftovers(); len(left) != 1 {
		t.Errorf("containers: %v, want one", left)
	}
	if err := e.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	e.requireClean("the second Run")
}

func TestRunResolvesNameConflicts(t *testing.T) {
	t.Run("exited sandbox is replaced", func(t *testing.T) {
		e := newEnv(t)
		first := e.run()
		e.engine.Die(first, 1)
		if second := e.run(); second == first {
			t.Error("Run returned the exited sandbox")
		}
		if left := e.engine.Leftovers(); len(left) != 1 || len(e.network.keys(e.network.attached)) != 1 {
			t.Errorf("there are %v, attached %v", left, e.network.keys(e.network.attached))
		}
	})
	t.Run("other container is an error", func(t *testing.T) {
		e := newEnv(t)
		if _, err := e.client.ContainerCreate(t.Context(), &container.Config{Image: "pause"}, nil, nil, nil, dockerName); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Run(t.Context(), pod(), ""); !errdefs.IsAlreadyExists(err) {
			t.Errorf("%v, want AlreadyExists", err)
		}
		if left := e.leftovers(); len(left) != 1 {
			t.Errorf("there are %v, want only the other container", left)
		}
	})
	t.Run("name of a missing container gets a suffix", func(t *testing.T) {
		e := newEnv(t)
		e.engine.LeakName(dockerName)
		id := e.run()
		if c, _ := e.engine.Container(id); !strings.HasPrefix(c.Name, "/"+dockerName+"_") {
			t.Errorf("name = %s, want a suffix", c.Name)
		}
		if second := e.run(); second != id {
			t.Errorf("Run again returned %s, want %s", second, id)
		}
		if err := e.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
		e.requireClean("a removal")
	})
	t.Run("failure with a suffix leaves nothing", func(t *testing.T) {
		for name, inject := range map[string]func(e *env){
			"create not answered": func(e *env) { e.engine.DropResponse("POST /containers/create", 2) },
			"no network":          func(e *env) { e.network.fail("attach") },
		} {
			t.Run(name, func(t *testing.T) {
				e := newEnv(t)
				e.engine.LeakName(dockerName)
				e.network.before("attach", func() {
					if list, err := e.List(t.Context(), nil); err != nil || len(list) > 0 {
						t.Errorf("listed before Run returned: %v, %v", list, err)
					}
				})
				inject(e)
				if _, err := e.Run(t.Context(), pod(), ""); err == nil {
					t.Error("no error")
				}
				e.requireClean("a failure")
			})
		}
	})
	t.Run("concurrent calls return one sandbox", func(t *testing.T) {
		e := newEnv(t)
		var all errgroup.Group
		ids := make([]string, 5)
		for i := range ids {
			all.Go(func() (err error) { ids[i], err = e.Run(t.Context(), pod(), ""); return err })
		}
		if err := all.Wait(); err != nil || len(slices.Compact(ids)) != 1 {
			t.Errorf("%v, %v; want one sandbox", ids, err)
		}
	})
}

func TestRunFallsBackIfEngineMayNotLowerOOMScore(t *testing.T) {
	e := newEnv(t)
	e.engine.OOMFloor(-500)
	id := e.run()
	if c, _ := e.engine.Container(id); c.HostConfig.OomScoreAdj < -500 || !c.State.Running {
		t.Errorf("oom_score_adj = %d, running %v", c.HostConfig.OomScoreAdj, c.State.Running)
	}
	if err := e.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	e.requireClean("a removal")
	before := e.engine.Calls("POST /containers/create")
	e.run()
	if n := e.engine.Calls("POST /containers/create") - before; n != 1 {
		t.Errorf("%d creates for the next pod, want one: the limit is known", n)
	}
}

func TestHostNetworkPodIsNotAttached(t *testing.T) {
	e := newEnv(t)
	p := pod()
	p.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
	}}
	id, err := e.Run(t.Context(), p, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.Stop(t.Context(), id), e.Remove(t.Context(), id)); err != nil {
		t.Error(err)
	}
	if got := e.network.stepNames(); got != "" {
		t.Errorf("network steps %q, want none", got)
	}
	e.requireClean("a removal")
}

// A plugin that is slow to release the network does not keep the pause process running.
func TestRollbackRemovesPauseContainerBesidePlugins(t *testing.T) {
	e := newEnv(t)
	e.network.fail("attach")
	e.network.before("detach", func() {
		for limit := time.Now().Add(enginetest.WaitTimeout); len(e.engine.Leftovers()) > 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Error("the pause container exists while a plugin releases the network")
				return
			}
		}
	})
	if _, err := e.Run(t.Context(), pod(), ""); !errors.Is(err, errNetwork) {
		t.Errorf("%v, want the error of the network", err)
	}
	e.requireClean("a rollback")
}

// After a failed rollback the network is released with the plan that it was attached with: by
// RunGC or, if the container exists, when the kubelet removes the pod.
func TestNetworkIsReleasedAfterFailedRollback(t *testing.T) {
	fail := func(e *env) (id string) {
		e.network.fail("attach", "detach")
		if _, err := e.Run(e.Context(), podWithHostPort(), ""); !errors.Is(err, errNetwork) {
			e.Fatalf("%v, want the error of the network", err)
		}
		for id := range e.network.detachedWith() {
			return id
		}
		return ""
	}
	ports := func(e *env, id string) {
		if plan := e.network.detachedWith()[id]; plan == nil || plan.Network != "maps" || len(plan.Pod.Ports) != 1 {
			e.Errorf("detached with %+v, want the plan that it was attached with", plan)
		}
	}
	t.Run("RunGC is triggered", func(t *testing.T) {
		e := newEnv(t)
		enginetest.Background(t, e.RunGC)
		enginetest.Until(t, "RunGC had no pass", func() bool { return e.network.stepNames() == "gc" })
		id := fail(e)
		e.network.fail()
		enginetest.Until(t, "leftovers stay", func() bool { return len(e.leftovers()) == 0 })
		ports(e, id)
	})
	t.Run("kubelet removes the pod", func(t *testing.T) {
		e := newEnv(t)
		e.engine.Fail("DELETE /containers/{id}", http.StatusInternalServerError)
		id := fail(e)
		e.engine.ClearFaults("DELETE /containers/{id}")
		e.network.fail()
		enginetest.Until(t, "Status does not return the pod", func() bool { _, err := e.Status(t.Context(), id); return err == nil })
		if err := e.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
		ports(e, id)
		e.requireClean("a removal")
	})
}

// An earlier sandbox of the same name is removed as by RemovePodSandbox, with its containers
// and its network, even if there is no record of that.
func TestRunReplacesSandboxWithoutRecords(t *testing.T) {
	e := newEnv(t)
	first := e.run()
	inside, err := e.client.ContainerCreate(t.Context(), &container.Config{Image: "pause", Labels: labels.Set{
		Kind: labels.Container, SandboxID: first, Config: `{"metadata":{"name":"c"}}`,
	}.Encode()}, &container.HostConfig{Init: new(bool)}, nil, nil, "k8s_c_web_ns_u_0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.cache.Refresh(t.Context(), inside.ID); err != nil {
		t.Fatal(err)
	}
	// The records of berth and libcni are lost.
	if err := e.network.Forget(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(e.dir, "checkpoints")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.cache.Refresh(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	second := e.run()
	if second == first {
		t.Fatal("Run returned the sandbox without a network")
	}
	if _, detached := e.network.detachedWith()[first]; !detached {
		t.Error("the network of the first sandbox was not released")
	}
	if c, exists := e.engine.Container(inside.ID); exists {
		t.Errorf("its container exists: %s", c.Name)
	}
}
