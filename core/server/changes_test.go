package server_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
)

// A logBuffer keeps log lines in JSON.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// lines returns the log lines with the message, at level info.
func (b *logBuffer) lines(t *testing.T, message string) (found []map[string]any) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.Lines(b.buf.String()) {
		fields := map[string]any{}
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		if fields["msg"] == message && fields["level"] == "INFO" {
			found = append(found, fields)
		}
	}
	return found
}

// newLoggedDaemon is newDaemon with its log.
func newLoggedDaemon(t *testing.T) (*testDaemon, *logBuffer) {
	t.Helper()
	h := newDaemon(t)
	h.stop()
	buf := &logBuffer{}
	h.log = slog.New(slog.NewJSONHandler(buf, nil))
	h.start()
	return h, buf
}

// Each change of the node is one line, however often the kubelet repeats its call.
func TestEachChangeIsOneLogLine(t *testing.T) {
	h, log := newLoggedDaemon(t)
	h.engine.Registry("r.test/app:1", enginetest.Remote{})
	for range 2 {
		_, err := h.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "r.test/app:1"}})
		h.must(err)
	}
	config := h.pod("web")
	var pod string
	for range 2 {
		ran, err := h.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		h.must(err)
		pod = ran.GetPodSandboxId()
	}
	created, err := h.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: command("c", "sleep", "1000"), SandboxConfig: config})
	h.must(err)
	id := created.GetContainerId()
	_, err = h.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	h.must(err)
	h.engine.Die(id, 3)
	h.until("the exit is not logged", func() bool { return len(log.lines(t, "container exited")) > 0 })
	for range 2 {
		_, err := h.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
		h.must(err)
	}
	for range 2 {
		_, err := h.runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id})
		h.must(err)
		_, err = h.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
		h.must(err)
		_, err = h.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "r.test/app:1"}})
		h.must(err)
	}

	podKeys := []string{"pod", "namespace", "sandbox"}
	containerKeys := append(slices.Clone(podKeys), "name", "container", "image")
	for message, keys := range map[string][]string{
		"image pulled": {"image", "id", "bytes", "took"}, "image removed": {"image", "id", "took"},
		"pod created": append(slices.Clone(podKeys), "addresses", "took"), "pod stopped": podKeys, "pod removed": podKeys,
		"container created": containerKeys, "container started": containerKeys, "container removed": containerKeys,
		"container exited": append(slices.Clone(containerKeys), "reason", "exit-code", "ran"),
	} {
		lines := log.lines(t, message)
		if len(lines) != 1 {
			t.Errorf("%q: %d lines, want one: %v", message, len(lines), lines)
			continue
		}
		for _, key := range keys {
			if value, ok := lines[0][key]; !ok || value == "" {
				t.Errorf("%q has no %s: %v", message, key, lines[0])
			}
		}
		for key, want := range map[string]string{"pod": "web", "namespace": "default", "sandbox": pod, "container": id, "name": "c"} {
			if got, ok := lines[0][key]; ok && got != want {
				t.Errorf("%q: %s is %v, want %s", message, key, got, want)
			}
		}
	}
	if lines := log.lines(t, "container exited"); len(lines) == 1 && (lines[0]["exit-code"] != float64(3) || lines[0]["reason"] != "Error") {
		t.Errorf("exit: %v", lines[0])
	}
}

func TestResizeIsOneLogLine(t *testing.T) {
	h, log := newLoggedDaemon(t)
	h.engine.PID = enginetest.InCgroups(t)
	_, id, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	h.must(err)
	for range 2 {
		_, err := h.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}})
		h.must(err)
	}
	if lines := log.lines(t, "container resized"); len(lines) != 1 || lines[0]["cpu-shares"] != float64(512) || lines[0]["container"] != id {
		t.Errorf("%v, want one line", lines)
	}
	h.removeAllPods()
}

// An exit while the daemon is down is logged at the next start, and not at the one after that.
func TestExitWhileDownIsLoggedOnce(t *testing.T) {
	h, log := newLoggedDaemon(t)
	_, id, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	h.must(err)
	_, early, err := h.runPod(h.pod("early"), command("c", "sleep", "1000"))
	h.must(err)
	h.engine.Die(early, 1)
	h.until("the exit is not logged", func() bool { return len(log.lines(t, "container exited")) == 1 })
	h.stop()
	h.engine.Die(id, 7)
	for range 2 {
		h.start()
		h.until("the exit is not logged", func() bool { return len(log.lines(t, "container exited")) == 2 })
		h.stop()
	}
	h.start()
	lines := log.lines(t, "container exited")
	if len(lines) != 2 {
		t.Fatalf("%d lines, want one for each exit: %v", len(lines), lines)
	}
	if last := lines[1]; last["container"] != id || last["exit-code"] != float64(7) || last["while-berthd-was-down"] != true || last["pod"] != "web" {
		t.Errorf("%v", last)
	}
	h.removeAllPods()
	h.nothingLeft()
}

func TestVerboseStatusHasHostConfig(t *testing.T) {
	h := newDaemon(t)
	pod, id, err := h.runPod(h.pod("web"), command("c", "sleep", "1000"))
	h.must(err)
	info := func(text string) (facts struct {
		Pid              int
		HostConfig       map[string]any
		RuntimeSpecError string
	}) {
		t.Helper()
		h.must(json.Unmarshal([]byte(text), &facts))
		return facts
	}
	c, err := h.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	h.must(err)
	if got := info(c.GetInfo()["info"]); got.Pid == 0 || got.HostConfig["NetworkMode"] != "container:"+pod || got.RuntimeSpecError == "" {
		t.Errorf("%+v", got) // the fake Engine has no bundles
	}
	s, err := h.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	h.must(err)
	if got := info(s.GetInfo()["info"]); got.HostConfig["NetworkMode"] != "none" {
		t.Errorf("%+v", got)
	}
	// A Docker that fails does not fail the status.
	h.engine.Fail("GET /containers/{id}/json", 500)
	c, err = h.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil || !strings.Contains(c.GetInfo()["info"], "hostConfigError") {
		t.Errorf("%v, %v", c, err)
	}
	h.engine.ClearFaults("GET /containers/{id}/json")
}
