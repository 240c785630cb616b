package live

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/container"
	dockerimage "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/versions"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/premount"
)

// volume makes an image called name of a layer for each of the given files.
func (n *node) volume(name string, files ...[2]string) {
	n.t.Helper()
	script, contents := []string{"FROM scratch"}, []string(nil)
	for i, f := range files {
		script = append(script, fmt.Sprintf("COPY %d %s", i, f[0]))
		contents = append(contents, f[1])
	}
	n.build(name, strings.Join(script, "\n"), contents...)
}

// build makes an image called name from the text of a Dockerfile, for which the
// contents are files called 0, 1 and so on.
func (n *node) build(name, dockerfile string, contents ...string) {
	n.t.Helper()
	var sent bytes.Buffer
	archive := tar.NewWriter(&sent)
	put := func(name, text string) {
		if err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			n.t.Fatal(err)
		}
		io.WriteString(archive, text)
	}
	for i, text := range contents {
		put(fmt.Sprint(i), text)
	}
	put("Dockerfile", dockerfile)
	archive.Close()
	response, err := n.docker.ImageBuild(n.t.Context(), &sent, build.ImageBuildOptions{Tags: []string{name}, Remove: true, ForceRemove: true})
	if err != nil {
		n.t.Fatal(err)
	}
	defer response.Body.Close()
	if got, err := io.ReadAll(response.Body); err != nil || bytes.Contains(got, []byte(`"errorDetail"`)) {
		n.t.Fatalf("%s, %v", got, err)
	}
	n.t.Cleanup(func() {
		n.docker.ImageRemove(context.Background(), name, dockerimage.RemoveOptions{Force: true, PruneChildren: true})
	})
}

