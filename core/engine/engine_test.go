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
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/system"

	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/testmain"
)

// Most tests wait for an Engine that hangs, or for time to pass.
func TestMain(m *testing.M) { testmain.M{M: m}.Run() }

func TestComesAndGoes(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	docker := e.Connect(t)
	first, err := docker.Conn()
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		docker.WaitReplaced(t.Context(), first, nil)
		close(gone)
	}()
	e.Stop()
	enginetest.Until(t, "nobody notices that the Engine is away", func() bool { _, err := docker.Conn(); return err != nil })
	<-gone
	if _, err := docker.Conn(); !errdefs.IsUnavailable(err) || !engine.IsUnavailable(err) {
		t.Errorf("while it is away: %v, want Unavailable", err)
	}
	if last, err := docker.LastConn(); last != first || err != nil {
		t.Errorf("the last connection is %v, %v; want %v", last, err, first)
	}

	// Back, and upgraded: another version is agreed on.
	e.Version("1.51")
	e.Restart()
	back := time.Now()
	conn, err := docker.WaitConn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(back); took > 3*time.Second {
		t.Errorf("connected again after %v", took)
	}
	if first.Features.API != "1.41" || conn.Features.API != "1.51" || conn.ClientVersion() != "1.51" || !conn.Features.ImageMounts || first.Features.ImageMounts {
		t.Errorf("API %s, then %s; want 1.41 and 1.51", first.Features.API, conn.Features.API)
	}
}

// A runtime that is added to daemon.json is known as soon as the Engine knows it,
// and nobody is told that the Engine is away.
func TestReadsItsConfigurationAgain(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	docker := e.Connect(t)
	for _, name := range []string{"first", "second"} {
		before, err := docker.Conn()
		if err != nil {
			t.Fatal(err)
		}
		e.Reload(func(i *system.Info) { i.Runtimes[name] = system.RuntimeWithStatus{} })
		enginetest.Until(t, "runtime "+name+" is not known", func() bool {
			conn, err := docker.Conn()
			if err != nil {
				t.Fatalf("it is away: %v", err)
			}
			_, ok := conn.Features.Runtimes[name]
			return ok
		})
		if _, ok := before.Features.Runtimes[name]; ok {
			t.Errorf("runtime %s was known before", name)
		}
	}
	n := e.Calls("GET /info")
	time.Sleep(1500 * time.Millisecond)
	if again := e.Calls("GET /info") - n; again > 0 {
		t.Errorf("asked %d times more", again)
	}
}

// What happens while its record is made is not missed.
func TestReadsItsConfigurationMeanwhile(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	var once sync.Once
	e.On("GET /events", func() {
		once.Do(func() { e.Reload(func(i *system.Info) { i.Runtimes["new"] = system.RuntimeWithStatus{} }) })
	})
	docker := e.Connect(t)
	enginetest.Until(t, "the runtime is not known", func() bool {
		conn, err := docker.Conn()
		if err != nil {
			t.Fatalf("it is away: %v", err)
		}
		_, ok := conn.Features.Runtimes["new"]
		return ok
	})
}

func TestAHungCallDoesNotLookLikeADeadEngine(t *testing.T) {
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
		t.Errorf("list: %v, want that it takes too long", err)
	}
	if now, err := docker.Conn(); now != conn || err != nil {
		t.Errorf("the connection is %v, %v; want the same as before", now, err)
	}
}

