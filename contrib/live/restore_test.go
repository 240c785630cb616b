package live

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/names"
)

// talker is a counter that prints, too.
func talker(name string) *runtimeapi.ContainerConfig {
	return shell(name, "rm /etc/group; echo new >/etc/new; i=0; while :; do i=$((i+1)); echo $i >/n; echo line $i; sleep 1; done")
}

// restoredFrom is a container that is restored from the image, which may be the path of an archive.
func restoredFrom(image string) *runtimeapi.ContainerConfig {
	c := talker("restored")
	c.Image.Image = image
	return c
}

// newRestoreNode is a node whose berthd restores containers from archives, and their directory.
func newRestoreNode(t *testing.T, flags ...string) (n *node, archives string) {
	n = newNode(t)
	n.needsCRIU()
	archives = n.path("archives")
	if err := os.Mkdir(archives, 0o700); err != nil {
		t.Fatal(err)
	}
	n.withFlags(append(flags, "--restore-archive-dir", archives)...)
	return n, archives
}

// archive takes a checkpoint of a new container, removes its pod, and returns how far it was.
func (n *node) archive(location string, c *runtimeapi.ContainerConfig) (count int) {
	n.t.Helper()
	pod, id := n.begin(n.pod("before"), c)
	n.until(20*time.Second, "the container counts", func() bool { return n.count(id) > 2 })
	count = n.count(id)
	if err := n.checkpoint(n.t.Context(), id, location, 120); err != nil {
		n.t.Fatal(err)
	}
	n.remove(pod)
	return count
}

// restore creates a container, which must not run before it is started.
func (n *node) restore(pod string, config *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (id string, err error) {
	n.t.Helper()
	made, err := n.runtime.CreateContainer(n.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
	if err != nil {
		return "", err
	}
	id = made.GetContainerId()
	if s := n.containerStatus(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED {
		n.t.Errorf("after CreateContainer it is %v", s.GetState())
	}
	_, err = n.runtime.StartContainer(n.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	return id, err
}

// noRestores fails the test unless berthd has no files of checkpoints any more.
func (n *node) noRestores() {
	n.t.Helper()
	n.until(90*time.Second, "no files of checkpoints are left", func() bool {
		left, err := os.ReadDir(n.path("root", "berth", "restores"))
		return len(left) == 0 && (err == nil || errors.Is(err, os.ErrNotExist))
	})
}

// isRestored fails the test unless the container id goes on from the count, as a container of its new pod.
func (n *node) isRestored(pod, id string, count int) {
	n.t.Helper()
	if got := n.count(id); got < count {
		n.t.Errorf("the counter is at %d, before the checkpoint at %d", got, count)
	}
	n.goesOn(id)
	n.outputs(id, map[string]string{"cat /etc/new": "new\n", "test -e /etc/group || echo none": "none\n", "echo $((6*7))": "42\n"})
	pause, err := n.docker.ContainerInspect(n.t.Context(), pod)
	if err != nil {
		n.t.Fatal(err)
	}
	own, err := n.docker.ContainerInspect(n.t.Context(), id)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, kind := range []string{"net", "ipc"} {
		a, errA := os.Readlink(filepath.Join("/proc", strconv.Itoa(pause.State.Pid), "ns", kind))
		b, errB := os.Readlink(filepath.Join("/proc", strconv.Itoa(own.State.Pid), "ns", kind))
		if errA != nil || errB != nil || a != b {
			n.t.Errorf("namespace %s is %s, that of the pod %s: %v, %v", kind, b, a, errA, errB)
		}
	}
	if text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(own.State.Pid), "cgroup")); err != nil || !strings.Contains(string(text), id) {
		n.t.Errorf("cgroup: %s, %v", text, err)
	}
}

func TestRestoredContainerGoesOn(t *testing.T) {
	n, dir := newRestoreNode(t)
	n.installOCI()
	location := filepath.Join(dir, "c.tar")
	count := n.archive(location, talker("talker"))
	for _, name := range []string{"first", "second"} { // an archive can be used again
		config := n.pod(name)
		pod, err := n.run(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		id, err := n.restore(pod, config, restoredFrom(location))
		if err != nil {
			t.Fatal(err)
		}
		t.Log("took", time.Since(start))
		n.isRestored(pod, id, count)
		n.runtimes(pod, id, false, true)
		n.noRestores()
		log := n.path("logs", name, "restored", "0.log")
		n.until(20*time.Second, "the log goes on", func() bool {
			text, err := os.ReadFile(log)
			return err == nil && strings.Contains(string(text), " stdout F line ")
		})
		if text, err := os.ReadFile(log); err != nil || strings.Contains(string(text), " stdout F line 1\n") {
			t.Errorf("the log begins with %.200s, %v", text, err)
		}
		n.kill()
		n.start()
		n.goesOn(id)
		if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
			t.Error(err)
		}
		if s := n.waitExited(id); s.GetExitCode() != 137 {
			t.Errorf("%v", s)
		}
		n.remove(pod)
	}
	n.removeLeftovers()
}

func TestRestoreFromAnImage(t *testing.T) {
	n, dir := newRestoreNode(t, "--restore-images", "live/checkpoint")
	n.installOCI()
	location := filepath.Join(dir, "c.tar")
	count := n.archive(location, talker("talker"))
	text, err := os.ReadFile(location)
	if err != nil {
		t.Fatal(err)
	}
	const from = "FROM scratch\nADD 0 /\n"
	n.build("live/checkpoint:marked", from+"LABEL org.criu.checkpoint.container.name=talker", string(text))
	n.build("live/checkpoint:plain", from, string(text))
	n.build("live/other:marked", from+"LABEL io.kubernetes.cri-o.annotations.checkpoint.name=talker", string(text))
	config := n.pod("image")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"marked", "plain"} {
		c := restoredFrom("live/checkpoint:" + tag)
		c.Metadata.Name = tag
		id, err := n.restore(pod, config, c)
		if err != nil {
			t.Fatal(tag, err)
		}
		n.isRestored(pod, id, count)
	}
	if _, err := n.restore(pod, config, restoredFrom("live/other:marked")); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "restore-images") {
		t.Errorf("an image that is not listed: %v", err)
	}
	n.noRestores()
	n.remove(pod)
	n.removeLeftovers()
}

