package engine_test

import (
	"crypto/rand"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"

	"berth/core/engine"
	"berth/core/engine/enginetest"
)

// Helpers are recognised by what an image cannot set, whatever its labels are.
func TestHelpersAreNotForgedByImages(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	docker, err := e.Connect(t).WaitConn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cli := e.Client(t)
	image := "hostile"
	create := func(name string, config container.Config, host *container.HostConfig) string {
		t.Helper()
		config.Image = image
		made, err := cli.ContainerCreate(t.Context(), &config, host, nil, nil, name)
		if err != nil {
			t.Fatal(err)
		}
		return made.ID
	}
	e.AddImage(enginetest.Image{Config: container.Config{Entrypoint: []string{"/"}, Labels: map[string]string{
		"io.kubernetes.docker.type": "idle", "berth.look": "x", "berth.hold": "ABCDEFGHIJKLMNOP",
	}}}, "hostile")
	none := &container.HostConfig{NetworkMode: "none", LogConfig: container.LogConfig{Type: "none"}}
	create("", container.Config{}, nil)
	create("database", container.Config{}, none)
	create("k8s_c_p_n_u_0", container.Config{NetworkDisabled: true}, none)
	create("berth_read", container.Config{}, nil)
	create("berth_read_x_ABCDEFGH", container.Config{}, nil)
	create("berth_hold_ABCDEFGHIJKLMNO1_ABCDEFGH", container.Config{}, nil)
	create("a_berth_hold_ABCDEFGHIJKLMNOP_ABCDEFGH", container.Config{}, nil)
	running := create("berth_read_ABCDEFGHIJKLMNOP_ABCDEFGH", container.Config{Entrypoint: []string{"sh"}, Cmd: []string{"-c", "sleep 1000"}}, nil)
	if err := cli.ContainerStart(t.Context(), running, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}

	want := map[engine.HelperKind]map[string]string{engine.ReadHelper: {}, engine.PinHelper: {}}
	for kind := range want {
		purpose := rand.Text()
		id, err := docker.CreateHelper(t.Context(), "hostile", kind, purpose)
		if err != nil {
			t.Fatal(err)
		}
		want[kind][id] = purpose
	}
	// Helpers of berth before 1.1.
	e.AddImage(enginetest.Image{}, "plain")
	image = "plain"
	want[engine.ReadHelper][create("", container.Config{NetworkDisabled: true, Entrypoint: []string{"/"}, Labels: map[string]string{"berth.look": "old"}}, none)] = "old"
	old := create("", container.Config{NetworkDisabled: true, Entrypoint: []string{"/"}, Labels: map[string]string{"berth.hold": "QRSTUVWXYZ234567"}}, none)
	want[engine.PinHelper][old] = "QRSTUVWXYZ234567"
	for kind := range want {
		got, err := docker.Helpers(t.Context(), kind)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want[kind], got); diff != "" {
			t.Errorf("helpers of kind %s (-want +got):\n%s", kind, diff)
		}
	}
	for _, purpose := range []string{"", "x", "../../../etc/passwd", "ABCDEFGHIJKLMNO_"} {
		if id, err := docker.CreateHelper(t.Context(), "hostile", engine.PinHelper, purpose); !errdefs.IsInvalidArgument(err) {
			t.Errorf("helper for %q: %q, %v", purpose, id, err)
		}
	}
}
