package pause_test

import (
	"bytes"
	"context"
	"flag"
	"io"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	dockerimage "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"github.com/google/go-cmp/cmp"

	"berth/core/pause"
)

var (
	host  = flag.String("docker", "", "also test the image on the real Docker Engine at this `host`")
	image = flag.String("image", "busybox", "an `image` with a shell that exists on that Engine")
)

// Docker loads the image, and the container does what a sandbox needs.
func TestImageOnRealEngine(t *testing.T) {
	if *host == "" {
		t.Skip("needs -docker")
	}
	ctx := t.Context()
	docker, err := client.NewClientWithOpts(client.WithHost(*host), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	defer docker.Close()
	version, err := docker.ServerVersion(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Engine %s", version.Version)

	if _, err := docker.ImageInspect(ctx, pause.Ref); errdefs.IsNotFound(err) {
		t.Cleanup(func() {
			// Registered first and so run last, when no container uses the image.
			if _, err := docker.ImageRemove(context.Background(), pause.Ref, dockerimage.RemoveOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	id1 := load(t, docker, version.Arch)
	if id2 := load(t, docker, version.Arch); id2 != id1 {
		t.Errorf("after a second load the ID is %s, want %s as before", id2, id1)
	}
	found, err := docker.ImageInspect(ctx, pause.Ref)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{pause.Ref}, found.RepoTags); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/pause"}, found.Config.Entrypoint); diff != "" {
		t.Errorf("entrypoint (-want +got):\n%s", diff)
	}
	if got, want := found.Config.User, "65535:65535"; got != want {
		t.Errorf("user %q, want %q", got, want)
	}
	if got, want := found.Config.Labels["org.opencontainers.image.title"], "berth built-in pause"; got != want {
		t.Errorf("title %q, want %q", got, want)
	}
	if found.Architecture != version.Arch || found.Size > 1<<20 {
		t.Errorf("%d bytes for %s, want less than 1 MiB for %s", found.Size, found.Architecture, version.Arch)
	}

	id := run(t, docker, &container.Config{Image: found.ID, NetworkDisabled: true}, &container.HostConfig{
		ReadonlyRootfs: true, SecurityOpt: []string{"no-new-privileges"}, IpcMode: "shareable",
	})

	t.Run("reaps orphans of another container", func(t *testing.T) {
		// Both orphans are children of the pause process as soon as their subshells end;
		// the shell itself has no child when it looks for zombies.
		other := run(t, docker, &container.Config{
			Image: *image, NetworkDisabled: true,
			Cmd: []string{"sh", "-c", `
				(sleep 0 &); (sleep 0.3 &); sleep 1
				for p in /proc/[0-9]*; do
					read -r stat <$p/stat 2>/dev/null || continue
					case $stat in *") Z "*) echo "$stat"; exit 3;; esac
				done
				case $(cat /proc/1/cmdline) in /pause*) ;; *) exit 4;; esac`},
		}, &container.HostConfig{PidMode: container.PidMode("container:" + id)})
		waiting, failed := docker.ContainerWait(ctx, other, container.WaitConditionNotRunning)
		select {
		case got := <-waiting:
			if got.StatusCode != 0 {
				t.Errorf("exit code %d, want 0; output %q", got.StatusCode, output(t, docker, other))
			}
		case err := <-failed:
			t.Fatal(err)
		}
	})

	t.Run("stops without SIGKILL", func(t *testing.T) {
		begin := time.Now()
		if err := docker.ContainerStop(ctx, id, container.StopOptions{}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 5*time.Second { // Docker sends SIGKILL after 10 s
			t.Errorf("took %v, want less than 5s", took)
		}
		stopped, err := docker.ContainerInspect(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if stopped.State.ExitCode != 0 || stopped.State.OOMKilled {
			t.Errorf("exit code %d, want 0", stopped.State.ExitCode)
		}
	})
}

// load loads the image into Docker and returns its ID.
func load(t *testing.T, docker *client.Client, arch string) string {
	t.Helper()
	archive, err := pause.Archive(arch)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := docker.ImageLoad(t.Context(), bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	progress, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	found, err := docker.ImageInspect(t.Context(), pause.Ref)
	if err != nil {
		t.Fatalf("%v; response to the load: %s", err, progress)
	}
	return found.ID
}

// run starts a container that is removed when the test ends.
func run(t *testing.T, docker *client.Client, config *container.Config, hostConfig *container.HostConfig) string {
	t.Helper()
	created, err := docker.ContainerCreate(t.Context(), config, hostConfig, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := docker.ContainerRemove(context.Background(), created.ID, container.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	})
	if err := docker.ContainerStart(t.Context(), created.ID, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	return created.ID
}

func output(t *testing.T, docker *client.Client, id string) string {
	t.Helper()
	logs, err := docker.ContainerLogs(t.Context(), id, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	text, err := io.ReadAll(logs)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
