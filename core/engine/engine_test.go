package engine_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/system"

	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/testmain"
)

// Most tests wait for an Engine that hangs, or for a timeout.
func TestMain(m *testing.M) { testmain.M{M: m}.Run() }

func TestReconnectsAfterRestartAndUpgrade(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	docker := e.Connect(t)
	first, err := docker.Conn()
	if err != nil {
		t.Fatal(err)
	}
	replaced := make(chan struct{})
	go func() {
		docker.WaitReplaced(t.Context(), first, nil)
		close(replaced)
	}()
	e.Stop()
	enginetest.Until(t, "the stopped Engine still has a connection", func() bool { _, err := docker.Conn(); return err != nil })
	<-replaced
	if _, err := docker.Conn(); !errdefs.IsUnavailable(err) || !engine.IsUnavailable(err) {
		t.Errorf("while the Engine is stopped: %v, want Unavailable", err)
	}
	if last, err := docker.LastConn(); last != first || err != nil {
		t.Errorf("the last connection is %v, %v; want %v", last, err, first)
	}

	// After an upgrade another API version is negotiated.
	e.Version("1.51")
	e.Restart()
	restarted := time.Now()
	conn, err := docker.WaitConn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(restarted); took > 3*time.Second {
		t.Errorf("connected again after %v", took)
	}
	if first.Features.API != "1.41" || conn.Features.API != "1.51" || conn.ClientVersion() != "1.51" || !conn.Features.ImageMounts || first.Features.ImageMounts {
		t.Errorf("API %s, then %s; want 1.41 and 1.51", first.Features.API, conn.Features.API)
	}
}

// untilKnown waits until a runtime is in the features. There must be a connection all the time.
func untilKnown(t *testing.T, docker *engine.Engine, runtime string) {
	t.Helper()
	enginetest.Until(t, "runtime "+runtime+" is not in the features", func() bool {
		conn, err := docker.Conn()
		if err != nil {
			t.Fatalf("no connection: %v", err)
		}
		_, ok := conn.Features.Runtimes[runtime]
		return ok
	})
}

// A runtime that is added to daemon.json is known after the reload, without an interruption
// of the connection.
func TestReloadUpdatesFeatures(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	docker := e.Connect(t)
	for _, name := range []string{"first", "second"} {
		before, err := docker.Conn()
		if err != nil {
			t.Fatal(err)
		}
		e.Reload(func(i *system.Info) { i.Runtimes[name] = system.RuntimeWithStatus{} })
		untilKnown(t, docker, name)
		if _, ok := before.Features.Runtimes[name]; ok {
			t.Errorf("the features of the old connection have runtime %s", name)
		}
	}
	n := e.Calls("GET /info")
	time.Sleep(1500 * time.Millisecond)
	if more := e.Calls("GET /info") - n; more > 0 {
		t.Errorf("the features were read %d times more without a reload", more)
	}
}

// Docker 25 and newer answer a call of docker info with what it has collected for another one, which may have begun before the reload.
func TestFeaturesThatAreOlderThanAReloadAreReadAgain(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	docker := e.Connect(t)
	before, stale := time.Now(), 2
	e.Reload(func(i *system.Info) {
		if stale--; stale >= 0 {
			i.SystemTime = before.UTC().Format(time.RFC3339Nano)
			return
		}
		i.Runtimes["new"] = system.RuntimeWithStatus{}
	})
	untilKnown(t, docker, "new")
}

// Docker 23 and newer read their configuration first, and the time some milliseconds later.
func TestFeaturesOfTheMomentOfAReloadAreReadAgain(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	docker := e.Connect(t)
	stale := 1
	e.Reload(func(i *system.Info) {
		if stale--; stale >= 0 {
			i.SystemTime = time.Now().UTC().Format(time.RFC3339Nano)
			return
		}
		i.Runtimes["new"] = system.RuntimeWithStatus{}
	})
	untilKnown(t, docker, "new")
}

