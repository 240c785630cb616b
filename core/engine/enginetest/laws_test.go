package enginetest_test

import (
	"flag"
	"testing"

	"github.com/docker/docker/client"

	"berth/core/engine/enginetest"
)

var (
	host  = flag.String("docker", "", "`endpoint` of a Docker Engine to hold the laws on")
	image = flag.String("image", "berth-test:1", "an `image` with a busybox that the Engine has")
)

func TestLaws(t *testing.T) {
	for _, api := range []string{"1.41", "1.51"} {
		t.Run(api, func(t *testing.T) {
			e := enginetest.New(t, enginetest.API(api))
			e.AddImage(enginetest.Image{}, "berth-test:1")
			enginetest.Laws(t, e.Client(t), "berth-test:1")
		})
	}
}

func TestLawsOnDocker(t *testing.T) {
	if *host == "" {
		t.Skip("needs a Docker Engine: -docker unix:///...")
	}
	docker, err := client.NewClientWithOpts(client.WithHost(*host), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = docker.Close() })
	enginetest.Laws(t, docker, *image)
}
