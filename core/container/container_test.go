package container_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	dockercontainer "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/container"
	"berth/core/engine/enginetest"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/premount"
	"berth/core/state"
	"berth/core/todocker"
)

// attached is a network that every pod is on.
type attached struct{}

func (attached) Addresses(string) ([]netip.Addr, bool) { return nil, true }
func (attached) InNetNS(string, int) bool              { return true }

// shelf is where logs are noted that are kept.
type shelf struct {
	mu     sync.Mutex // guards following
	open   map[string]string
	broken error
}

func (s *shelf) Open(id, _, _, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[id] = path
	return s.broken
}

func (s *shelf) Close(_ context.Context, id, _, _, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, id)
	return nil
}

func (s *shelf) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func (*shelf) Reopen(context.Context, string) error { return nil }
func (*shelf) Forget(func(string) bool) error       { return nil }
func (*shelf) Driver() dockercontainer.LogConfig {
	return dockercontainer.LogConfig{Type: "json-file", Config: map[string]string{"mode": "blocking"}}
}
func (*shelf) Keep(context.Context, *cache.Container) {}
func (*shelf) Drop(string)                            {}
func (*shelf) Of(string) []todocker.File              { return nil }
func (*shelf) Resolve(_ context.Context, ref, _ string) (container.Image, error) {
	if ref != "server" {
		return container.Image{}, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	return container.Image{ID: "server", Ref: "server", HasCommand: true}, nil
}

func (*shelf) Accounts(context.Context, string) (todocker.Accounts, error) {
	return todocker.Accounts{}, nil
}

// A room is the container room, with a sandbox in its Engine.
type room struct {
	*testing.T
	engine *enginetest.Engine
	client *client.Client
	view   *cache.Cache
	logs   *shelf
	*container.Service
	pod string
}

func newRoom(t *testing.T, options ...enginetest.Option) *room {
	r := &room{T: t, engine: enginetest.New(t, options...), logs: &shelf{open: map[string]string{}}}
	r.engine.AddImage(enginetest.Image{}, "server")
	r.client = r.engine.Client(t)
	docker := r.engine.Connect(t)
	notes, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	failures, err := container.OpenFailedStarts(notes)
	if err != nil {
		t.Fatal(err)
	}
	updates, err := container.OpenUpdates(notes)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	r.view = cache.New(cache.Config{Network: attached{}, Failures: failures, ContainerUpdates: updates, Logs: r.logs}, docker, log)
	enginetest.Background(t, r.view.Run)
	r.Service = container.New(docker, r.view, r.logs, r.logs, r.logs, failures, updates, premount.New(filepath.Join(t.TempDir(), "mounts")), log)

	said := labels.Set{Kind: labels.Sandbox, Config: `{"metadata":{"name":"web","namespace":"ns","uid":"u"},"log_directory":"/logs"}`}
	made, err := r.client.ContainerCreate(t.Context(), &dockercontainer.Config{
		Image: "server", Cmd: []string{"pause"}, Labels: said.Encode(), NetworkDisabled: true,
	}, &dockercontainer.HostConfig{IpcMode: dockercontainer.IPCModeShareable, Init: new(bool)}, nil, nil, names.Name{Container: names.Pod, Pod: "web", Namespace: "ns", UID: "u"}.String())
	if err != nil {
		t.Fatal(err)
	}
	r.pod = made.ID
	if err := r.client.ContainerStart(t.Context(), r.pod, dockercontainer.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := r.view.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.view.Refresh(t.Context(), r.pod); err != nil {
		t.Fatal(err)
	}
	return r
}

func config(words ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "server"}, Command: words, LogPath: "c/0.log",
	}
}

// nameOf is what config's container is called.
var nameOf = names.Name{Container: "c", Pod: "web", Namespace: "ns", UID: "u"}.String()

func (r *room) create(words ...string) string {
	r.Helper()
	id, err := r.Create(r.Context(), r.pod, config(words...), nil)
	if err != nil {
		r.Fatal(err)
	}
	return id
}

func (r *room) run(words ...string) string {
	r.Helper()
	id := r.create(words...)
	if err := r.Start(r.Context(), id); err != nil {
		r.Fatal(err)
	}
	return id
}