func TestReloadWhileFeaturesAreReadIsNotMissed(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	var once sync.Once
	e.On("GET /events", func() {
		once.Do(func() { e.Reload(func(i *system.Info) { i.Runtimes["new"] = system.RuntimeWithStatus{} }) })
	})
	docker := e.Connect(t)
	untilKnown(t, docker, "new")
}

func TestHungCallDoesNotBreakTheConnection(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	docker := e.Connect(t)
	conn, err := docker.Conn()
	if err != nil {
		t.Fatal(err)
	}
	release := e.Hang("GET /containers/json")
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if _, err := conn.ContainerList(ctx, container.ListOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("list: %v, want DeadlineExceeded", err)
	}
	if now, err := docker.Conn(); now != conn || err != nil {
		t.Errorf("the connection is %v, %v; want the same as before", now, err)
	}
}

func TestUnsupportedEngineIsUnavailable(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		setUp func(*enginetest.Engine)
		want  string
	}{
		"too old":       {func(e *enginetest.Engine) { e.Version("1.40") }, "needs 1.41 or newer"},
		"rootless":      {func(e *enginetest.Engine) { e.SetInfo(rootless) }, "rootless"},
		"no answer":     {func(e *enginetest.Engine) { e.Fail("GET /info", http.StatusInternalServerError) }, "docker info"},
		"no connection": {(*enginetest.Engine).Stop, "Cannot connect"},
	} {
		t.Run(name, func(t *testing.T) {
			e := enginetest.New(t)
			tt.setUp(e)
			docker, err := engine.New(engine.Config{Host: e.Host}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			enginetest.Background(t, docker.Run)
			enginetest.Until(t, "the error does not contain "+tt.want, func() bool {
				_, err = docker.Conn()
				return strings.Contains(err.Error(), tt.want)
			})
			if _, last := docker.LastConn(); !errdefs.IsUnavailable(err) || !errdefs.IsUnavailable(last) {
				t.Errorf("%v, %v; want Unavailable", err, last)
			}
		})
	}
}

func rootless(info *system.Info) {
	info.SecurityOptions = append(info.SecurityOptions, "name=rootless")
}

