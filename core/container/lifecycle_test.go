package container_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/container"
	"berth/core/engine/enginetest"
)

// creating starts a Create that waits where the log is opened, and returns when the
// Engine has the container. Unlocking r.logs.mu lets it go on.
func (r *room) creating(ctx context.Context) (done <-chan error) {
	r.Helper()
	before := r.engine.Len()
	r.logs.mu.Lock()
	ended := make(chan error, 1)
	go func() {
		_, err := r.Create(ctx, r.pod, config("serve"), nil)
		ended <- err
	}()
	enginetest.Until(r, "the Engine has no container", func() bool { return r.engine.Len() > before })
	return ended
}

func TestCreateHidesTheContainerUntilItIsComplete(t *testing.T) {
	for name, leaked := range map[string]bool{"plain name": false, "name with a suffix, as the plain one is taken": true} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			if leaked {
				r.engine.LeakName("k8s_c_web_ns_u_0")
			}
			done := r.creating(t.Context())
			// The cache follows Docker's events: once it has the container, so would a list.
			enginetest.Until(r, "not in the cache", func() bool {
				inside, err := r.view.ContainersOf(t.Context(), r.pod)
				return err == nil && len(inside) == 1
			})
			if list, err := r.List(t.Context(), &runtimeapi.ContainerFilter{}); err != nil || len(list) > 0 {
				t.Errorf("listed while it is created: %v, %v", list, err)
			}
			r.logs.mu.Unlock()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if list, err := r.List(t.Context(), &runtimeapi.ContainerFilter{}); err != nil || len(list) != 1 {
				t.Errorf("listed once it is created: %v, %v", list, err)
			}
		})
	}
}

func TestCreateLeavesNothingForACallerThatHungUp(t *testing.T) {
	r := newRoom(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := r.creating(ctx)
	cancel()
	r.logs.mu.Unlock()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Create: %v, want that it was canceled", err)
	}
	if n := r.engine.Len(); n != 1 {
		t.Errorf("%d containers are left, want the sandbox alone", n)
	}
}

func TestCreateFailsInASandboxThatIsRemovedMeanwhile(t *testing.T) {
	r := newRoom(t)
	done := r.creating(t.Context())
	r.view.Forget(r.pod) // which removing a sandbox ends with
	r.logs.mu.Unlock()
	if err := <-done; !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Create: %v, want FailedPrecondition", err)
	}
	if n := r.engine.Len(); n != 1 {
		t.Errorf("%d containers are left, want the sandbox alone", n)
	}
}

func TestRemoveWaitsForAStart(t *testing.T) {
	r := newRoom(t)
	id, err := r.Create(t.Context(), r.pod, config("serve"), nil)
	if err != nil {
		t.Fatal(err)
	}
	release := r.engine.Hang("POST /containers/" + id + "/start")
	started := make(chan error, 1)
	go func() { started <- r.Start(t.Context(), id) }()
	enginetest.Until(r, "the start does not reach the Engine", func() bool { return r.engine.Calls("POST /containers/{id}/start") > 1 })
	impatient, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Remove(impatient, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Remove during a start: %v, want that it waits", err)
	}
	release()
	if err := <-started; err != nil {
		t.Error(err)
	}
	if err := r.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	r.clean("removed after its start")
}

// Of many callers who ask for a long stop and leave, only the first one's goes on.
func TestStopsOfCallersThatLeftDoNotPileUp(t *testing.T) {
	r := newRoom(t)
	id, err := r.Create(t.Context(), r.pod, config("sleep", "1000"), nil)
	if err == nil {
		err = r.Start(t.Context(), id)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	var all []chan error
	for range 5 {
		done := make(chan error, 1)
		go func() { done <- r.Stop(ctx, id, time.Hour) }()
		all = append(all, done)
	}
	enginetest.Until(r, "nobody stops it", func() bool { return r.engine.Calls("POST /containers/{id}/stop") == 1 })
	leave()
	ended := 0
	enginetest.Until(r, "calls go on without their callers", func() bool {
		for i, done := range all {
			select {
			case <-done:
				ended++
				all[i] = nil
			default:
			}
		}
		return ended >= 4
	})
	if err := r.Stop(t.Context(), id, 0); err != nil {
		t.Error(err)
	}
}

// The kernel answers ENODEV for a file of a cgroup that went after it was opened.
func TestACgroupThatIsGoneIsNoError(t *testing.T) {
	for _, err := range []error{syscall.ENODEV, syscall.ESRCH, syscall.ENOENT} {
		if !container.IsGone(err) {
			t.Errorf("%v is an error", err)
		}
	}
	if container.IsGone(syscall.EACCES) {
		t.Error("a refusal was dropped")
	}
}
