package foreign_test

import (
	"log/slog"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"berth/core/engine/enginetest"
	"berth/core/image/foreign"
	"berth/core/testmain"
)

func TestMain(m *testing.M) { testmain.M{M: m}.Run() }

func create(t *testing.T, docker *client.Client, name, image string) string {
	t.Helper()
	made, err := docker.ContainerCreate(t.Context(), &container.Config{Image: image}, nil, nil, nil, name)
	if err != nil {
		t.Fatal(err)
	}
	return made.ID
}

func TestContainersOutsideOfPodsAreFollowed(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	a, b := e.AddImage(enginetest.Image{}, "a:1"), e.AddImage(enginetest.Image{}, "b:1")
	docker := e.Client(t)
	before := create(t, docker, "before", "a:1")
	create(t, docker, "berth_read_ABCDEFGHIJKLMNOPQRSTUVWXYZ_ABCDEFGH", "b:1") // a helper
	c := foreign.New(e.Connect(t), slog.New(slog.DiscardHandler))
	enginetest.Background(t, c.Run)
	enginetest.Until(t, "a container from before the start is not known", func() bool { return c.ByImage()[a] == "before" })
	if user := c.ByImage()[b]; user != "" {
		t.Errorf("the helper container %s counts", user)
	}
	e.ResetCalls()
	created := create(t, docker, "created", "b:1")
	enginetest.Until(t, "a container that was created is not known", func() bool { return c.ByImage()[b] == "created" })
	for _, id := range []string{before, created} {
		if err := docker.ContainerRemove(t.Context(), id, container.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	mine := create(t, docker, "berth_read_mine", "b:1") // the name of a helper begins like this, and goes on in another way
	enginetest.Until(t, "a container with a name like that of a helper is not known", func() bool { return c.ByImage()[b] == "berth_read_mine" })
	if err := docker.ContainerRemove(t.Context(), mine, container.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	enginetest.Until(t, "containers that were removed are known", func() bool { return len(c.ByImage()) == 0 })
	if n := e.Calls("GET /containers/json"); n != 0 {
		t.Errorf("%d lists of all containers, want none: the events say it", n)
	}
	e.Stop()
	e.Restart()
	again := create(t, docker, "again", "a:1")
	enginetest.Until(t, "after a restart of the Engine a container is not known", func() bool { return c.ByImage()[a] == "again" })
	if err := docker.ContainerRemove(t.Context(), again, container.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
}
