package sandbox_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/checkpoint"
	"berth/core/engine/enginetest"
	"berth/core/sandbox"
)

func TestStopFailsUntilNetworkIsReleasedOrGivenUp(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	id := e.run()
	e.network.fail("detach")
	for range 20 {
		if err := e.Stop(ctx, id); !errors.Is(err, errNetwork) {
			t.Fatalf("%v, want the error of the network", err)
		}
	}
	e.start(false)
	e.SetDetachGrace(0)
	e.network.fail("detach")
	for try := range 9 {
		if err := e.Stop(ctx, id); !errors.Is(err, errNetwork) {
			t.Fatalf("try %d: %v, want the error of the network", try, err)
		}
		if err := e.Remove(ctx, id); try == 0 && !errors.Is(err, errNetwork) {
			t.Errorf("removal: %v, want the error of the network", err)
		} else if err == nil {
			break // given up
		}
	}
	if got := e.network.stepNames(); !strings.HasSuffix(got, "forget") {
		t.Errorf("network steps %q, want forget as the last one", got)
	}
	if err := e.Remove(ctx, id); err != nil {
		t.Error(err)
	}
	e.requireClean("ten failures")
}

func TestSandboxRemovedWithDockerIsNotReadyUntilRemove(t *testing.T) {
	e := newEnv(t)
	id := e.run()
	if err := e.client.ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	enginetest.Until(t, "the cache does not notice the removal", func() bool { s, err := e.Status(t.Context(), id); return err == nil && s.Orphaned })
	if s, err := e.Status(t.Context(), id); err != nil || s.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("status %v, %v; want NOTREADY, so that the kubelet removes it", s, err)
	}
	if err := errors.Join(e.Stop(t.Context(), id), e.Remove(t.Context(), id)); err != nil {
		t.Error(err)
	}
	e.requireClean("a removal")
}

// A node is changed to --network-plugin="" while pods run that CNI has attached.
func TestCNIPodsAreReleasedAfterChangeToBridge(t *testing.T) {
	for name, end := range map[string]func(e *env, id string) error{
		"running": func(e *env, id string) error { return e.Remove(e.Context(), id) },
		"exited":  func(e *env, id string) error { e.engine.Die(id, 1); return e.Remove(e.Context(), id) },
		"replaced": func(e *env, id string) error {
			e.engine.Die(id, 1)
			return e.Remove(e.Context(), e.run())
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			id := e.run()
			e.start(true)
			e.network.fail()
			if err := end(e, id); err != nil {
				t.Error(err)
			}
			if got := e.network.stepNames(); got != "detach" {
				t.Errorf("network steps %q, want only the detach of the old pod", got)
			}
			e.requireClean("a removal")
		})
	}
	t.Run("orphaned", func(t *testing.T) {
		e := newEnv(t)
		if _, err := e.network.Bind(strings.Repeat("f", 64), 1); err != nil {
			t.Fatal(err)
		}
		e.start(true)
		enginetest.Background(t, e.RunGC)
		enginetest.Until(t, "leftovers stay", func() bool { return len(e.leftovers()) == 0 })
	})
}

func TestStopFailsIfPauseProcessCannotBeKilled(t *testing.T) {
	e := newEnv(t)
	id := e.run()
	e.engine.Unkillable(id, true)
	if err := e.Stop(t.Context(), id); err == nil {
		t.Error("Stop succeeded although the pause process cannot be killed")
	}
	e.engine.Unkillable(id, false)
	if err := errors.Join(e.Stop(t.Context(), id), e.Remove(t.Context(), id)); err != nil {
		t.Error(err)
	}
	e.requireClean("a removal")
}

// Giving up the network of one pod can take long. Other pods do not wait for it.
func TestGivingUpOneNetworkDoesNotBlockOtherPods(t *testing.T) {
	e := newEnv(t)
	slow := slowForget{fakeNetwork: e.network, entered: make(chan struct{}), leave: make(chan struct{})}
	services := fakeServices{docker: e.client}
	s := sandbox.New(sandbox.Config{
		Docker: e.docker, Cache: e.cache, Images: services, Containers: services, Network: slow, State: e.state, Log: slog.New(slog.DiscardHandler),
		RunDir: filepath.Join(e.dir, "run2"), Checkpoints: checkpoint.Dir(filepath.Join(e.dir, "checkpoints2")),
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
	e.network.fail("detach")
	for range 9 {
		if err := s.Stop(t.Context(), ids[0]); err == nil {
			t.Error("Stop succeeded although the network was not released")
		}
	}
	stopped := make(chan error, 1)
	go func() { stopped <- s.Stop(t.Context(), ids[0]) }()
	<-slow.entered
	e.network.fail()
	limited, cancel := context.WithTimeout(t.Context(), enginetest.WaitTimeout)
	defer cancel()
	other := make(chan error, 1)
	go func() { other <- s.Stop(limited, ids[1]) }()
	select {
	case err := <-other:
		if err != nil {
			t.Error(err)
		}
	case <-limited.Done():
		t.Error("another pod cannot be stopped while one network is given up")
	}
	close(slow.leave)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// slowForget is a network whose Forget blocks until leave is closed.
type slowForget struct {
	*fakeNetwork
	entered, leave chan struct{}
}

func (s slowForget) Forget(ctx context.Context, id string) error {
	close(s.entered)
	<-s.leave
	return s.fakeNetwork.Forget(ctx, id)
}

// Without file descriptors, for example: the pod would lose its host ports' rules if that checkpoint counted as absent.
func TestStopFailsWhileTheCheckpointCannotBeRead(t *testing.T) {
	e := newEnv(t)
	id, err := e.Run(t.Context(), podWithHostPort(), "")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(e.dir, "checkpoints", id)
	if err := errors.Join(os.Rename(path, path+".away"), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := e.Stop(t.Context(), id); err == nil {
		t.Error("the pod was stopped without its checkpoint")
	}
	if err := errors.Join(os.Remove(path), os.Rename(path+".away", path), e.Stop(t.Context(), id)); err != nil {
		t.Fatal(err)
	}
	if plan := e.network.detachedWith()[id]; plan == nil || len(plan.Pod.Ports) != 1 {
		t.Errorf("detached with %+v, want the host port", plan)
	}
}