func TestRefusesWhatItCannotServe(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		spoil func(*enginetest.Engine)
		want  string
	}{
		"too old":       {func(e *enginetest.Engine) { e.Version("1.40") }, "needs 1.41 or newer"},
		"rootless":      {func(e *enginetest.Engine) { e.SetInfo(rootless) }, "rootless"},
		"no answer":     {func(e *enginetest.Engine) { e.Fail("GET /info", http.StatusInternalServerError) }, "docker info"},
		"no connection": {(*enginetest.Engine).Stop, "Cannot connect"},
	} {
		t.Run(name, func(t *testing.T) {
			e := enginetest.New(t)
			tt.spoil(e)
			docker, err := engine.New(engine.Config{Host: e.Host}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			enginetest.Background(t, docker.Run)
			enginetest.Until(t, "it does not say why", func() bool {
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

func TestKillAndDiscard(t *testing.T) {
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
	for _, what := range []string{"only made", "that runs", "that has ended"} {
		if err := conn.Kill(t.Context(), made.ID); err != nil {
			t.Errorf("kill of one %s: %v", what, err)
		}
		if what == "only made" {
			if err := conn.ContainerStart(t.Context(), made.ID, container.StartOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if c, _ := e.Container("web"); c.State.ExitCode != 137 {
		t.Errorf("state %+v, want killed", c.State)
	}
	// Somebody else removes it: Discard returns once that is over.
	e.FailOnce("DELETE /containers/{id}", http.StatusConflict, 1)
	for range 2 {
		if err := conn.ForceRemove(t.Context(), made.ID); err != nil {
			t.Error(err)
		}
	}
	if err := conn.Kill(t.Context(), made.ID); err != nil {
		t.Errorf("kill of what is not there: %v", err)
	}
	if left := e.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAway(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	conn, err := e.Connect(t).Conn()
	if err != nil {
		t.Fatal(err)
	}
	ask := func() error { _, err := conn.ContainerInspect(t.Context(), "web"); return err }
	if err := ask(); engine.IsUnavailable(err) {
		t.Errorf("not found is not away: %v", err)
	}
	e.Fail("GET /containers/{id}/json", http.StatusInternalServerError)
	if err := ask(); engine.IsUnavailable(err) {
		t.Errorf("refused is not away: %v", err)
	}
	e.Heal("GET /containers/{id}/json")
	// Not one that only asks: that is asked again on another connection.
	e.FailOnce("POST /containers/{id}/start", enginetest.HangUp, 1)
	if err := conn.ContainerStart(t.Context(), "web", container.StartOptions{}); !engine.IsUnavailable(err) {
		t.Errorf("cut off is away: %v", err)
	}
	e.Stop()
	if err := ask(); !engine.IsUnavailable(err) {
		t.Errorf("gone is away: %v", err)
	}
	for _, err := range []error{nil, context.Canceled, errors.New("EOF")} {
		if engine.IsUnavailable(err) {
			t.Errorf("%v is not away", err)
		}
	}
	if !engine.IsUnavailable(io.ErrUnexpectedEOF) {
		t.Error("an answer cut short is away")
	}
}

// Where images are with the containerd image store is where containerd has its
// database open. The test is containerd.
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
		if can, err := docker.Probe(t.Context()); err != nil || can.ImageFS() != want {
			t.Errorf("%s: images are in %q, want %q; %v", name, can.ImageFS(), want, err)
		}
	}
	expect("in its own store", rootDir, func(info *system.Info) { info.DockerRootDir = rootDir })
	expect("before API 1.46, with a containerd that the Engine has started", own, func(info *system.Info) {
		info.DriverStatus = [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}}
	})
	at := func(info *system.Info) { info.Containerd = &system.ContainerdInfo{Address: socket} }
	expect("with a containerd that does not show", own, at)
	open, err := os.Create(db)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	expect("with its database open", root, at)
}

// connect returns an Engine whose short calls have timeout, connected.
func connect(t *testing.T, host string, timeout time.Duration) (*engine.Engine, *engine.Conn) {
	t.Helper()
	docker, err := engine.New(engine.Config{Host: host, Timeout: timeout}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	enginetest.Background(t, docker.Run)
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Patience)
	defer cancel()
	conn, err := docker.WaitConn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return docker, conn
}

// Every call of Docker has a deadline of its own, whatever its caller's is, but a pull,
// which ends when it makes no progress, and those that may be slow.
func TestEveryCallHasADeadline(t *testing.T) {
	t.Parallel()
	const timeout = 200 * time.Millisecond
	e := enginetest.New(t)
	_, c := connect(t, e.Host, timeout)
	e.AddImage(enginetest.Image{}, "server")
	made, err := c.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"sleep", "1000"}}, nil, nil, nil, "web")
	if err != nil {
		t.Fatal(err)
	}
	id, now := made.ID, 0
	only := func(_ any, err error) error { return err }
	for route, call := range map[string]func(context.Context) error{
		"GET /info":                    func(ctx context.Context) error { return only(c.Info(ctx)) },
		"GET /containers/json":         func(ctx context.Context) error { return only(c.ContainerList(ctx, container.ListOptions{})) },
		"GET /containers/{id}/json":    func(ctx context.Context) error { return only(c.ContainerInspect(ctx, id)) },
		"POST /containers/{id}/start":  func(ctx context.Context) error { return c.ContainerStart(ctx, id, container.StartOptions{}) },
		"POST /containers/{id}/stop":   func(ctx context.Context) error { return c.ContainerStop(ctx, id, container.StopOptions{Timeout: &now}) },
		"POST /containers/{id}/kill":   func(ctx context.Context) error { return c.Kill(ctx, id) },
		"POST /containers/{id}/wait":   func(ctx context.Context) error { return c.Kill(ctx, id) },
		"POST /containers/{id}/update": func(ctx context.Context) error { return only(c.ContainerUpdate(ctx, id, container.UpdateConfig{})) },
		"DELETE /containers/{id}":      func(ctx context.Context) error { return c.ContainerRemove(ctx, id, container.RemoveOptions{}) },
		"POST /containers/{id}/exec":   func(ctx context.Context) error { return only(c.ContainerExecCreate(ctx, id, container.ExecOptions{})) },
		"GET /exec/{id}/json":          func(ctx context.Context) error { return only(c.ContainerExecInspect(ctx, "x")) },
		"POST /exec/{id}/resize":       func(ctx context.Context) error { return c.ContainerExecResize(ctx, "x", container.ResizeOptions{}) },
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
	} {
		t.Run(route, func(t *testing.T) {
			defer e.Hang(route)()
			begin := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), enginetest.Patience)
			defer cancel()
			err := call(ctx)
			if took := time.Since(begin); took > enginetest.Patience/2 {
				t.Errorf("it took %v", took)
			}
			if !engine.IsUnanswered(err) || !errdefs.IsUnavailable(err) || engine.IsUnavailable(err) || !engine.OutcomeUnknown(err) {
				t.Errorf("%v: want that it is not answered, which is Unavailable", err)
			}
			// The same for a deadline of the caller.
			ctx, cancel = context.WithTimeout(t.Context(), timeout/4)
			defer cancel()
			if err := call(ctx); !engine.IsUnanswered(err) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("with less time: %v", err)
			}
			ctx, cancel = context.WithCancel(t.Context())
			cancel()
			if err := call(ctx); !errors.Is(err, context.Canceled) || engine.IsUnanswered(err) {
				t.Errorf("called off: %v", err)
			}
		})
	}
}

// What has begun to be answered goes on: an exec, a wait, events.
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
	time.Sleep(2 * timeout) // what is to be seen is that nothing happens
	if _, err := io.WriteString(streams.Conn, "hello"); err != nil {
		t.Errorf("write to an exec: %v", err)
	}
	if err := streams.CloseWrite(); err != nil {
		t.Error(err)
	}
	if said, err := io.ReadAll(streams.Reader); err != nil || !strings.HasSuffix(string(said), "hello") {
		t.Errorf("an exec said %q, %v", said, err)
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

// That the last ping has run out of time is no news of the call that hears of it: a
// kubelet that is told DeadlineExceeded of a probe kills the container.
func TestAHungEngineIsUnavailableAtOnce(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	docker := e.Connect(t)
	defer e.Hang("")()
	var err error
	enginetest.Until(t, "nobody notices that the Engine hangs", func() bool { _, err = docker.Conn(); return err != nil })
	if !errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || !engine.IsUnavailable(err) || !strings.Contains(err.Error(), "ping") {
		t.Errorf("%v: want Unavailable, and why", err)
	}
}

// An Engine that has lost its containerd, or shuts down, says 500 and why in words.
func TestLostContainerdIsUnavailable(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	_, c := connect(t, e.Host, time.Minute)
	const start = "POST /containers/{id}/start"
	begin := func() error { return c.ContainerStart(t.Context(), "web", container.StartOptions{}) }
	for _, said := range []string{
		"grpc: the client connection is closing: context canceled", "transport is closing: unavailable", // 20.10, told to end while a container was started
		`connection error: desc = "transport: Error while dialing: dial unix /run/containerd/containerd.sock: connect: connection refused"`,
		"error reading from server: EOF: unavailable",
	} {
		e.FailSaying(start, http.StatusInternalServerError, said)
		if err := begin(); !engine.IsUnavailable(err) || !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), said) {
			t.Errorf("%s: %v, want Unavailable", said, err)
		}
		if err := c.Containerd(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "containerd") {
			t.Errorf("%s: nobody is told: %v", said, err)
		}
		e.Heal(start)
		// The Engine of this test has its containerd, and says so when asked.
		enginetest.Until(t, "it stays lost", func() bool { return c.Containerd() == nil })
	}
	e.FailSaying(start, http.StatusInternalServerError, "failed to create shim task: OCI runtime create failed: unknown")
	if err := begin(); engine.IsUnavailable(err) || !errdefs.IsInternal(err) || c.Containerd() != nil {
		t.Errorf("a start that runc refuses: %v, %v", err, c.Containerd())
	}
	e.Heal(start)

	find := e.LoseContainerd()
	e.AddImage(enginetest.Image{}, "server")
	if _, err := c.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"sleep", "1000"}}, nil, nil, nil, "web"); err != nil {
		t.Fatal(err)
	}
	if err := begin(); !engine.IsUnavailable(err) || c.Containerd() == nil {
		t.Errorf("start: %v", err)
	}
	n := e.Calls("GET /info")
	enginetest.Until(t, "nobody asks whether it is back", func() bool { return e.Calls("GET /info") > n+1 })
	if c.Containerd() == nil {
		t.Error("it is taken for back before it is")
	}
	find()
	if err := begin(); err != nil || c.Containerd() != nil {
		t.Errorf("back: %v, %v", err, c.Containerd())
	}
}