// status is what the very next answer says.
func (r *room) status(id string) *runtimeapi.ContainerStatus {
	r.Helper()
	c, err := r.Status(r.Context(), id)
	if err != nil {
		r.Fatal(err)
	}
	return c.Status
}

// clean fails if anything is left but the sandbox.
func (r *room) clean(after string) {
	r.Helper()
	if left := r.engine.Leftovers(); len(left) != 1 || r.logs.left() != 0 {
		r.Errorf("after %s there are %v and %d logs", after, left, r.logs.left())
	}
}

func TestALife(t *testing.T) {
	r := newRoom(t)
	ctx := t.Context()
	id := r.create("serve")
	if s := r.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || s.GetCreatedAt() == 0 || s.GetLogPath() != "/logs/c/0.log" {
		t.Errorf("status %v", s)
	}
	if err := r.Start(ctx, id); err != nil {
		t.Fatal(err)
	}
	if s := r.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status %v", s)
	}
	if err := r.Start(ctx, id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start again: %v, want FailedPrecondition", err)
	}
	for range 2 {
		if err := r.Stop(ctx, id, time.Minute); err != nil {
			t.Fatal(err)
		}
		if s := r.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetReason() != "Completed" {
			t.Errorf("status %v", s)
		}
	}
	for range 2 {
		if err := r.Remove(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Status(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("status: %v, want NotFound", err)
	}
	if err := r.Stop(ctx, id, time.Minute); err != nil {
		t.Errorf("stop of what is gone: %v", err)
	}
	if err := r.Start(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("start of what is gone: %v, want NotFound", err)
	}
	r.clean("a whole life")
}

func TestAFailedStartIsToldFor(t *testing.T) {
	r := newRoom(t)
	id := r.create("missing")
	before := time.Now()
	err := r.Start(t.Context(), id)
	if err == nil || !strings.Contains(err.Error(), "executable file not found") || strings.Contains(err.Error(), "Error response from daemon") {
		t.Errorf("start: %v", err)
	}
	s := r.status(id)
	if s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetReason() != "StartError" || s.GetExitCode() != 127 || s.GetMessage() == "" ||
		s.GetStartedAt() != 0 || s.GetFinishedAt() < before.UnixNano() {
		t.Errorf("status %v", s)
	}
	if err := r.Start(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start again: %v, want FailedPrecondition", err)
	}
	if err := r.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	r.clean("a failed start")
}

// A start that was not answered is not one that failed: Docker knows.
func TestALostAnswerIsNoFailedStart(t *testing.T) {
	r := newRoom(t)
	id := r.create("serve")
	r.engine.Lose("POST /containers/{id}/start", 1)
	if err := r.Start(t.Context(), id); err == nil {
		t.Error("no error, although nobody answered")
	}
	enginetest.Until(t, "it is not seen to run", func() bool {
		c, err := r.Status(t.Context(), id)
		return err == nil && c.Running
	})
}

func TestCreateLeavesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(r *room, hangUp func())
		want  func(error) bool
	}{
		"create refused": {func(r *room, _ func()) {
			r.engine.FailOnce("POST /containers/create", http.StatusInternalServerError, 1)
		}, errdefs.IsInternal},
		"look refused": {func(r *room, _ func()) {
			r.engine.Fail("GET /containers/{id}/json", http.StatusInternalServerError)
		}, errdefs.IsInternal},
		"no log":               {func(r *room, _ func()) { r.logs.broken = errdefs.ErrPermissionDenied }, errdefs.IsPermissionDenied},
		"hung up while asking": {func(r *room, hangUp func()) { r.engine.On("POST /containers/create", hangUp) }, isCanceled},
		"hung up before":       {func(_ *room, hangUp func()) { hangUp() }, isCanceled},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			ctx, hangUp := context.WithCancel(t.Context())
			defer hangUp()
			// Events would have the new container looked at, too.
			r.engine.LoseEvents(true)
			tt.spoil(r, hangUp)
			id, err := r.Create(ctx, r.pod, config("serve"), nil)
			if id != "" || err == nil || !tt.want(err) {
				t.Errorf("%q, %v, which is of another kind", id, err)
			}
			r.logs.broken = nil
			r.engine.Heal("GET /containers/{id}/json")
			r.clean(name)
			if list, err := r.List(t.Context(), nil); err != nil || len(list) != 0 {
				t.Errorf("list %v, %v; want none", list, err)
			}
			r.create("serve") // another try succeeds
		})
	}
}