func TestKillAndForceRemoveAreIdempotent(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	e.AddImage(enginetest.Image{}, "server")
	conn, err := e.Connect(t).Conn()
	if err != nil {
		t.Fatal(err)
	}
	made, err := conn.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"serve"}}, nil, nil, nil, "web")
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"created", "running", "exited"} {
		if err := conn.Kill(t.Context(), made.ID); err != nil {
			t.Errorf("kill of a container that is %s: %v", state, err)
		}
		if state == "created" {
			if err := conn.ContainerStart(t.Context(), made.ID, container.StartOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if c, _ := e.Container("web"); c.State.ExitCode != 137 {
		t.Errorf("state %+v, want killed", c.State)
	}
	// Another client removes it: ForceRemove returns after that. A Docker that contradicts itself is asked again.
	e.FailOnce("DELETE /containers/{id}", http.StatusConflict, 1)
	e.FailOnce("DELETE /containers/{id}", http.StatusNotFound, 2)
	for range 2 {
		if err := conn.ForceRemove(t.Context(), made.ID); err != nil {
			t.Error(err)
		}
	}
	if err := conn.Kill(t.Context(), made.ID); err != nil {
		t.Errorf("kill of a removed container: %v", err)
	}
	if left := e.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestIsUnavailable(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	conn, err := e.Connect(t).Conn()
	if err != nil {
		t.Fatal(err)
	}
	inspect := func() error { _, err := conn.ContainerInspect(t.Context(), "web"); return err }
	if err := inspect(); engine.IsUnavailable(err) {
		t.Errorf("not found: %v must not be unavailable", err)
	}
	e.Fail("GET /containers/{id}/json", http.StatusInternalServerError)
	if err := inspect(); engine.IsUnavailable(err) {
		t.Errorf("status 500: %v must not be unavailable", err)
	}
	e.ClearFaults("GET /containers/{id}/json")
	// Not with a GET, which net/http repeats over another connection.
	e.FailOnce("POST /containers/{id}/start", enginetest.HangUp, 1)
	if err := conn.ContainerStart(t.Context(), "web", container.StartOptions{}); !engine.IsUnavailable(err) {
		t.Errorf("connection closed by the Engine: %v must be unavailable", err)
	}
	e.Stop()
	if err := inspect(); !engine.IsUnavailable(err) {
		t.Errorf("stopped Engine: %v must be unavailable", err)
	}
	for _, err := range []error{nil, context.Canceled, errors.New("EOF")} {
		if engine.IsUnavailable(err) {
			t.Errorf("%v must not be unavailable", err)
		}
	}
	if !engine.IsUnavailable(io.ErrUnexpectedEOF) {
		t.Error("a truncated response must be unavailable")
	}
}

// With the containerd image store, images are where containerd has its database open. This
// process stands for containerd.
func TestContainerdRoot(t *testing.T) {
	t.Parallel()
	root, rootDir := t.TempDir(), t.TempDir()
	socket, own, db := filepath.Join(root, "s"), filepath.Join(rootDir, "containerd", "daemon"), filepath.Join(root, "io.containerd.metadata.v1.bolt", "meta.db")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(os.MkdirAll(own, 0o700), os.Mkdir(filepath.Dir(db), 0o700)); err != nil {
		t.Fatal(err)
	}
	e := enginetest.New(t)
	docker, err := engine.New(engine.Config{Host: e.Host}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	expect := func(name, want string, edit func(*system.Info)) {
		t.Helper()
		e.SetInfo(edit)
		if features, err := docker.Probe(t.Context()); err != nil || features.ImageFS() != want {
			t.Errorf("%s: images are in %q, want %q; %v", name, features.ImageFS(), want, err)
		}
	}
	expect("with the image store of the Engine", rootDir, func(info *system.Info) { info.DockerRootDir = rootDir })
	expect("before API 1.46, with a containerd that the Engine has started", own, func(info *system.Info) {
		info.DriverStatus = [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}}
	})
	at := func(info *system.Info) { info.Containerd = &system.ContainerdInfo{Address: socket} }
	expect("with a containerd that does not have its database open", own, at)
	open, err := os.Create(db)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	expect("with its database open", root, at)
}

// connect returns a connected Engine with the timeout for short calls.
func connect(t *testing.T, host string, timeout time.Duration) (*engine.Engine, *engine.Conn) {
	t.Helper()
	docker, err := engine.New(engine.Config{Host: host, Timeout: timeout}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	enginetest.Background(t, docker.Run)
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.WaitTimeout)
	defer cancel()
	conn, err := docker.WaitConn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return docker, conn
}

// noShortDeadline are the routes of the fake Engine whose calls have no short deadline, or
// for which TestEveryCallHasADeadline cannot see it.
var noShortDeadline = map[string]string{
	"POST /images/create":           "a pull is cancelled by core/image when it makes no progress",
	"GET /distribution/{name}/json": "core/image cancels it after the time that a pull may make no progress",
	"POST /images/load":             "core/imagecopy cancels it without progress, core/image after the short timeout",
	"GET /images/get":               "core/imagecopy cancels it without progress",
	"POST /containers/create":       "slow",
	"GET /system/df":                "slow",
	"HEAD /_ping":                   "Client.Ping repeats it with GET",
	"GET /_ping":                    "only after HEAD",
}

// Every call has a deadline besides its caller's: one of the short timeout, but for those in
// noShortDeadline. A route that is new in the fake Engine must be added to either list.
func TestEveryCallHasADeadline(t *testing.T) {
	t.Parallel()
	const timeout = 200 * time.Millisecond
	var c *engine.Conn
	id, now := "", 0
	only := func(_ any, err error) error { return err }
	calls := map[string]func(context.Context) error{
		"GET /version": func(ctx context.Context) error { return only(c.ServerVersion(ctx)) },
		"GET /events": func(ctx context.Context) error {
			_, errs := c.Events(ctx, events.ListOptions{})
			return <-errs
		},
		"POST /containers/{id}/restart": func(ctx context.Context) error {
			return c.ContainerRestart(ctx, id, container.StopOptions{Timeout: &now})
		},
		"POST /containers/{id}/pause":   func(ctx context.Context) error { return c.ContainerPause(ctx, id) },
		"POST /containers/{id}/unpause": func(ctx context.Context) error { return c.ContainerUnpause(ctx, id) },
		"POST /containers/{id}/rename":  func(ctx context.Context) error { return c.ContainerRename(ctx, id, "other") },
		"GET /info":                     func(ctx context.Context) error { return only(c.Info(ctx)) },
		"GET /containers/json":          func(ctx context.Context) error { return only(c.ContainerList(ctx, container.ListOptions{})) },
		"GET /containers/{id}/json":     func(ctx context.Context) error { return only(c.ContainerInspect(ctx, id)) },
		"POST /containers/{id}/start":   func(ctx context.Context) error { return c.ContainerStart(ctx, id, container.StartOptions{}) },
		"POST /containers/{id}/stop":    func(ctx context.Context) error { return c.ContainerStop(ctx, id, container.StopOptions{Timeout: &now}) },
		"POST /containers/{id}/kill":    func(ctx context.Context) error { return c.Kill(ctx, id) },
		"POST /containers/{id}/wait":    func(ctx context.Context) error { return c.Kill(ctx, id) },
		"POST /containers/{id}/update":  func(ctx context.Context) error { return only(c.ContainerUpdate(ctx, id, container.UpdateConfig{})) },
		"DELETE /containers/{id}":       func(ctx context.Context) error { return c.ContainerRemove(ctx, id, container.RemoveOptions{}) },
		"POST /containers/{id}/exec":    func(ctx context.Context) error { return only(c.ContainerExecCreate(ctx, id, container.ExecOptions{})) },
		"GET /exec/{id}/json":           func(ctx context.Context) error { return only(c.ContainerExecInspect(ctx, "x")) },
		"POST /exec/{id}/resize":        func(ctx context.Context) error { return c.ContainerExecResize(ctx, "x", container.ResizeOptions{}) },
		"POST /exec/{id}/start": func(ctx context.Context) error {
			return only(c.ContainerExecAttach(ctx, "x", container.ExecAttachOptions{}))
		},
		"POST /containers/{id}/attach": func(ctx context.Context) error { return only(c.ContainerAttach(ctx, id, container.AttachOptions{})) },
		"POST /containers/{id}/resize": func(ctx context.Context) error { return c.ContainerResize(ctx, id, container.ResizeOptions{}) },
		"GET /containers/{id}/logs": func(ctx context.Context) error {
			return only(c.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true}))
		},
		"GET /images/json":        func(ctx context.Context) error { return only(c.ImageList(ctx, image.ListOptions{})) },
		"GET /images/{name}/json": func(ctx context.Context) error { return only(c.ImageInspect(ctx, "server")) },
		"DELETE /images/{name}":   func(ctx context.Context) error { return only(c.ImageRemove(ctx, "server", image.RemoveOptions{})) },
		"POST /images/{name}/tag": func(ctx context.Context) error { return c.ImageTag(ctx, "server", "other") },
		"GET /containers/{id}/archive": func(ctx context.Context) error {
			body, _, err := c.CopyFromContainer(ctx, id, "/x")
			return only(body, err)
		},
		"HEAD /containers/{id}/archive": func(ctx context.Context) error { return only(c.ContainerStatPath(ctx, id, "/x")) },
	}
	for _, route := range enginetest.New(t).Routes() {
		if (calls[route] != nil) == (noShortDeadline[route] != "") {
			t.Errorf("route %s: want it either called here or in noShortDeadline", route)
		}
	}
	for route, call := range calls {
		t.Run(route, func(t *testing.T) {
			e := enginetest.New(t) // a new one each time: a call that hung may take effect when it is released
			_, c = connect(t, e.Host, timeout)
			e.AddImage(enginetest.Image{}, "server")
			made, err := c.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"sleep", "1000"}}, nil, nil, nil, "")
			if err != nil {
				t.Fatal(err)
			}
			id = made.ID
			defer e.Hang(route)()
			begin := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), enginetest.WaitTimeout)
			defer cancel()
			err = call(ctx)
			if took := time.Since(begin); took > enginetest.WaitTimeout/2 {
				t.Errorf("the call took %v, want about %v", took, timeout)
			}
			if !engine.IsUnanswered(err) || !errdefs.IsUnavailable(err) || engine.IsUnavailable(err) || !engine.OutcomeUnknown(err) {
				t.Errorf("%v: want a timeout of kind Unavailable", err)
			}
			// The same for a deadline of the caller.
			ctx, cancel = context.WithTimeout(t.Context(), timeout/4)
			defer cancel()
			if err := call(ctx); !engine.IsUnanswered(err) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("with an earlier deadline of the caller: %v", err)
			}
			ctx, cancel = context.WithCancel(t.Context())
			cancel()
			if err := call(ctx); !errors.Is(err, context.Canceled) || engine.IsUnanswered(err) {
				t.Errorf("with a cancelled context: %v, want Canceled", err)
			}
		})
	}
}

