package logs_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
	"berth/core/journal"
	"berth/core/logs"
	"berth/core/view"
)

// A file is begun anew also if that was asked for before there is a stream.
func TestFollowReopens(t *testing.T) {
	e := enginetest.New(t)
	e.AddImage(enginetest.Image{}, "server")
	docker, c := e.Connect(t), e.Client(t)
	made, err := c.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"sleep", "1000"}}, nil, nil, nil, "c1")
	if err == nil {
		err = c.ContainerStart(t.Context(), made.ID, container.StartOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	notes, err := journal.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	shelf, err := notes.Shelf("logs")
	if err != nil {
		t.Fatal(err)
	}
	s := logs.New(logs.Follow, docker, shelf, slog.New(slog.DiscardHandler))
	path := filepath.Join(t.TempDir(), "pods", "0.log")
	if err := s.Open(made.ID, "", path); err != nil {
		t.Fatal(err)
	}
	s.Keep(t.Context(), &view.Container{
		Row:    &runtimeapi.Container{Id: made.ID},
		Status: &runtimeapi.ContainerStatus{Id: made.ID, LogPath: path, StartedAt: 1}, Running: true, Ours: true,
	})
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Patience)
	defer cancel()
	first := make(chan error, 1)
	go func() { first <- s.Reopen(ctx, made.ID) }()
	time.Sleep(50 * time.Millisecond) // it is asked for before Run begins
	enginetest.Background(t, s.Run)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := s.Reopen(ctx, made.ID); err != nil {
		t.Error(err)
	}
}