// rewritten returns an archive with another text of one of its files.
func rewritten(t *testing.T, text []byte, name string, change func(string) string) []byte {
	t.Helper()
	var out bytes.Buffer
	r, w := tar.NewReader(bytes.NewReader(text)), tar.NewWriter(&out)
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if header.Name == name {
			content = []byte(change(string(content)))
			header.Size = int64(len(content))
		}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		w.Write(content)
	}
	w.Close()
	return out.Bytes()
}

func TestRestoreIsRefused(t *testing.T) {
	n, dir := newRestoreNode(t)
	location := filepath.Join(dir, "c.tar")
	n.archive(location, talker("talker"))
	config := n.pod("refused")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.restore(pod, config, restoredFrom(location)); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "berthd runtime install") {
		t.Errorf("without the OCI runtime: %v", err)
	}
	n.noRestores()
	n.installOCI()
	text, err := os.ReadFile(location)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.tar")
	missing := rewritten(t, text, "config.dump", func(s string) string { return strings.ReplaceAll(s, *image, "none:1") })
	missing = rewritten(t, missing, "config.dump", func(s string) string {
		return strings.ReplaceAll(s, `"rootfsImageRef"`, `"unused"`)
	})
	if err := os.WriteFile(other, missing, 0o600); err != nil {
		t.Fatal(err)
	}
	volume := n.path("volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(c *runtimeapi.ContainerConfig)
		want   string
	}{
		"elsewhere":  {func(c *runtimeapi.ContainerConfig) { c.Image.Image = n.path("c.tar") }, "must be a path below"},
		"no archive": {func(c *runtimeapi.ContainerConfig) { c.Image.Image += "x" }, "no such file"},
		"no image":   {func(c *runtimeapi.ContainerConfig) { c.Image.Image = other }, "image docker.io/library/none:1 of the checkpoint is not on the node: pull docker.io/library/none:1"},
		"terminal":   {func(c *runtimeapi.ContainerConfig) { c.Tty = true }, "with a terminal cannot be restored"},
		"another mount": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/data"}}
		}, "only in the container: /data"},
		"less privileges": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		}, "capabilities that the container does not have: CAP_"},
		"another user":     {func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsUser = runAs(1000) }, "the user of the container is 1000"},
		"no new privilege": {func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.NoNewPrivs = true }, "may get new privileges"},
		"read-only root":   {func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true }, "the root file system is read-only"},
	} {
		c := restoredFrom(location)
		test.change(c)
		id, err := n.restore(pod, config, c)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), volume) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		n.noRestores()
		if id == "" {
			continue
		}
		if _, err := n.runtime.RemoveContainer(context.Background(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
	}
	mapped := n.mappedPod("mapped")
	podID, err := n.run(t.Context(), mapped)
	if err != nil {
		t.Fatal(err)
	}
	c := restoredFrom(location)
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = ownUsers()
	if _, err := n.restore(podID, mapped, c); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "user namespace") {
		t.Errorf("in a user namespace: %v", err)
	}
	// What CRIU itself finds out: the files that the memory has mapped are not those of the image.
	if err := os.WriteFile(other, rewritten(t, text, "checkpoint/inventory.img", func(string) string { return "garbage" }), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := n.restore(pod, config, restoredFrom(other)); err == nil || !strings.Contains(err.Error(), "CRIU cannot restore the container: Error (criu/") {
		t.Errorf("without an inventory: %v", err)
	}
	n.noRestores()
	n.remove(podID)
	n.remove(pod)
	n.withFlags("--restore-archive-dir", "")
	if pod, err = n.run(t.Context(), n.pod("off")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.restore(pod, n.pod("off"), restoredFrom(location)); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "restore-archive-dir") {
		t.Errorf("without the option: %v", err)
	}
	n.remove(pod)
	n.removeLeftovers()
}

