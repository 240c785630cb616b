package container_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
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
	"berth/core/criu"
	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/identity"
	"berth/core/image/pinning"
	"berth/core/labels"
	"berth/core/logs/dockerlog"
	"berth/core/names"
	"berth/core/nri"
	"berth/core/ociruntime"
	"berth/core/podpolicy"
	"berth/core/premount"
	"berth/core/restore"
	"berth/core/specfiles"
	"berth/core/state"
	"berth/core/todocker"
)

// fakeNetwork is a network that every pod is attached to.
type fakeNetwork struct{}

func (fakeNetwork) Addresses(string) ([]netip.Addr, bool, error) { return nil, true, nil }
func (fakeNetwork) InNetNS(string, int) bool                     { return true }

// fakeServices stands for the other services: it has one image and no files, and records which logs are open.
type fakeServices struct {
	imageFiles map[string]string // of the image checkpoint

	mu     sync.Mutex // guards following
	open   map[string]string
	broken error
}

func (s *fakeServices) Create(id string, _ dockerlog.File, _, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[id] = path
	return s.broken
}

func (s *fakeServices) Remove(_ context.Context, id, _, _, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, id)
	return nil
}

func (s *fakeServices) openLogs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func (*fakeServices) Reopen(context.Context, string) error { return nil }
func (*fakeServices) Prune(func(string) bool) error        { return nil }
func (*fakeServices) LogConfig() dockercontainer.LogConfig {
	return dockercontainer.LogConfig{Type: "json-file", Config: map[string]string{"mode": "blocking"}}
}
func (*fakeServices) Observe(context.Context, *cache.Container) {}
func (*fakeServices) Discard(string)                            {}
func (*fakeServices) FilesOf(string) []todocker.File            { return nil }
func (*fakeServices) Resolve(_ context.Context, ref, _ string) (todocker.Image, error) {
	if ref == "checkpoint" {
		return todocker.Image{ID: "checkpoint", Names: []string{"checkpoint:1"}, Size: 1 << 20}, nil
	}
	if ref != "server" {
		return todocker.Image{}, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	return todocker.Image{ID: "server", Ref: "server", HasCommand: true}, nil
}

func (s *fakeServices) Walk(_ context.Context, _ string, names []string, visit func(*tar.Header, io.Reader) error) error {
	for _, name := range names {
		for path, text := range s.imageFiles {
			if top, _, _ := strings.Cut(path, "/"); top != name {
				continue
			}
			if err := visit(&tar.Header{Name: path, Typeflag: tar.TypeReg, Size: int64(len(text))}, strings.NewReader(text)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (*fakeServices) PasswdFiles(context.Context, string) (identity.PasswdFiles, error) {
	return identity.PasswdFiles{}, nil
}

// A fixture is a Service with an Engine that has one sandbox, pod.
type fixture struct {
	*testing.T
	engine *enginetest.Engine
	docker *engine.Engine
	client *client.Client
	cache  *cache.Cache
	logs   *fakeServices
	*container.Service
	pod    string
	ociDir string
	files  specfiles.Config

	archives, restores string // directories
	probe              error  // of a restore

	nriRecords *nri.Records
}

func newFixture(t *testing.T, options ...enginetest.Option) *fixture {
	f := &fixture{T: t, engine: enginetest.New(t, options...), logs: &fakeServices{open: map[string]string{}}}
	f.engine.AddImage(enginetest.Image{}, "server")
	f.client = f.engine.Client(t)
	docker := f.engine.Connect(t)
	f.docker = docker
	store, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	failures, err := container.OpenFailedStarts(store)
	if err != nil {
		t.Fatal(err)
	}
	updates, err := container.OpenUpdates(store)
	if err != nil {
		t.Fatal(err)
	}
	if f.nriRecords, err = nri.OpenRecords(store); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	f.cache = cache.New(cache.Config{Network: fakeNetwork{}, FailedStarts: failures, ContainerUpdates: updates, Logs: f.logs}, docker, log)
	enginetest.Background(t, f.cache.Run)
	policy, err := podpolicy.New(podpolicy.Options{ShimPerPod: true, DeviceOwnership: true})
	if err != nil {
		t.Fatal(err)
	}
	f.ociDir, f.files = filepath.Join(t.TempDir(), "oci"), specfiles.Config{SpecDir: t.TempDir(), HooksDirs: []string{t.TempDir()}}
	patterns, err := pinning.ParsePatterns([]string{"checkpoint"})
	if err != nil {
		t.Fatal(err)
	}
	f.archives, f.restores = t.TempDir(), filepath.Join(t.TempDir(), "restores")
	restores := restore.New(restore.Config{ArchiveDir: f.archives, Images: patterns, Probe: func(context.Context, int, string, string) error { return f.probe }}, f.restores, log)
	f.Service = container.New(container.Config{
		Engine: docker, Cache: f.cache, Images: f.logs, Logs: f.logs, Files: f.logs, Policy: policy, OCI: ociruntime.New(f.ociDir, func(engine.Features) error { return nil }),
		Failures: failures, Updates: updates, NRIRecords: f.nriRecords, Premounts: premount.New(filepath.Join(t.TempDir(), "mounts")), SpecFiles: f.files, Checkpoints: criu.New(filepath.Join(t.TempDir(), "checkpoints"), log), Restores: restores, Log: log,
	})

	set := labels.Set{Kind: labels.Sandbox, Config: `{"metadata":{"name":"web","namespace":"ns","uid":"u"},"log_directory":"/logs"}`}
	created, err := f.client.ContainerCreate(t.Context(), &dockercontainer.Config{
		Image: "server", Cmd: []string{"pause"}, Labels: set.Encode(), NetworkDisabled: true,
	}, &dockercontainer.HostConfig{IpcMode: dockercontainer.IPCModeShareable, Init: new(bool)}, nil, nil, names.Name{Container: names.Pod, Pod: "web", Namespace: "ns", UID: "u"}.String())
	if err != nil {
		t.Fatal(err)
	}
	f.pod = created.ID
	if err := f.client.ContainerStart(t.Context(), f.pod, dockercontainer.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := f.cache.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.cache.Refresh(t.Context(), f.pod); err != nil {
		t.Fatal(err)
	}
	return f
}

func config(command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "server"}, Command: command, LogPath: "c/0.log",
	}
}

// dockerName is the Docker name of the container that config describes.
var dockerName = names.Name{Container: "c", Pod: "web", Namespace: "ns", UID: "u"}.String()

func (f *fixture) create(command ...string) string {
	f.Helper()
	id, err := f.Create(f.Context(), f.pod, config(command...), nil)
	if err != nil {
		f.Fatal(err)
	}
	return id
}

func (f *fixture) run(command ...string) string {
	f.Helper()
	id := f.create(command...)
	if err := f.Start(f.Context(), id); err != nil {
		f.Fatal(err)
	}
	return id
}

// status is the status of a container, without waiting for events.
func (f *fixture) status(id string) *runtimeapi.ContainerStatus {
	f.Helper()
	c, err := f.Status(f.Context(), id)
	if err != nil {
		f.Fatal(err)
	}
	return c.Status
}

// requireClean fails if Docker has another container than the sandbox, or a log is open.
func (f *fixture) requireClean(after string) {
	f.Helper()
	if left := f.engine.Leftovers(); len(left) != 1 || f.logs.openLogs() != 0 {
		f.Errorf("after %s Docker has %v, and %d logs are open", after, left, f.logs.openLogs())
	}
}

func TestLifeCycleStatesAndErrors(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	id := f.create("serve")
	if s := f.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || s.GetCreatedAt() == 0 || s.GetLogPath() != "/logs/c/0.log" {
		t.Errorf("status %v", s)
	}
	if err := f.Start(ctx, id); err != nil {
		t.Fatal(err)
	}
	if s := f.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status %v", s)
	}
	if err := f.Start(ctx, id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v, want FailedPrecondition", err)
	}
	for range 2 {
		if err := f.Stop(ctx, id, time.Minute); err != nil {
			t.Fatal(err)
		}
		if s := f.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetReason() != "Completed" {
			t.Errorf("status %v", s)
		}
	}
	for range 2 {
		if err := f.Remove(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Status(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("status: %v, want NotFound", err)
	}
	if err := f.Stop(ctx, id, time.Minute); err != nil {
		t.Errorf("stop after the removal: %v", err)
	}
	if err := f.Start(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("start after the removal: %v, want NotFound", err)
	}
	f.requireClean("create, start, stop and remove")
}

func TestFailedStartIsExitedWithItsReason(t *testing.T) {
	f := newFixture(t)
	id := f.create("missing")
	before := time.Now()
	err := f.Start(t.Context(), id)
	if err == nil || !strings.Contains(err.Error(), "executable file not found") || strings.Contains(err.Error(), "Error response from daemon") {
		t.Errorf("start: %v", err)
	}
	s := f.status(id)
	if s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetReason() != "StartError" || s.GetExitCode() != 127 || s.GetMessage() == "" ||
		s.GetStartedAt() != 0 || s.GetFinishedAt() < before.UnixNano() {
		t.Errorf("status %v", s)
	}
	if err := f.Start(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v, want FailedPrecondition", err)
	}
	if err := f.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	f.requireClean("a failed start")
}

// A start whose response was lost may have succeeded.
func TestStartWithALostResponseIsNotRecordedAsFailed(t *testing.T) {
	f := newFixture(t)
	id := f.create("serve")
	f.engine.DropResponse("POST /containers/{id}/start", 1)
	if err := f.Start(t.Context(), id); err == nil {
		t.Error("no error, although the response was lost")
	}
	enginetest.Until(t, "not RUNNING in the cache", func() bool {
		c, err := f.Status(t.Context(), id)
		return err == nil && c.Running
	})
}

func TestCreateRemovesTheContainerOnFailure(t *testing.T) {
	for name, tt := range map[string]struct {
		inject func(f *fixture, cancel func())
		want   func(error) bool
	}{
		"create refused": {func(f *fixture, _ func()) {
			f.engine.FailOnce("POST /containers/create", http.StatusInternalServerError, 1)
		}, errdefs.IsInternal},
		"inspect refused": {func(f *fixture, _ func()) {
			f.engine.Fail("GET /containers/{id}/json", http.StatusInternalServerError)
		}, errdefs.IsInternal},
		"log cannot be opened":        {func(f *fixture, _ func()) { f.logs.broken = errdefs.ErrPermissionDenied }, errdefs.IsPermissionDenied},
		"cancelled during the create": {func(f *fixture, cancel func()) { f.engine.On("POST /containers/create", cancel) }, isCanceled},
		"cancelled before":            {func(_ *fixture, cancel func()) { cancel() }, isCanceled},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			// Events would have the new container inspected, too.
			f.engine.DropEvents(true)
			tt.inject(f, cancel)
			id, err := f.Create(ctx, f.pod, config("serve"), nil)
			if id != "" || err == nil || !tt.want(err) {
				t.Errorf("Create: %q, %v, want another kind of error", id, err)
			}
			f.logs.broken = nil
			f.engine.ClearFaults("GET /containers/{id}/json")
			f.requireClean(name)
			if list, err := f.List(t.Context(), nil); err != nil || len(list) != 0 {
				t.Errorf("list %v, %v; want none", list, err)
			}
			f.create("serve") // a retry succeeds
		})
	}
}

func isCanceled(err error) bool { return errors.Is(err, context.Canceled) }

func TestCreateRefusesInvalidRequests(t *testing.T) {
	f := newFixture(t)
	unknownImage := config("serve")
	unknownImage.Image.Image = "other"
	noImage := config("serve")
	noImage.Image = nil
	for name, tt := range map[string]struct {
		pod    string
		config *runtimeapi.ContainerConfig
		want   func(error) bool
	}{
		"no such image":   {f.pod, unknownImage, errdefs.IsNotFound},
		"no image":        {f.pod, noImage, errdefs.IsInvalidArgument},
		"no such sandbox": {"nothing", config("serve"), errdefs.IsNotFound},
		"no name":         {f.pod, &runtimeapi.ContainerConfig{Image: &runtimeapi.ImageSpec{Image: "server"}}, errdefs.IsInvalidArgument},
	} {
		if _, err := f.Create(t.Context(), tt.pod, tt.config, nil); err == nil || !tt.want(err) {
			t.Errorf("%s: %v, want another kind of error", name, err)
		}
	}
	// Targets of a shared PID namespace.
	createWithTarget := func(target string) error {
		c := config("serve")
		c.Metadata.Name = "debugger"
		c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target},
		}}
		_, err := f.Create(t.Context(), f.pod, c, nil)
		return err
	}
	otherPods := labels.Set{Kind: labels.Container, SandboxID: "another", Config: `{"metadata":{"name":"c"}}`}
	made, err := f.client.ContainerCreate(t.Context(), &dockercontainer.Config{Image: "server", Cmd: []string{"serve"}, Labels: otherPods.Encode()},
		&dockercontainer.HostConfig{Init: new(bool)}, nil, nil, names.Name{Container: "c", Pod: "other", Namespace: "ns", UID: "o"}.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.cache.Refresh(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	if err := createWithTarget(made.ID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a target that is not running: %v, want FailedPrecondition", err)
	}
	if err := f.client.ContainerStart(t.Context(), made.ID, dockercontainer.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.cache.Refresh(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	if err := createWithTarget(made.ID); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a target in another pod: %v, want InvalidArgument", err)
	}
	if err := createWithTarget("none"); !errdefs.IsNotFound(err) {
		t.Errorf("no such target: %v, want NotFound", err)
	}
	if err := f.client.ContainerRemove(t.Context(), made.ID, dockercontainer.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	f.engine.Die(f.pod, 0)
	if _, err := f.cache.Refresh(t.Context(), f.pod); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Create(t.Context(), f.pod, config("serve"), nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("sandbox not ready: %v, want FailedPrecondition", err)
	}
	f.requireClean("refused requests")
}

// addPod adds a sandbox with annotations for the low-level runtime and returns its ID.
func (f *fixture) addPod(name string, annotations map[string]string) string {
	f.Helper()
	set := labels.Set{Kind: labels.Sandbox, Config: fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"ns","uid":"u"},"log_directory":"/logs"}`, name)}
	created, err := f.client.ContainerCreate(f.Context(), &dockercontainer.Config{
		Image: "server", Cmd: []string{"pause"}, Labels: set.Encode(), NetworkDisabled: true,
	}, &dockercontainer.HostConfig{IpcMode: dockercontainer.IPCModeShareable, Init: new(bool), Annotations: annotations}, nil, nil,
		names.Name{Container: names.Pod, Pod: name, Namespace: "ns", UID: "u"}.String())
	if err != nil {
		f.Fatal(err)
	}
	if err := f.client.ContainerStart(f.Context(), created.ID, dockercontainer.StartOptions{}); err != nil {
		f.Fatal(err)
	}
	if _, err := f.cache.Refresh(f.Context(), created.ID); err != nil {
		f.Fatal(err)
	}
	return created.ID
}

// The pause container says which shim the containers of a pod share, also to a berthd that was started later.
func TestContainersJoinTheShimOfTheirPod(t *testing.T) {
	f := newFixture(t, enginetest.API("1.48"))
	const key = "io.containerd.runc.v2.group"
	group := names.NewShimGroup()
	for name, annotations := range map[string]map[string]string{"with": {key: group}, "without": nil, "forged": {key: "../another"}} {
		id, err := f.Create(t.Context(), f.addPod(name, annotations), config("serve"), nil)
		if err != nil {
			t.Fatal(err)
		}
		seen, err := f.client.ContainerInspect(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		got := seen.HostConfig.Annotations[key]
		if joined := got == group; joined != (name == "with") || got == "" || got == annotations[key] && !joined {
			t.Errorf("pod %s: the container has the shim group %q", name, got)
		}
	}
}

// Docker resolves a sub-path only at the start, but the kubelet expects the error from CreateContainer.
func TestCreateRefusesAMissingSubPathOfAnImage(t *testing.T) {
	f := newFixture(t, enginetest.API("1.48"))
	create := func(subPath string) (string, error) {
		c := config("serve")
		c.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/sub", Image: &runtimeapi.ImageSpec{Image: "server"}, ImageSubPath: subPath, Readonly: true},
		}
		return f.Create(t.Context(), f.pod, c, nil)
	}
	for _, subPath := range []string{"no/such", "etc/pass"} {
		if id, err := create(subPath); err == nil || id != "" || !strings.HasPrefix(err.Error(), "ImageVolumeMountFailed: ") || !strings.Contains(err.Error(), subPath) {
			t.Errorf("%s: %q, %v", subPath, id, err)
		}
		f.requireClean("a sub-path that does not exist")
	}
	id, err := create("etc")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// Docker refuses logs that are not buffered if its daemon.json has max-buffer-size among its log-opts.
func TestCreateBuffersLogsWhereDockerRequiresIt(t *testing.T) {
	const create = "POST /containers/create"
	f := newFixture(t)
	logMode := func(id string) string {
		inspected, err := f.client.ContainerInspect(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return inspected.HostConfig.LogConfig.Config["mode"]
	}
	blocking := f.create("serve")
	if got := logMode(blocking); got != "blocking" {
		t.Errorf("log mode %q, want blocking", got)
	}
	if err := f.Remove(t.Context(), blocking); err != nil {
		t.Fatal(err)
	}
	f.engine.FailOnce(create, http.StatusBadRequest, 1)
	buffered := f.create("serve")
	if got := logMode(buffered); got != "non-blocking" {
		t.Errorf("log mode %q where Docker refuses blocking, want non-blocking", got)
	}
	if err := f.Remove(t.Context(), buffered); err != nil {
		t.Fatal(err)
	}
	f.engine.Fail(create, http.StatusBadRequest)
	if _, err := f.Create(t.Context(), f.pod, config("serve"), nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("refused for another reason: %v", err)
	}
	f.requireClean("buffered logs")
}

func TestCreateResolvesNameConflicts(t *testing.T) {
	t.Run("an earlier attempt is removed", func(t *testing.T) {
		f := newFixture(t)
		first := f.create("serve")
		if second := f.create("serve"); second == first {
			t.Error("the earlier container was returned")
		}
		if _, ok := f.engine.Container(first); ok {
			t.Error("the earlier container still exists")
		}
	})
	t.Run("an attempt whose response was lost is removed", func(t *testing.T) {
		f := newFixture(t)
		f.engine.DropResponse("POST /containers/create", 1)
		if _, err := f.Create(t.Context(), f.pod, config("serve"), nil); err == nil {
			t.Error("no error, although the response was lost")
		}
		enginetest.Until(t, "not connected again", func() bool { return f.cache.Ready(t.Context()) == nil })
		f.create("serve")
		if left := f.engine.Leftovers(); len(left) != 2 {
			t.Errorf("Docker has %v, want the sandbox and one container", left)
		}
	})
	t.Run("a running container is refused", func(t *testing.T) {
		f := newFixture(t)
		id := f.run("serve")
		if _, err := f.Create(t.Context(), f.pod, config("serve"), nil); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), id) {
			t.Errorf("Create: %v, want AlreadyExists with the ID", err)
		}
		if s := f.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("state %v, want RUNNING", s.GetState())
		}
	})
	t.Run("a container that is no pod's is refused", func(t *testing.T) {
		f := newFixture(t)
		made, err := f.client.ContainerCreate(t.Context(), &dockercontainer.Config{Image: "server"}, nil, nil, nil, dockerName)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Create(t.Context(), f.pod, config("serve"), nil); !errdefs.IsAlreadyExists(err) {
			t.Errorf("%v, want AlreadyExists", err)
		}
		if _, ok := f.engine.Container(made.ID); !ok {
			t.Error("the other container was removed")
		}
	})
	t.Run("a name that Docker leaked gets a suffix", func(t *testing.T) {
		f := newFixture(t)
		f.engine.LeakName(dockerName)
		id := f.create("serve")
		if c, _ := f.engine.Container(id); !strings.HasPrefix(c.Name, "/"+dockerName+"_") {
			t.Errorf("Docker name %s, want a suffix", c.Name)
		}
	})
}

// With a slow disk, the creation of a container outlasts the deadline of its caller. The retry gets the container, and
// until then it is not listed, because the kubelet would not know it.
func TestContainerCreatedAfterTheDeadlineWaitsForTheRetry(t *testing.T) {
	const create = "POST /containers/create"
	createLate := func(t *testing.T) (f *fixture, first string) {
		f = newFixture(t)
		f.engine.ResetCalls()
		f.engine.Delay(create, 300*time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		first, err := f.Create(ctx, f.pod, config("serve"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if list, err := f.List(t.Context(), nil); err != nil || len(list) != 0 {
			t.Errorf("listed before the retry: %v, %v", list, err)
		}
		return f, first
	}
	finish := func(f *fixture, id string) {
		if list, err := f.List(f.Context(), nil); err != nil || len(list) != 1 || list[0].GetId() != id {
			f.Errorf("listed after the retry: %v, %v, want %s", list, err, id)
		}
		if err := f.Remove(f.Context(), id); err != nil {
			f.Error(err)
		}
		f.requireClean("the retry and a removal")
	}
	t.Run("the same request", func(t *testing.T) {
		f, first := createLate(t)
		retried := f.create("serve")
		if retried != first || f.engine.Calls(create) != 1 {
			t.Errorf("got %s after %d creates, want %s", retried, f.engine.Calls(create), first)
		}
		finish(f, retried)
	})
	t.Run("another request of that name", func(t *testing.T) {
		f, first := createLate(t)
		other := f.create("serve", "on")
		if other == first {
			t.Error("got the container of the earlier request")
		}
		finish(f, other)
	})
	t.Run("the container was removed meanwhile", func(t *testing.T) {
		f, first := createLate(t)
		if err := f.client.ContainerRemove(t.Context(), first, dockercontainer.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		enginetest.Until(t, "the container still exists", func() bool { _, err := f.Status(t.Context(), first); return errdefs.IsNotFound(err) })
		f.create("serve")
	})
	t.Run("no retry", func(t *testing.T) {
		f, first := createLate(t)
		f.ExpirePending(t.Context(), time.Now().Add(-time.Minute))
		if _, ok := f.engine.Container(first); !ok {
			t.Error("removed before it expired")
		}
		f.ExpirePending(t.Context(), time.Now().Add(time.Minute))
		if _, ok := f.engine.Container(first); ok {
			t.Error("not removed after it expired")
		}
		finish(f, f.create("serve"))
	})
}

func TestStopHonorsTheShortestGracePeriod(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	container := f.run("sleep", "1000")
	// A second call with a shorter grace period ends both.
	started := time.Now()
	var all errgroup.Group
	all.Go(func() error { return f.Stop(ctx, container, time.Minute) })
	enginetest.Until(t, "no stop request", func() bool { return f.engine.Calls("POST /containers/{id}/stop") == 1 })
	all.Go(func() error { return f.Stop(ctx, container, 300*time.Millisecond) })
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("stopped after %v", took)
	}
	if s := f.status(container); s.GetExitCode() != 137 {
		t.Errorf("status %v", s)
	}
	if err := f.Remove(ctx, container); err != nil {
		t.Error(err)
	}

	// Without a grace period there is one call, a kill.
	container = f.run("sleep", "1000")
	if err := f.Stop(ctx, container, 0); err != nil || f.engine.Calls("POST /containers/{id}/stop") != 1 {
		t.Errorf("%v, %d stops", err, f.engine.Calls("POST /containers/{id}/stop"))
	}

	// The stop goes on if the caller cancels.
	if err := f.Remove(ctx, container); err != nil {
		t.Error(err)
	}
	id := f.run("serve")
	canceled, cancel := context.WithCancel(ctx)
	f.engine.On("POST /containers/{id}/stop", cancel)
	if err := f.Stop(canceled, id, time.Minute); err != nil {
		t.Errorf("stop by a caller that cancels: %v", err)
	}
	if s := f.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("status %v", s)
	}
}

func TestStopFailsOnlyIfTheContainerIsStillRunning(t *testing.T) {
	f := newFixture(t)
	const stop = "POST /containers/{id}/stop"
	id := f.run("serve")
	f.engine.Fail(stop, http.StatusInternalServerError)
	if err := f.Stop(t.Context(), id, time.Second); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("still running: %v, want %v", err, context.DeadlineExceeded)
	}

	// Docker returns an error, but the container has exited.
	f.engine.On(stop, func() {
		if err := f.Kill(t.Context(), id); err != nil {
			t.Error(err)
		}
	})
	if err := f.Stop(t.Context(), id, time.Second); err != nil {
		t.Errorf("exited: %v", err)
	}
}

func TestParallelRemovesSucceed(t *testing.T) {
	f := newFixture(t)
	f.engine.RemoveTakes(200 * time.Millisecond)
	id := f.run("serve")
	var all errgroup.Group
	for range 5 {
		all.Go(func() error { return f.Remove(t.Context(), id) })
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	f.requireClean("five parallel removals")
}

// A container that cannot be removed stays listed, so that the kubelet tries again.
func TestFailedRemovalKeepsTheContainerListed(t *testing.T) {
	f := newFixture(t)
	id := f.create("serve")
	f.engine.Fail("DELETE /containers/{id}", http.StatusInternalServerError)
	if err := f.Remove(t.Context(), id); err == nil {
		t.Error("no error")
	}
	if list, err := f.List(t.Context(), nil); err != nil || len(list) != 1 {
		t.Errorf("list %v, %v; want one", list, err)
	}
	f.engine.ClearFaults("DELETE /containers/{id}")
	if err := f.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	f.requireClean("the second removal")
}