// The deadline of an exec, a wait and events ends when the response begins.
func TestStreamsOutliveTheirDeadline(t *testing.T) {
	t.Parallel()
	const timeout = 300 * time.Millisecond
	e := enginetest.New(t)
	_, c := connect(t, e.Host, timeout)
	e.AddImage(enginetest.Image{}, "server")
	made, err := c.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"sleep", "1000"}}, nil, nil, nil, "web")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ContainerStart(t.Context(), made.ID, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	ended, failed := c.ContainerWait(t.Context(), made.ID, container.WaitConditionNotRunning)
	session, err := c.ContainerExecCreate(t.Context(), made.ID, container.ExecOptions{AttachStdin: true, AttachStdout: true, Cmd: []string{"cat"}})
	if err != nil {
		t.Fatal(err)
	}
	streams, err := c.ContainerExecAttach(t.Context(), session.ID, container.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer streams.Close()
	time.Sleep(2 * timeout) // the streams must stay open
	if _, err := io.WriteString(streams.Conn, "hello"); err != nil {
		t.Errorf("write to an exec: %v", err)
	}
	if err := streams.CloseWrite(); err != nil {
		t.Error(err)
	}
	if output, err := io.ReadAll(streams.Reader); err != nil || !strings.HasSuffix(string(output), "hello") {
		t.Errorf("exec output %q, %v", output, err)
	}
	if err := c.Kill(t.Context(), made.ID); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case err := <-failed:
		t.Errorf("wait: %v", err)
	}
}

