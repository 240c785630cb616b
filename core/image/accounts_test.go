package image

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"berth/core/engine"
	"berth/core/engine/enginetest"
)

// prune removes all containers that do not run, as docker container prune does.
func prune(t *testing.T, e *enginetest.Engine) func() {
	docker := e.Client(t)
	return func() {
		list, err := docker.ContainerList(context.WithoutCancel(t.Context()), container.ListOptions{All: true})
		for _, row := range list {
			if err == nil {
				err = docker.ContainerRemove(context.WithoutCancel(t.Context()), row.ID, container.RemoveOptions{})
			}
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func TestAccounts(t *testing.T) {
	const users, groups = "root:x:0:0::/:\napp:x:7:8::/:\n", "root:x:0:\napp:x:8:\n"
	whole := map[string]string{"/etc/passwd": users, "/etc/group": groups}
	for name, tt := range map[string]struct {
		disturb func(e *enginetest.Engine, prune func())
		fails   func(error) bool // the first try
		made    int
	}{
		"nobody comes between": {func(*enginetest.Engine, func()) {}, nil, 1},
		"pruned": {func(e *enginetest.Engine, prune func()) {
			e.On("GET /containers/{id}/archive", func() {
				e.Heal("GET /containers/{id}/archive")
				prune()
			})
		}, nil, 2},
		"pruned between the files": {func(e *enginetest.Engine, prune func()) {
			read := 0
			e.On("GET /containers/{id}/archive", func() {
				if read++; read == 2 {
					prune()
				}
			})
		}, nil, 2},
		"pruned again and again": {func(e *enginetest.Engine, prune func()) {
			e.On("GET /containers/{id}/archive", prune)
		}, errdefs.IsNotFound, 3},
		"no telling": {func(e *enginetest.Engine, _ func()) {
			e.FailOnce("GET /containers/{id}/archive", 404, 1)
			e.FailOnce("GET /containers/{id}/json", 500, 1)
		}, errdefs.IsInternal, 2},
	} {
		t.Run(name, func(t *testing.T) {
			e := enginetest.New(t)
			s := New(Config{}, e.Connect(t), slog.New(slog.DiscardHandler))
			id := e.AddImage(enginetest.Image{Files: whole}, "app")
			tt.disturb(e, prune(t, e))
			got, err := s.Accounts(t.Context(), id)
			if tt.fails != nil {
				if !tt.fails(err) {
					t.Errorf("%v", err)
				}
				e.Heal("GET /containers/{id}/archive")
				got, err = s.Accounts(t.Context(), id)
			}
			if err != nil || string(got.Passwd) != users || string(got.Group) != groups {
				t.Errorf("users %q, groups %q, %v", got.Passwd, got.Group, err)
			}
			if n := e.Calls("POST /containers/create"); n != tt.made {
				t.Errorf("%d containers made, want %d", n, tt.made)
			}
			if left := e.Len(); left > 0 {
				t.Errorf("%d containers left behind", left)
			}
		})
	}
}

func TestAnImageWithoutAccounts(t *testing.T) {
	e := enginetest.New(t)
	s := New(Config{}, e.Connect(t), slog.New(slog.DiscardHandler))
	id := e.AddImage(enginetest.Image{}, "scratch")
	e.Fail("GET /containers/{id}/archive", 404)
	for range 2 {
		got, err := s.Accounts(t.Context(), id)
		if err != nil || len(got.Passwd)+len(got.Group) > 0 {
			t.Errorf("users %q, groups %q, %v; want none", got.Passwd, got.Group, err)
		}
	}
	if n := e.Calls("POST /containers/create"); n != 1 {
		t.Errorf("looked into %d times, want once", n)
	}
}

func TestTidy(t *testing.T) {
	e := enginetest.New(t)
	s := New(Config{}, e.Connect(t), slog.New(slog.DiscardHandler))
	docker, err := s.docker.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const images = 40
	ids := make([]string, images)
	for i := range ids {
		ids[i] = e.AddImage(enginetest.Image{}, fmt.Sprintf("app:%d", i))
	}
	if _, err := docker.CreateHelper(t.Context(), ids[0], engine.ReadHelper, rand.Text()); err != nil {
		t.Fatal(err)
	}
	// However often it tidies, what is being looked into stays.
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := s.tidy(ctx, docker); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}()
	for _, id := range ids {
		if got, err := s.Accounts(t.Context(), id); err != nil || !strings.Contains(string(got.Passwd), "root") {
			t.Errorf("%q, %v", got.Passwd, err)
		}
	}
	stop()
	<-done
	if n := e.Calls("POST /containers/create"); n != 1+images {
		t.Errorf("%d containers made, want %d", n, 1+images)
	}
	if left := e.Len(); left > 0 {
		t.Errorf("%d containers left behind", left)
	}
}