// mounted is a directory of the node with another file system below it.
func (n *node) mounted() string {
	n.t.Helper()
	dir := n.path("data")
	for _, d := range []string{dir, dir + "/below"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			n.t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, ""); err != nil {
			n.t.Fatal(err)
		}
		if err := os.WriteFile(d+"/run.sh", []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	n.t.Cleanup(func() {
		unix.Unmount(dir+"/below", unix.MNT_DETACH)
		unix.Unmount(dir, unix.MNT_DETACH)
	})
	return dir
}

// options returns the options of the mounts that a container has at and below dir,
// as the kernel lists them there.
func (n *node) options(id, dir string) map[string]string {
	n.t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(n.exec(id, "cat", "/proc/self/mountinfo")) {
		f := strings.Fields(line)
		if f[4] == dir || strings.HasPrefix(f[4], dir+"/") {
			found[f[4]] = f[5]
		}
	}
	return found
}

// unstaged reports whether err says that mounts cannot be staged for this Docker.
func unstaged(err error) bool {
	return codeOf(err) == codes.FailedPrecondition && strings.Contains(err.Error(), "mount namespace of its own")
}

// stages reports whether berthd can stage mounts for this Docker.
func (n *node) stages() bool {
	n.t.Helper()
	pod, err := n.run(context.Background(), n.pod("stages"))
	if err != nil {
		n.t.Fatal(err)
	}
	defer n.remove(pod)
	return !premount.InOtherMountNS(n.shim(pod))
}

// TestMounts has every kind of mount in one container, and reads in it what they are.
func TestMounts(t *testing.T) {
	n := newNode(t)
	dir := n.mounted()
	n.volume("berth-files:1", [2]string{"/dir/old", "old"}, [2]string{"/dir/both", "first"}, [2]string{"/dir/both", "second"})
	status, err := n.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !status.GetFeatures().GetMountOptions() || !status.GetRuntimeHandlers()[0].GetFeatures().GetRecursiveReadOnlyMounts() {
		t.Errorf("not announced: %v", status)
	}
	// Docker calls it its own, for its path begins as that does.
	beside, err := os.MkdirTemp(filepath.Dir(n.info().DockerRootDir), filepath.Base(n.info().DockerRootDir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(beside) })
	pod := n.pod("mounts")
	id, err := n.run(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	volume := &runtimeapi.ImageSpec{Image: "berth-files:1"}
	lost := shell("lost", "sleep 3600")
	lost.Mounts = []*runtimeapi.Mount{{ContainerPath: "/sub", Image: volume, ImageSubPath: "nothing/here", Readonly: true}}
	err = n.refused(id, pod, lost)
	volumes := !unstaged(err)
	if !volumes && !versions.LessThan(n.docker.ClientVersion(), "1.48") {
		t.Errorf("this Docker has images as volumes itself: %v", err)
	}
	if volumes && (err == nil || !strings.Contains(err.Error(), "ImageVolumeMountFailed: ")) {
		t.Errorf("a sub-path that is not there: %v", err)
	}
	config := shell("c", "sleep 3600")
	config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/plain", HostPath: dir},
		{ContainerPath: "/beside", HostPath: beside},
		{ContainerPath: "/ro", HostPath: dir, Readonly: true},
		{ContainerPath: "/rro", HostPath: dir, Readonly: true, RecursiveReadOnly: true},
		{ContainerPath: "/options", HostPath: dir, MountOptions: []string{"noexec", "nosuid", "nodev"}},
		{ContainerPath: "/deep", HostPath: dir, MountOptions: []string{"rnoexec"}, Readonly: true},
		{ContainerPath: "/file", HostPath: dir + "/run.sh", MountOptions: []string{"noexec"}},
		{ContainerPath: "/image", Image: volume, Readonly: true},
		{ContainerPath: "/sub", Image: volume, ImageSubPath: "dir", Readonly: true},
	}
	made, err := n.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: config, SandboxConfig: pod})
	native := false
	if unstaged(err) {
		t.Log("without options, and before Docker 28 without images, for this Docker has mounts of its own")
		config.Mounts = slices.DeleteFunc(config.Mounts, func(m *runtimeapi.Mount) bool {
			return len(m.GetMountOptions()) > 0 || !volumes && m.GetImage() != nil
		})
		native = true
		made, err = n.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: config, SandboxConfig: pod})
	}
	if err != nil {
		t.Fatal(err)
	}
	c := made.GetContainerId()
	if _, err := n.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	// Staged mounts would keep a volume on the node when its container has ended.
	if left, _ := filepath.Glob(n.path("run", "mounts")); len(left) > 0 {
		t.Errorf("staged mounts of a container that runs: %v", left)
	}
	for _, tt := range []struct {
		at         string
		has, hasNo []string
	}{
		{"/plain", []string{"rw"}, []string{"noexec"}},
		{"/plain/below", []string{"rw"}, []string{"noexec"}},
		{"/beside", []string{"rw"}, nil},
		{"/ro", []string{"ro"}, nil},
		{"/ro/below", []string{"rw"}, nil},
		{"/rro", []string{"ro"}, nil},
		{"/rro/below", []string{"ro"}, nil},
		{"/options", []string{"rw", "noexec", "nosuid", "nodev"}, nil},
		{"/options/below", []string{"rw"}, []string{"noexec"}},
		{"/deep", []string{"ro", "noexec"}, nil},
		{"/deep/below", []string{"rw", "noexec"}, nil},
		{"/file", []string{"rw", "noexec"}, nil},
		{"/image", []string{"ro"}, nil},
		{"/sub", []string{"ro"}, nil},
	} {
		if !slices.ContainsFunc(config.Mounts, func(m *runtimeapi.Mount) bool { return strings.HasPrefix(tt.at, m.GetContainerPath()) }) {
			continue
		}
		got := strings.Split(n.options(c, tt.at)[tt.at], ",")
		for _, o := range tt.has {
			if !slices.Contains(got, o) {
				t.Errorf("%s is mounted %v: no %s", tt.at, got, o)
			}
		}
		for _, o := range tt.hasNo {
			if slices.Contains(got, o) {
				t.Errorf("%s is mounted %v: %s", tt.at, got, o)
			}
		}
	}
	if volumes {
		if got := n.exec(c, "cat", "/image/dir/old", "/sub/both"); got != "oldsecond" {
			t.Errorf("files of an image: %q", got)
		}
	}
	if native {
		n.remove(id)
		n.clean()
		return
	}
	out := n.exec(c, "sh", "-c", "cat /image/dir/old /image/dir/both /sub/both; /plain/run.sh; /options/run.sh 2>&1; /options/below/run.sh; for d in /ro /rro /rro/below /image /sub; do touch $d/x 2>&1; done; touch /ro/below/x /options/x && echo written")
	want := "oldsecondsecondran\n"
	if !strings.HasPrefix(out, want) || strings.Count(out, "Read-only file system") != 5 || strings.Count(out, "ran\n") != 2 ||
		!strings.Contains(out, "Permission denied") || !strings.HasSuffix(out, "written\n") {
		t.Errorf("%q", out)
	}
	seen, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range seen.GetStatus().GetMounts() {
		if strings.HasPrefix(m.GetHostPath(), n.path("run", "mounts")) || m.GetContainerPath() == "/sub" && m.GetImage().GetImage() == "" {
			t.Errorf("reported as %v", m)
		}
	}

	// They survive us.
	n.kill()
	n.start()
	n.waitReady(10 * time.Second)
	if out := n.exec(c, "cat", "/sub/old", "/image/dir/both"); out != "oldsecond" {
		t.Errorf("after a restart: %q", out)
	}
	n.remove(id)
	n.clean()
	if _, err := os.Stat(dir + "/below/run.sh"); err != nil {
		t.Errorf("the node's own mounts: %v", err)
	}
}