// A kubelet that gets DeadlineExceeded for a probe kills the container, so the error must not
// be that of the ping that timed out.
func TestHungEngineIsUnavailableNotDeadlineExceeded(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	docker := e.Connect(t)
	defer e.Hang("")()
	var err error
	enginetest.Until(t, "the hung Engine still has a connection", func() bool { _, err = docker.Conn(); return err != nil })
	if !errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || !engine.IsUnavailable(err) || !strings.Contains(err.Error(), "ping") {
		t.Errorf("%v: want Unavailable, with the ping as reason", err)
	}
}

// An Engine that has lost its containerd, or shuts down, answers 500 with one of these texts.
func TestLostContainerdIsUnavailable(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	_, c := connect(t, e.Host, time.Minute)
	const start = "POST /containers/{id}/start"
	startWeb := func() error { return c.ContainerStart(t.Context(), "web", container.StartOptions{}) }
	for _, text := range []string{
		"grpc: the client connection is closing: context canceled", "transport is closing: unavailable", // 20.10, shut down during the start of a container
		`connection error: desc = "transport: Error while dialing: dial unix /run/containerd/containerd.sock: connect: connection refused"`,
		"error reading from server: EOF: unavailable",
	} {
		e.FailWithText(start, http.StatusInternalServerError, text)
		if err := startWeb(); !engine.IsUnavailable(err) || !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want Unavailable", text, err)
		}
		if err := c.CheckContainerd(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "containerd") {
			t.Errorf("%s: Containerd returned %v, want Unavailable", text, err)
		}
		e.ClearFaults(start)
		// The fake Engine has its containerd and reports it in GET /info.
		enginetest.Until(t, "containerd is still reported as lost", func() bool { return c.CheckContainerd() == nil })
	}
	e.FailWithText(start, http.StatusInternalServerError, "failed to create shim task: OCI runtime create failed: unknown")
	if err := startWeb(); engine.IsUnavailable(err) || !errdefs.IsInternal(err) || c.CheckContainerd() != nil {
		t.Errorf("a start that fails in runc: %v, %v", err, c.CheckContainerd())
	}
	e.ClearFaults(start)

	restore := e.LoseContainerd()
	e.AddImage(enginetest.Image{}, "server")
	if _, err := c.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"sleep", "1000"}}, nil, nil, nil, "web"); err != nil {
		t.Fatal(err)
	}
	if err := startWeb(); !engine.IsUnavailable(err) || c.CheckContainerd() == nil {
		t.Errorf("start: %v", err)
	}
	n := e.Calls("GET /info")
	enginetest.Until(t, "GET /info is not repeated while containerd is lost", func() bool { return e.Calls("GET /info") > n+1 })
	if c.CheckContainerd() == nil {
		t.Error("containerd is reported as connected while it is lost")
	}
	restore()
	if err := startWeb(); err != nil || c.CheckContainerd() != nil {
		t.Errorf("after the restore: %v, %v", err, c.CheckContainerd())
	}
}

