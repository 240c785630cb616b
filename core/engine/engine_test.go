package engine_test

import (
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
	"github.com/docker/docker/api/types/system"

	"berth/core/engine"
	"berth/core/engine/enginetest"
)

func TestComesAndGoes(t *testing.T) {
	e := enginetest.New(t)
	docker := e.Connect(t)
	first, err := docker.Use()
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		docker.Gone(t.Context(), first, nil)
		close(gone)
	}()
	e.Stop()
	enginetest.Until(t, "nobody notices that the Engine is away", func() bool { _, err := docker.Use(); return err != nil })
	<-gone
	if _, err := docker.Use(); !errdefs.IsUnavailable(err) || !engine.Away(err) {
		t.Errorf("while it is away: %v, want Unavailable", err)
	}
	if last, err := docker.Last(); last != first || err != nil {
		t.Errorf("the last connection is %v, %v; want %v", last, err, first)
	}

	// Back, and upgraded: another version is agreed on.
	e.Version("1.51")
	e.Restart()
	back := time.Now()
	conn, err := docker.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(back); took > 3*time.Second {
		t.Errorf("connected again after %v", took)
	}
	if first.Can.API != "1.41" || conn.Can.API != "1.51" || conn.ClientVersion() != "1.51" || !conn.Can.ImageMounts || first.Can.ImageMounts {
		t.Errorf("API %s, then %s; want 1.41 and 1.51", first.Can.API, conn.Can.API)
	}
}

// A runtime that is added to daemon.json is known as soon as the Engine knows it,
// and nobody is told that the Engine is away.
func TestReadsItsConfigurationAgain(t *testing.T) {
	e := enginetest.New(t)
	docker := e.Connect(t)
	for _, name := range []string{"first", "second"} {
		before, err := docker.Use()
		if err != nil {
			t.Fatal(err)
		}
		e.Reload(func(i *system.Info) { i.Runtimes[name] = system.RuntimeWithStatus{} })
		enginetest.Until(t, "runtime "+name+" is not known", func() bool {
			conn, err := docker.Use()
			if err != nil {
				t.Fatalf("it is away: %v", err)
			}
			_, ok := conn.Can.Runtimes[name]
			return ok
		})
		if _, ok := before.Can.Runtimes[name]; ok {
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
	e := enginetest.New(t)
	var once sync.Once
	e.On("GET /events", func() {
		once.Do(func() { e.Reload(func(i *system.Info) { i.Runtimes["new"] = system.RuntimeWithStatus{} }) })
	})
	docker := e.Connect(t)
	enginetest.Until(t, "the runtime is not known", func() bool {
		conn, err := docker.Use()
		if err != nil {
			t.Fatalf("it is away: %v", err)
		}
		_, ok := conn.Can.Runtimes["new"]
		return ok
	})
}

func TestAHungCallDoesNotLookLikeADeadEngine(t *testing.T) {
	e := enginetest.New(t)
	docker := e.Connect(t)
	conn, err := docker.Use()
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
	if now, err := docker.Use(); now != conn || err != nil {
		t.Errorf("the connection is %v, %v; want the same as before", now, err)
	}
}

func TestRefusesWhatItCannotServe(t *testing.T) {
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
				_, err = docker.Use()
				return strings.Contains(err.Error(), tt.want)
			})
			if _, last := docker.Last(); !errdefs.IsUnavailable(err) || !errdefs.IsUnavailable(last) {
				t.Errorf("%v, %v; want Unavailable", err, last)
			}
		})
	}
}

func rootless(info *system.Info) {
	info.SecurityOptions = append(info.SecurityOptions, "name=rootless")
}

func TestKillAndDiscard(t *testing.T) {
	e := enginetest.New(t)
	e.AddImage(enginetest.Image{}, "server")
	conn, err := e.Connect(t).Use()
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
		if err := conn.Discard(t.Context(), made.ID); err != nil {
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
	e := enginetest.New(t)
	conn, err := e.Connect(t).Use()
	if err != nil {
		t.Fatal(err)
	}
	ask := func() error { _, err := conn.ContainerInspect(t.Context(), "web"); return err }
	if err := ask(); engine.Away(err) {
		t.Errorf("not found is not away: %v", err)
	}
	e.Fail("GET /containers/{id}/json", http.StatusInternalServerError)
	if err := ask(); engine.Away(err) {
		t.Errorf("refused is not away: %v", err)
	}
	e.Heal("GET /containers/{id}/json")
	// Not one that only asks: that is asked again on another connection.
	e.FailOnce("POST /containers/{id}/start", enginetest.HangUp, 1)
	if err := conn.ContainerStart(t.Context(), "web", container.StartOptions{}); !engine.Away(err) {
		t.Errorf("cut off is away: %v", err)
	}
	e.Stop()
	if err := ask(); !engine.Away(err) {
		t.Errorf("gone is away: %v", err)
	}
	for _, err := range []error{nil, context.Canceled, errors.New("EOF")} {
		if engine.Away(err) {
			t.Errorf("%v is not away", err)
		}
	}
	// Docker 20.10, told to end while a container was started.
	for _, said := range []string{"grpc: the client connection is closing: context canceled", "transport is closing: unavailable"} {
		if !engine.Away(errors.New("Error response from daemon: " + said)) {
			t.Errorf("an Engine that shuts down is not away: %s", said)
		}
	}
	if !engine.Away(io.ErrUnexpectedEOF) {
		t.Error("an answer cut short is away")
	}
}

// Where images are with the containerd image store is where containerd has its
// database open. The test is containerd.
func TestContainerdRoot(t *testing.T) {
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
		if can, err := docker.Ask(t.Context()); err != nil || can.ImageFS() != want {
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