// TestMountPropagation mounts file systems on the node while a container runs.
func TestMountPropagation(t *testing.T) {
	n := newNode(t)
	dir := n.mounted()
	pod := n.pod("propagation")
	id, err := n.run(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	if theirs, err := os.Readlink(filepath.Join("/proc", n.word(id, "PPid"), "ns/mnt")); err != nil || theirs != ours {
		t.Skipf("this Docker has mounts of its own: %s, %v", theirs, err)
	}
	mountOf := func(at string, p runtimeapi.MountPropagation, options ...string) *runtimeapi.Mount {
		return &runtimeapi.Mount{ContainerPath: at, HostPath: dir, Propagation: p, MountOptions: options}
	}
	const (
		private = runtimeapi.MountPropagation_PROPAGATION_PRIVATE
		slave   = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		shared  = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	)
	propagate := func(how uintptr) {
		t.Helper()
		if err := unix.Mount("", dir, "", how, ""); err != nil {
			t.Fatal(err)
		}
	}
	propagate(unix.MS_PRIVATE)
	for name, m := range map[string]*runtimeapi.Mount{
		"from the node": mountOf("/m", slave), "both ways": mountOf("/m", shared), "both ways, staged": mountOf("/m", shared, "noexec"),
	} {
		c := shell("refused", "exec sleep 1000")
		c.Mounts = []*runtimeapi.Mount{m}
		if err := n.refused(id, pod, c); codeOf(err) != codes.FailedPrecondition {
			t.Errorf("%s: %v", name, err)
		}
	}
	propagate(unix.MS_SHARED)
	c := shell("c", "exec sleep 1000")
	c.Mounts = []*runtimeapi.Mount{mountOf("/private", private), mountOf("/slave", slave), mountOf("/shared", shared)}
	seen := n.create(id, pod, c)
	late := filepath.Join(dir, "late")
	if err := os.Mkdir(late, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", late, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(late, unix.MNT_DETACH)
	for at, want := range map[string]bool{"/private/late": false, "/slave/late": true, "/shared/late": true} {
		if got := len(n.options(seen, at)) > 0; got != want {
			t.Errorf("%s is a mount: %v", at, got)
		}
	}
	n.remove(id)
	n.clean()
}

// TestPremountsOfRemovedContainersAreRemoved removes containers behind our back.
func TestPremountsOfRemovedContainersAreRemoved(t *testing.T) {
	n := newNode(t)
	n.volume("berth-files:1", [2]string{"/a", "a"}, [2]string{"/b", "b"})
	dir := n.mounted()
	pod := n.pod("gone")
	id, err := n.run(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	config := shell("c", "sleep 3600")
	config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/options", HostPath: dir, MountOptions: []string{"noexec"}},
		{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: "berth-files:1"}, Readonly: true},
	}
	made, err := n.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: config, SandboxConfig: pod})
	if unstaged(err) {
		t.Skip("this Docker has mounts of its own")
	}
	if err != nil {
		t.Fatal(err)
	}
	n.kill()
	if err := n.docker.ContainerRemove(t.Context(), made.GetContainerId(), container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.waitReady(10 * time.Second)
	n.remove(id)
	n.clean()

	// What cannot be mounted leaves nothing.
	if id, err = n.run(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	config.Mounts[1].ImageSubPath = "nothing/here"
	if err := n.refused(id, pod, config); err == nil || !strings.Contains(err.Error(), "ImageVolumeMountFailed: ") {
		t.Errorf("a sub-path that is not there: %v", err)
	}
	n.remove(id)
	n.clean()
}