// A Docker that has sent SIGKILL, and has not seen the end of the container, has not refused the call, and has its containerd.
func TestUnseenEndIsUnavailable(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	_, c := connect(t, e.Host, time.Minute)
	const text = "tried to kill container, but did not receive an exit event"
	for route, call := range map[string]func() error{
		"POST /containers/{id}/kill": func() error { return c.Kill(t.Context(), "web") },
		"POST /containers/{id}/stop": func() error { return c.ContainerStop(t.Context(), "web", container.StopOptions{}) },
		"DELETE /containers/{id}":    func() error { return c.ForceRemove(t.Context(), "web") },
	} {
		e.FailWithText(route, http.StatusInternalServerError, "Cannot kill container: 0123abcd: "+text)
		if err := call(); !engine.IsUnavailable(err) || errdefs.IsInternal(err) || c.CheckContainerd() != nil {
			t.Errorf("%s: %v, want Unavailable; containerd: %v", route, err, c.CheckContainerd())
		}
	}
}

// Pods can choose parts of some error texts, which must not look like a lost containerd.
func TestContainerdLostIgnoresTextsOfPods(t *testing.T) {
	for text, want := range map[string]bool{
		`connection error: desc = "transport: Error while dialing dial unix /x.sock: connect: connection refused": unavailable`:                                                true,
		`Cannot kill container: 0123abcd: transport is closing: unavailable`:                                                                                                   true,
		`failed to create task for container: error reading from server: read unix @->/x.sock: connection reset by peer: unavailable`:                                          true,
		`rpc error: code = Unavailable desc = error reading from server: connection reset by peer`:                                                                             true, // Docker 29
		`rpc error: code = Unavailable desc = transport is closing`:                                                                                                            true,
		`rpc error: code = Canceled desc = grpc: the client connection is closing`:                                                                                             true,
		`failed to update store for object type *libnetwork.endpoint: open : no such file or directory`:                                                                        true, // 20.10, with its store closed
		`failed to update store for object type *libnetwork.Endpoint: database not open`:                                                                                       true,
		`failed to update store for object type *libnetwork.endpoint: open /x: no such file or directory`:                                                                      false,
		`rpc error: code = Unknown desc = exec: "transport is closing": executable file not found in $PATH`:                                                                    false,
		`Unavailable: error reading from server: connection reset by peer`:                                                                                                     true, // Docker 28.5, containerd image store
		`Unavailable: error reading from server: unexpected EOF`:                                                                                                               true,
		`Unavailable: error reading from server: read unix @->/x.sock: read: connection reset by peer`:                                                                         true,
		`Unavailable: connection error: desc = "error reading server preface: EOF"`:                                                                                            true,
		`Unavailable: closing transport due to: connection error: desc = "error reading from server: EOF", received prior goaway: code: NO_ERROR, debug data: "graceful_stop"`: true,
		`Unavailable: keepalive ping failed to receive ACK within timeout`:                                                                                                     true,

		`connection closed: unavailable`:                                                          true, // Docker 20.10, which died while the connection was made
		`timed out waiting for server handshake: unavailable`:                                     true,
		`Unavailable: connection closed before server preface received`:                           true,
		`SubConn shutting down: unavailable`:                                                      true,
		`grpc: the connection is closing due to channel idleness: unavailable`:                    true,
		`the stream is rejected because server is draining the connection: unavailable`:           true,
		`connection error: desc = "transport: failed to write client preface: EOF": unavailable`:  true,
		`connection error: desc = "received goaway and there are no active streams": unavailable`: true,

		`unable to find user connection closed: no matching entries in passwd file`:                                                false,
		`the server said connection closed`:                                                                                        false,
		`unable to find user transport is closing: no matching entries in passwd file`:                                             false,
		`unable to find group error reading from server: no matching entries in group file`:                                        false,
		`OCI runtime create failed: runc create failed: exec: "transport is closing": executable file not found in $PATH: unknown`: false,
		`error while creating mount source path '/a: transport is closing': mkdir /a: read-only file system`:                       false,
		`failed to create shim task: transport is closing today: unknown`:                                                          false,
		`invalid mount config for type "bind": bind source path does not exist: /transport is closing`:                             false,
	} {
		if got := engine.ContainerdLost(text); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestWarnsAboutNetworkEndpointWithoutTLS(t *testing.T) {
	for _, tt := range []struct {
		host string
		want bool
	}{
		{"tcp://10.0.0.1:2375", true}, {"tcp://docker.example:2375", true}, {"tcp://127.0.0.1:2375", false}, {"tcp://[::1]:2375", false},
		{"tcp://localhost:2375", false}, {"unix:///var/run/docker.sock", false},
	} {
		var out bytes.Buffer
		if _, err := engine.New(engine.Config{Host: tt.host}, slog.New(slog.NewTextHandler(&out, nil))); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(out.String(), "without TLS"); got != tt.want {
			t.Errorf("%s: %s", tt.host, &out)
		}
	}
}

// Pods run without the userns-remap that other containers of that Docker have.
func TestWarnsOnceAboutUsernsRemap(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t, enginetest.Info(func(i *system.Info) { i.SecurityOptions = append(i.SecurityOptions, "name=userns") }))
	var out bytes.Buffer
	docker, err := engine.New(engine.Config{Host: e.Host}, slog.New(slog.NewTextHandler(&out, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- docker.Run(ctx) }()
	for range 2 {
		first, err := docker.WaitConn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		e.Stop()
		docker.WaitReplaced(ctx, first, nil)
		e.Restart()
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "userns-remap"); n != 1 {
		t.Errorf("%d warnings, want one:\n%s", n, &out)
	}
}