// TestRestoreKilledAtEachStep kills berth-oci, or the runc and CRIU that it has become, and berthd, at different moments of a restore.
func TestRestoreKilledAtEachStep(t *testing.T) {
	n, dir := newRestoreNode(t)
	location := filepath.Join(dir, "c.tar")
	count := n.archive(location, talker("talker"))
	delay, program := n.path("delay"), n.ociProgram()
	n.register(names.OCIRuntime(n.info().DefaultRuntime), func(runc string) map[string]any {
		script := fmt.Sprintf("#!/bin/sh\ncase \" $* \" in *' create '*) ;; *) exec %[1]s \"$@\" ;; esac\n[ -s %[2]s ] || exec %[1]s \"$@\"\n"+
			"%[1]s \"$@\" &\nsleep \"$(cat %[2]s)\"\nkill -9 $!\nwait $!\n", program+" --berth-instructions="+n.path("run", "oci")+" --berth-runtime="+runc, delay)
		path := n.path("berth-oci-killer")
		if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		// Only the arguments say that it is berth's: Docker makes a script of them.
		return map[string]any{"path": path, "runtimeArgs": []string{"--berth-instructions=" + n.path("run", "oci")}}
	})
	config := n.pod("killed")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for attempt, seconds := range []string{"0", "0.01", "0.03", "0.06", "0.1", "0.15", "0.2", "0.3", "0.5", ""} {
		if err := os.WriteFile(delay, []byte(seconds), 0o600); err != nil {
			t.Fatal(err)
		}
		c := restoredFrom(location)
		c.Metadata.Attempt = uint32(attempt)
		c.LogPath = fmt.Sprintf("restored/%d.log", attempt)
		id, err := n.restore(pod, config, c)
		if id == "" {
			t.Fatal(err)
		}
		if err != nil {
			killed++
			t.Logf("killed after %s s: %v", seconds, err)
			n.noRestores()
			n.until(20*time.Second, "no process of the container is left", func() bool { return n.processesOf(id) == 0 })
		} else {
			n.isRestored(pod, id, count)
		}
		if seconds == "" && err != nil {
			t.Error("without a kill:", err)
		}
		if _, err := n.runtime.RemoveContainer(context.Background(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
		n.until(20*time.Second, "no process of the container is left", func() bool { return n.processesOf(id) == 0 })
	}
	if killed == 0 {
		t.Error("no restore was interrupted")
	}
	for attempt, after := range []time.Duration{0, 20, 50, 100, 200, 400, 800} {
		c := restoredFrom(location)
		c.Metadata.Attempt = uint32(100 + attempt)
		ended := make(chan string, 1)
		runtime := n.runtime
		go func() {
			made, err := runtime.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
			if err == nil {
				_, _ = runtime.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()})
			}
			ended <- made.GetContainerId()
		}()
		time.Sleep(after * time.Millisecond)
		n.kill()
		<-ended
		n.start()
	}
	n.remove(pod)
	n.noRestores()
	for path := range n.mounts() {
		if strings.HasSuffix(path, "/criu-root") {
			t.Errorf("mount of runc left at %s", path)
		}
	}
	n.removeLeftovers()
}

// processesOf counts the processes in the cgroup of a container.
func (n *node) processesOf(id string) (count int) {
	n.t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), id) {
			count++
		}
	}
	return count
}