func isCanceled(err error) bool { return errors.Is(err, context.Canceled) }

func TestCreateRefuses(t *testing.T) {
	r := newRoom(t)
	other := config("serve")
	other.Image.Image = "other"
	none := config("serve")
	none.Image = nil
	for name, tt := range map[string]struct {
		pod    string
		config *runtimeapi.ContainerConfig
		want   func(error) bool
	}{
		"no such image":   {r.pod, other, errdefs.IsNotFound},
		"no image":        {r.pod, none, errdefs.IsInvalidArgument},
		"no such sandbox": {"nothing", config("serve"), errdefs.IsNotFound},
		"no name":         {r.pod, &runtimeapi.ContainerConfig{Image: &runtimeapi.ImageSpec{Image: "server"}}, errdefs.IsInvalidArgument},
	} {
		if _, err := r.Create(t.Context(), tt.pod, tt.config, nil); err == nil || !tt.want(err) {
			t.Errorf("%s: %v, which is of another kind", name, err)
		}
	}
	// Whose processes another container may see.
	watching := func(target string) error {
		c := config("serve")
		c.Metadata.Name = "watcher"
		c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target},
		}}
		_, err := r.Create(t.Context(), r.pod, c, nil)
		return err
	}
	stranger := labels.Set{Kind: labels.Container, SandboxID: "another", Config: `{"metadata":{"name":"c"}}`}
	made, err := r.client.ContainerCreate(t.Context(), &dockercontainer.Config{Image: "server", Cmd: []string{"serve"}, Labels: stranger.Encode()},
		&dockercontainer.HostConfig{Init: new(bool)}, nil, nil, names.Name{Container: "c", Pod: "other", Namespace: "ns", UID: "o"}.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.view.Refresh(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	if err := watching(made.ID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a target that does not run: %v, want FailedPrecondition", err)
	}
	if err := r.client.ContainerStart(t.Context(), made.ID, dockercontainer.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.view.Refresh(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	if err := watching(made.ID); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a target in another pod: %v, want InvalidArgument", err)
	}
	if err := watching("nobody"); !errdefs.IsNotFound(err) {
		t.Errorf("no such target: %v, want NotFound", err)
	}
	if err := r.client.ContainerRemove(t.Context(), made.ID, dockercontainer.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	r.engine.Die(r.pod, 0)
	if _, err := r.view.Refresh(t.Context(), r.pod); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(t.Context(), r.pod, config("serve"), nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("sandbox not ready: %v, want FailedPrecondition", err)
	}
	r.clean("refusals")
}

// An Engine whose daemon.json has a max-buffer-size refuses logs that are not
// buffered.
// Docker looks for a sub-path at the start only; the kubelet is to hear of it before.
func TestSubPathOfAnImage(t *testing.T) {
	r := newRoom(t, enginetest.API("1.48"))
	with := func(subPath string) (string, error) {
		c := config("serve")
		c.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/sub", Image: &runtimeapi.ImageSpec{Image: "server"}, ImageSubPath: subPath, Readonly: true},
		}
		return r.Create(t.Context(), r.pod, c, nil)
	}
	for _, subPath := range []string{"no/such", "etc/pass"} {
		if id, err := with(subPath); err == nil || id != "" || !strings.HasPrefix(err.Error(), "ImageVolumeMountFailed: ") || !strings.Contains(err.Error(), subPath) {
			t.Errorf("%s: %q, %v", subPath, id, err)
		}
		r.clean("a sub-path that is not there")
	}
	id, err := with("etc")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), id); err != nil {
		t.Error(err)
	}
}

