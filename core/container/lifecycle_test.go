package container_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
	"berth/core/nri"
)

// createBlocked starts a Create that blocks where it opens the log, and returns when Docker has the container. Unlocking
// f.logs.mu unblocks it.
func (f *fixture) createBlocked(ctx context.Context) (done <-chan error) {
	f.Helper()
	before := f.engine.Len()
	f.logs.mu.Lock()
	result := make(chan error, 1)
	go func() {
		_, err := f.Create(ctx, f.pod, config("serve"), nil)
		result <- err
	}()
	enginetest.Until(f, "Docker has no container", func() bool { return f.engine.Len() > before })
	return result
}

func TestCreateHidesTheContainerUntilItIsComplete(t *testing.T) {
	for name, leaked := range map[string]bool{"plain name": false, "name with a suffix because the plain one is taken": true} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			if leaked {
				f.engine.LeakName("k8s_c_web_ns_u_0")
			}
			done := f.createBlocked(t.Context())
			// The cache follows Docker's events: once it has the container, it would be listed unless it is hidden.
			enginetest.Until(f, "not in the cache", func() bool {
				inside, err := f.cache.ContainersOf(t.Context(), f.pod)
				return err == nil && len(inside) == 1
			})
			if list, err := f.List(t.Context(), &runtimeapi.ContainerFilter{}); err != nil || len(list) > 0 {
				t.Errorf("listed while it is created: %v, %v", list, err)
			}
			f.logs.mu.Unlock()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if list, err := f.List(t.Context(), &runtimeapi.ContainerFilter{}); err != nil || len(list) != 1 {
				t.Errorf("listed once it is created: %v, %v", list, err)
			}
		})
	}
}

func TestCreateRemovesTheContainerOfACallerThatCanceled(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := f.createBlocked(ctx)
	cancel()
	f.logs.mu.Unlock()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Create: %v, want context.Canceled", err)
	}
	if n := f.engine.Len(); n != 1 {
		t.Errorf("%d containers are left, want the sandbox alone", n)
	}
}

func TestCreateFailsInASandboxThatIsRemovedMeanwhile(t *testing.T) {
	f := newFixture(t)
	done := f.createBlocked(t.Context())
	f.cache.Forget(f.pod) // as the removal of a sandbox does at its end
	f.logs.mu.Unlock()
	if err := <-done; !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Create: %v, want FailedPrecondition", err)
	}
	if n := f.engine.Len(); n != 1 {
		t.Errorf("%d containers are left, want the sandbox alone", n)
	}
}

func TestRemoveWaitsForAStartToFinish(t *testing.T) {
	f := newFixture(t)
	id, err := f.Create(t.Context(), f.pod, config("serve"), nil)
	if err != nil {
		t.Fatal(err)
	}
	release := f.engine.Hang("POST /containers/" + id + "/start")
	started := make(chan error, 1)
	go func() { started <- f.Start(t.Context(), id) }()
	enginetest.Until(f, "no start request", func() bool { return f.engine.Calls("POST /containers/{id}/start") > 1 })
	limited, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := f.Remove(limited, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Remove during a start: %v, want DeadlineExceeded", err)
	}
	release()
	if err := <-started; err != nil {
		t.Error(err)
	}
	if err := f.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	f.requireClean("a removal after the start")
}

// Of many calls with a long grace period whose callers leave, only the first one goes on.
func TestStopsOfCallersThatLeftEnd(t *testing.T) {
	f := newFixture(t)
	id, err := f.Create(t.Context(), f.pod, config("sleep", "1000"), nil)
	if err == nil {
		err = f.Start(t.Context(), id)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var calls []chan error
	for range 5 {
		done := make(chan error, 1)
		go func() { done <- f.Stop(ctx, id, time.Hour) }()
		calls = append(calls, done)
	}
	enginetest.Until(f, "no stop request", func() bool { return f.engine.Calls("POST /containers/{id}/stop") == 1 })
	cancel()
	ended := 0
	enginetest.Until(f, "calls of callers that have left do not end", func() bool {
		for i, done := range calls {
			select {
			case <-done:
				ended++
				calls[i] = nil
			default:
			}
		}
		return ended >= 4
	})
	if err := f.Stop(t.Context(), id, 0); err != nil {
		t.Error(err)
	}
}

// The containers were changed by plugins before NRI was switched off.
func TestRecordsOfPluginsEndWithTheirContainersWithoutNRI(t *testing.T) {
	f := newFixture(t)
	removed, gone := f.run("serve"), strings.Repeat("0", 64)
	for _, id := range []string{removed, gone} {
		if err := f.nriRecords.Put(id, nri.Record{Plugins: []string{"10-logger"}, Fields: []string{"env"}}); err != nil {
			t.Fatal(err)
		}
	}
	c, err := f.Status(t.Context(), removed)
	if err != nil {
		t.Fatal(err)
	}
	facts := map[string]any{}
	if f.Verbose(t.Context(), c, facts); facts["nri"] == nil {
		t.Errorf("the verbose status is %v", facts)
	}
	if err := f.Remove(t.Context(), removed); err != nil {
		t.Fatal(err)
	}
	enginetest.Background(t, f.RunGC)
	enginetest.Until(t, "records stay", func() bool {
		left, err := f.nriRecords.Keys()
		return err == nil && len(left) == 0
	})
}
