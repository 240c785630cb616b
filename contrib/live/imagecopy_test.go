package live

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	dockerimage "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/pkg/stdcopy"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// startContainerd starts a containerd with its CRI plugin, in directories of the test, and returns its socket.
func (n *node) startContainerd() string {
	n.t.Helper()
	if _, err := exec.LookPath("containerd"); err != nil {
		n.t.Skip("needs containerd")
	}
	socket, config := n.path("containerd.sock"), n.path("containerd.toml")
	// The native snapshotter works on every file system. The other plugins would write outside of these directories.
	text := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = %q
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
`, n.path("containerd"), n.path("containerd-state"), socket)
	n.runContainerd([]string{"containerd"}, config, text, socket)
	return socket
}

// runContainerd runs containerd, by a command without arguments, with a configuration until the test ends, and waits until it serves
// the CRI.
func (n *node) runContainerd(command []string, config, text, socket string) {
	n.t.Helper()
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
	command = append(command, "--config", config)
	cmd := exec.Command(command[0], command[1:]...)
	var log lockedBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		cmd.Process.Signal(unix.SIGTERM)
		cmd.Wait()
		if n.t.Failed() {
			lines := strings.Split(log.String(), "\n")
			n.t.Logf("the end of containerd's log:\n%s", strings.Join(lines[max(0, len(lines)-30):], "\n"))
		}
	})
	n.until(time.Minute, "containerd does not serve the CRI", func() bool {
		_, err := n.criImages(socket)
		return err == nil
	})
}

// criImages returns the images that the CRI plugin of containerd lists, by their names.
func (n *node) criImages(socket string) (map[string]*runtimeapi.Image, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	list, err := runtimeapi.NewImageServiceClient(conn).ListImages(n.t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	images := map[string]*runtimeapi.Image{}
	for _, img := range list.GetImages() {
		for _, name := range slices.Concat(img.GetRepoTags(), img.GetRepoDigests()) {
			images[name] = img
		}
	}
	return images, nil
}

// copyImages runs berthd images copy and returns what it prints.
func (n *node) copyImages(socket string, args ...string) (string, error) {
	args = append([]string{"images", "copy", "--docker-endpoint", *host, "--containerd-address", socket}, args...)
	out, err := exec.Command(*program, args...).CombinedOutput()
	n.t.Logf("berthd %s\n%s", strings.Join(args, " "), out)
	return string(out), err
}

// wantCopy runs berthd images copy, which must succeed and print the text.
func (n *node) wantCopy(text, socket string, args ...string) {
	n.t.Helper()
	if out, err := n.copyImages(socket, args...); err != nil || !strings.Contains(out, text) {
		n.t.Errorf("images copy %v: %v, want %q in %q", args, err, text, out)
	}
}

// runOnce runs a command in a container of Docker and returns its output.
func (n *node) runOnce(image string, command ...string) string {
	n.t.Helper()
	ctx := n.t.Context()
	made, err := n.docker.ContainerCreate(ctx, &container.Config{Image: image, Cmd: command}, &container.HostConfig{NetworkMode: "none"}, nil, nil, "")
	if err != nil {
		n.t.Fatal(err)
	}
	defer n.docker.ContainerRemove(context.Background(), made.ID, container.RemoveOptions{Force: true})
	if err := n.docker.ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil {
		n.t.Fatal(err)
	}
	ended, errs := n.docker.ContainerWait(ctx, made.ID, container.WaitConditionNotRunning)
	select {
	case <-ended:
	case err := <-errs:
		n.t.Fatal(err)
	}
	stream, err := n.docker.ContainerLogs(ctx, made.ID, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		n.t.Fatal(err)
	}
	defer stream.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, stream); err != nil {
		n.t.Fatal(err)
	}
	return out.String()
}

// TestImagesAreCopiedToContainerdAndBack copies an image to a real containerd, whose CRI plugin must list it under all names,
// and back into a Docker that has lost it.
func TestImagesAreCopiedToContainerdAndBack(t *testing.T) {
	n := prepareNode(t)
	socket := n.startContainerd()
	ctx := t.Context()
	const name, other = "docker.io/library/copy-test:1", "registry.example.com/team/app:v2"
	n.build("copy-test:1", "FROM "+*image+"\nCOPY 0 /proof", "copied\n")
	if err := n.docker.ImageTag(ctx, "copy-test:1", other); err != nil {
		t.Fatal(err)
	}
	removeFromDocker := func() {
		for _, ref := range []string{other, "copy-test:1"} {
			n.docker.ImageRemove(context.Background(), ref, dockerimage.RemoveOptions{Force: true, PruneChildren: true})
		}
	}
	t.Cleanup(removeFromDocker)
	built, err := n.docker.ImageInspect(ctx, "copy-test:1")
	if err != nil {
		t.Fatal(err)
	}
	info, err := n.docker.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	snapshotter := strings.Contains(fmt.Sprint(info.DriverStatus), "io.containerd.snapshotter")

	n.wantCopy("would be copied", socket, "--to", "containerd", "--dry-run", "copy-test:1")
	if images, err := n.criImages(socket); err != nil || len(images) != 0 {
		t.Errorf("after a dry run: %v, %v", images, err)
	}
	n.wantCopy("images: 1 copied", socket, "--to", "containerd", "copy-test:1")
	var images map[string]*runtimeapi.Image
	n.until(10*time.Second, "the CRI plugin does not list the image", func() bool {
		images, err = n.criImages(socket)
		return err == nil && images[name] != nil && images[other] != nil
	})
	copied := images[name]
	if digest := "docker.io/library/copy-test@" + built.ID; snapshotter && images[digest].GetId() != copied.GetId() {
		t.Errorf("the digest %s was not kept: %v", digest, copied)
	} else if !snapshotter && copied.GetId() != built.ID {
		t.Errorf("image ID in containerd %s, in docker %s", copied.GetId(), built.ID)
	}
	n.wantCopy("images: 1 already there", socket, "--to", "containerd", "copy-test:1")
	n.wantCopy("would be copied", socket, "--to", "containerd", "--dry-run") // berth-test:1, without arguments
	if out, err := n.copyImages(socket, "--to", "containerd", "copy-test:2"); err == nil || !strings.Contains(out, `image "copy-test:2": not found`) {
		t.Errorf("unknown image: %v, %q", err, out)
	}

	mounted := n.path("mounted")
	if err := os.Mkdir(mounted, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ctr", "-a", socket, "-n", "k8s.io", "images", "mount", "--snapshotter", "native", name, mounted).CombinedOutput(); err != nil {
		t.Fatalf("ctr images mount: %v: %s", err, out)
	}
	t.Cleanup(func() { unix.Unmount(mounted, unix.MNT_DETACH) })
	if text, err := os.ReadFile(filepath.Join(mounted, "proof")); err != nil || string(text) != "copied\n" {
		t.Errorf("file of the unpacked image: %q, %v", text, err)
	}
	if err := unix.Unmount(mounted, 0); err != nil {
		t.Error(err)
	}

	removeFromDocker()
	if _, err := n.docker.ImageInspect(ctx, "copy-test:1"); err == nil {
		t.Fatal("docker still has the image")
	}
	out, err := n.copyImages(socket, "--from", "containerd", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var summary struct {
		Event   string
		Results map[string]int
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &summary); err != nil || summary.Event != "summary" || summary.Results["copied"] != 1 {
		t.Errorf("summary %+v, %v", summary, err)
	}
	for _, ref := range []string{"copy-test:1", other} {
		if back, err := n.docker.ImageInspect(ctx, ref); err != nil || back.ID != built.ID {
			t.Errorf("%s in docker is %s, want %s: %v", ref, back.ID, built.ID, err)
		}
	}
	if got := n.runOnce("copy-test:1", "cat", "/proof"); got != "copied\n" {
		t.Errorf("a container of the image printed %q", got)
	}
	n.wantCopy("images: 1 already there", socket, "--from", "containerd")

	// A name is added without a transfer.
	if _, err := n.docker.ImageRemove(ctx, other, dockerimage.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	n.wantCopy("images: 1 named", socket, "--from", "containerd")
	if back, err := n.docker.ImageInspect(ctx, other); err != nil || back.ID != built.ID {
		t.Errorf("%s in docker is %s, want %s: %v", other, back.ID, built.ID, err)
	}
}

// TestInterruptedCopyLeavesNothing kills berthd while it copies: containerd must not list the image, and the next copy is complete.
func TestInterruptedCopyLeavesNothing(t *testing.T) {
	n := prepareNode(t)
	socket := n.startContainerd()
	content := strings.Repeat("0123456789abcdef", 2<<20) // 32 MiB
	n.build("large-test:1", "FROM "+*image+"\nCOPY 0 /large", content)
	for _, signal := range []os.Signal{unix.SIGINT, unix.SIGKILL} {
		cmd := exec.Command(*program, "images", "copy", "--docker-endpoint", *host, "--containerd-address", socket, "--to", "containerd", "--json", "large-test:1")
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 1)
		if _, err := io.ReadFull(out, first); err != nil { // the first line is the progress
			t.Fatal(err)
		}
		cmd.Process.Signal(signal)
		rest, _ := io.ReadAll(out)
		err = cmd.Wait()
		images, listErr := n.criImages(socket)
		if listErr != nil {
			t.Fatal(listErr)
		}
		if err == nil || bytes.Contains(rest, []byte(`"result":"copied"`)) {
			t.Skipf("%v came after the end of the copy", signal)
		}
		if len(images) > 0 {
			t.Errorf("after %v containerd lists %v", signal, images)
		}
	}
	n.wantCopy("images: 1 copied", socket, "--to", "containerd", "large-test:1")
	images, err := n.criImages(socket)
	if img := images["docker.io/library/large-test:1"]; err != nil || img == nil { // its size is that of compressed layers
		t.Errorf("image in containerd %v, %v", img, err)
	}
}