func TestLogsThatAreBuffered(t *testing.T) {
	const create = "POST /containers/create"
	r := newRoom(t)
	driver := func(id string) string {
		seen, err := r.client.ContainerInspect(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return seen.HostConfig.LogConfig.Config["mode"]
	}
	plain := r.create("serve")
	if got := driver(plain); got != "blocking" {
		t.Errorf("logs are %q", got)
	}
	if err := r.Remove(t.Context(), plain); err != nil {
		t.Fatal(err)
	}
	r.engine.FailOnce(create, http.StatusBadRequest, 1)
	other := r.create("serve")
	if got := driver(other); got != "non-blocking" {
		t.Errorf("logs are %q where they cannot be blocking", got)
	}
	if err := r.Remove(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	r.engine.Fail(create, http.StatusBadRequest)
	if _, err := r.Create(t.Context(), r.pod, config("serve"), nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("refused for another reason: %v", err)
	}
	r.clean("logs that are buffered")
}

func TestNameConflicts(t *testing.T) {
	t.Run("an earlier try", func(t *testing.T) {
		r := newRoom(t)
		first := r.create("serve")
		if second := r.create("serve"); second == first {
			t.Error("the same container again")
		}
		if _, ok := r.engine.Container(first); ok {
			t.Error("the first one is still there")
		}
	})
	t.Run("an answer that was lost", func(t *testing.T) {
		r := newRoom(t)
		r.engine.Lose("POST /containers/create", 1)
		if _, err := r.Create(t.Context(), r.pod, config("serve"), nil); err == nil {
			t.Error("no error, although nobody answered")
		}
		enginetest.Until(t, "not connected again", func() bool { return r.view.Ready(t.Context()) == nil })
		r.create("serve")
		if left := r.engine.Leftovers(); len(left) != 2 {
			t.Errorf("there are %v", left)
		}
	})
	t.Run("one that runs", func(t *testing.T) {
		r := newRoom(t)
		id := r.run("serve")
		if _, err := r.Create(t.Context(), r.pod, config("serve"), nil); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), id) {
			t.Errorf("%v, want AlreadyExists with its ID", err)
		}
		if s := r.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("it is %v", s.GetState())
		}
	})
	t.Run("a stranger", func(t *testing.T) {
		r := newRoom(t)
		made, err := r.client.ContainerCreate(t.Context(), &dockercontainer.Config{Image: "server"}, nil, nil, nil, nameOf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Create(t.Context(), r.pod, config("serve"), nil); !errdefs.IsAlreadyExists(err) {
			t.Errorf("%v, want AlreadyExists", err)
		}
		if _, ok := r.engine.Container(made.ID); !ok {
			t.Error("the stranger was removed")
		}
	})
	t.Run("nobody", func(t *testing.T) {
		r := newRoom(t)
		r.engine.LeakName(nameOf)
		id := r.create("serve")
		if c, _ := r.engine.Container(id); !strings.HasPrefix(c.Name, "/"+nameOf+"_") {
			t.Errorf("it is called %s", c.Name)
		}
	})
}