// What a pod may choose the words of does not make its failure Docker's.
func TestContainerdIsNotLostByWordsOfAPod(t *testing.T) {
	for text, want := range map[string]bool{
		`connection error: desc = "transport: Error while dialing dial unix /x.sock: connect: connection refused": unavailable`:                                                true,
		`Cannot kill container: 0123abcd: transport is closing: unavailable`:                                                                                                   true,
		`failed to create task for container: error reading from server: read unix @->/x.sock: connection reset by peer: unavailable`:                                          true,
		`Unavailable: error reading from server: connection reset by peer`:                                                                                                     true, // Docker 28.5, containerd image store
		`Unavailable: error reading from server: unexpected EOF`:                                                                                                               true,
		`Unavailable: error reading from server: read unix @->/x.sock: read: connection reset by peer`:                                                                         true,
		`Unavailable: connection error: desc = "error reading server preface: EOF"`:                                                                                            true,
		`Unavailable: closing transport due to: connection error: desc = "error reading from server: EOF", received prior goaway: code: NO_ERROR, debug data: "graceful_stop"`: true,
		`Unavailable: keepalive ping failed to receive ACK within timeout`:                                                                                                     true,

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

// Docker on the network is spoken to with TLS where the environment has certificates,
// and otherwise there is a warning.
func TestWarnsOfDockerWithoutTLS(t *testing.T) {
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

// With userns-remap pods get less than what else runs in that Docker.
func TestWarnsOnceOfUsernsRemap(t *testing.T) {
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
		t.Errorf("said %d times:\n%s", n, &out)
	}
}