// With a slow disk a container takes longer than its caller can wait. It is there
// when he asks again, and the kubelet is shown none that it was not told of.
func TestTooLate(t *testing.T) {
	const create = "POST /containers/create"
	late := func(t *testing.T) (r *room, first string) {
		r = newRoom(t)
		r.engine.ResetCalls()
		r.engine.Delay(create, 300*time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		first, err := r.Create(ctx, r.pod, config("serve"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if list, err := r.List(t.Context(), nil); err != nil || len(list) != 0 {
			t.Errorf("before anybody asks again there are %v, %v", list, err)
		}
		return r, first
	}
	end := func(r *room, id string) {
		if list, err := r.List(r.Context(), nil); err != nil || len(list) != 1 || list[0].GetId() != id {
			r.Errorf("got %v, %v, want %s", list, err, id)
		}
		if err := r.Remove(r.Context(), id); err != nil {
			r.Error(err)
		}
		r.clean("the end")
	}
	t.Run("asked for again", func(t *testing.T) {
		r, first := late(t)
		again := r.create("serve")
		if again != first || r.engine.Calls(create) != 1 {
			t.Errorf("got %s after %d creates, want %s", again, r.engine.Calls(create), first)
		}
		end(r, again)
	})
	t.Run("something else is asked for", func(t *testing.T) {
		r, first := late(t)
		other := r.create("serve", "on")
		if other == first {
			t.Error("got what was asked for before")
		}
		end(r, other)
	})
	t.Run("gone meanwhile", func(t *testing.T) {
		r, first := late(t)
		if err := r.client.ContainerRemove(t.Context(), first, dockercontainer.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		enginetest.Until(t, "it is still there", func() bool { _, err := r.Status(t.Context(), first); return errdefs.IsNotFound(err) })
		r.create("serve")
	})
	t.Run("nobody asks again", func(t *testing.T) {
		r, first := late(t)
		r.RemoveLate(t.Context(), time.Now().Add(-time.Minute))
		if _, ok := r.engine.Container(first); !ok {
			t.Error("it was not kept")
		}
		r.RemoveLate(t.Context(), time.Now().Add(time.Minute))
		if _, ok := r.engine.Container(first); ok {
			t.Error("it is kept for ever")
		}
		end(r, r.create("serve"))
	})
}

func TestStops(t *testing.T) {
	r := newRoom(t)
	ctx := t.Context()
	deaf := r.run("sleep", "1000")
	// A kubelet that comes back with a shorter grace is not made to wait for
	// the longer one, nor is the longer one.
	began := time.Now()
	var all errgroup.Group
	all.Go(func() error { return r.Stop(ctx, deaf, time.Minute) })
	enginetest.Until(t, "no stop", func() bool { return r.engine.Calls("POST /containers/{id}/stop") == 1 })
	all.Go(func() error { return r.Stop(ctx, deaf, 300*time.Millisecond) })
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stopped after %v", took)
	}
	if s := r.status(deaf); s.GetExitCode() != 137 {
		t.Errorf("status %v", s)
	}
	if err := r.Remove(ctx, deaf); err != nil {
		t.Error(err)
	}

	// No grace is no signal but KILL, by one call.
	deaf = r.run("sleep", "1000")
	if err := r.Stop(ctx, deaf, 0); err != nil || r.engine.Calls("POST /containers/{id}/stop") != 1 {
		t.Errorf("%v, %d stops", err, r.engine.Calls("POST /containers/{id}/stop"))
	}

	// Hanging up does not stop the stopping.
	if err := r.Remove(ctx, deaf); err != nil {
		t.Error(err)
	}
	id := r.run("serve")
	gone, hangUp := context.WithCancel(ctx)
	r.engine.On("POST /containers/{id}/stop", hangUp)
	if err := r.Stop(gone, id, time.Minute); err != nil {
		t.Errorf("stop by one who hangs up: %v", err)
	}
	if s := r.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("status %v", s)
	}
}

func TestStopsThatFail(t *testing.T) {
	r := newRoom(t)
	const stop = "POST /containers/{id}/stop"
	id := r.run("serve")
	r.engine.Fail(stop, http.StatusInternalServerError)
	if err := r.Stop(t.Context(), id, time.Second); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one that runs on: %v, want %v", err, context.DeadlineExceeded)
	}

	// The Engine says that it could not, and it has ended all the same.
	r.engine.On(stop, func() {
		if err := r.Kill(t.Context(), id); err != nil {
			t.Error(err)
		}
	})
	if err := r.Stop(t.Context(), id, time.Second); err != nil {
		t.Errorf("one that has ended: %v", err)
	}
}

func TestRemoveAtOnce(t *testing.T) {
	r := newRoom(t)
	r.engine.RemoveTakes(200 * time.Millisecond)
	id := r.run("serve")
	var all errgroup.Group
	for range 5 {
		all.Go(func() error { return r.Remove(t.Context(), id) })
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	r.clean("five removals")
}

// What cannot be removed is still there, for the kubelet to come back to.
func TestARemovalThatFails(t *testing.T) {
	r := newRoom(t)
	id := r.create("serve")
	r.engine.Fail("DELETE /containers/{id}", http.StatusInternalServerError)
	if err := r.Remove(t.Context(), id); err == nil {
		t.Error("no error")
	}
	if list, err := r.List(t.Context(), nil); err != nil || len(list) != 1 {
		t.Errorf("list %v, %v; want one", list, err)
	}
	r.engine.Heal("DELETE /containers/{id}")
	if err := r.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	r.clean("a removal at the second try")
}
