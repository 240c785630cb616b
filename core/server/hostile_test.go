package server_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
)

// Labels of an image do not change how berth treats its containers: those of pods are
// created as requested, and those that others created are not listed, logged, stopped or
// removed.
func TestLabelsOfImagesAreNotTrusted(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	run, target := filepath.Join(h.dir, "run"), filepath.Join(h.dir, "target")
	h.must(os.MkdirAll(filepath.Join(target, "empty"), 0o755))
	h.must(os.WriteFile(filepath.Join(target, "file"), []byte("x"), 0o600))
	h.must(os.MkdirAll(filepath.Join(run, "mounts"), 0o700)) // relative paths start here
	before := enginetest.Tree(t, target)
	cli := h.engine.Client(t)

	var byHand, pods, containers []string
	var n int
	for name, set := range enginetest.HostileLabels(run, target) {
		n++
		image := fmt.Sprintf("hostile:%d", n)
		h.engine.AddImage(enginetest.Image{Config: container.Config{Labels: set}}, image)

		made, err := cli.ContainerCreate(h.Context(), &container.Config{Image: image, Cmd: []string{"sh", "-c", "echo owned; sleep 1000"}},
			&container.HostConfig{LogConfig: container.LogConfig{Type: "json-file"}}, nil, nil, fmt.Sprintf("database-%d", n))
		h.must(err)
		byHand = append(byHand, made.ID)
		h.must(cli.ContainerStart(h.Context(), made.ID, container.StartOptions{}))

		pod := &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: fmt.Sprintf("p%d", n), Namespace: "n", Uid: "u"},
			Labels:   map[string]string{"app": name}, LogDirectory: filepath.Join(h.dir, "log"), Linux: &runtimeapi.LinuxPodSandboxConfig{},
		}
		p, err := h.runtime.RunPodSandbox(h.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod})
		h.must(err)
		config := &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: image}, Command: []string{"sleep", "1000"}, Linux: &runtimeapi.LinuxContainerConfig{},
		}
		if n%2 == 0 {
			config.LogPath = fmt.Sprintf("c%d.log", n)
		}
		c, err := h.runtime.CreateContainer(h.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.GetPodSandboxId(), SandboxConfig: pod, Config: config})
		h.must(err)
		_, err = h.runtime.StartContainer(h.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.GetContainerId()})
		h.must(err)
		pods, containers = append(pods, p.GetPodSandboxId()), append(containers, c.GetContainerId())

		// What docker commit of a pod's container leads to.
		committed, there := h.engine.Container(c.GetContainerId())
		if !there {
			t.Fatalf("%s: the pod's container is gone", name)
		}
		h.engine.AddImage(enginetest.Image{Config: container.Config{Labels: committed.Config.Labels}}, image+"-committed")
		made, err = cli.ContainerCreate(h.Context(), &container.Config{Image: image + "-committed", Cmd: []string{"sleep", "1000"}}, nil, nil, nil, "")
		h.must(err)
		byHand = append(byHand, made.ID)
		h.must(cli.ContainerStart(h.Context(), made.ID, container.StartOptions{}))
	}

	check := func(when string) {
		t.Helper()
		if diff := cmp.Diff(before, enginetest.Tree(t, target)); diff != "" {
			t.Errorf("%s: files of the node (-want +got):\n%s", when, diff)
		}
		for _, id := range byHand {
			if c, there := h.engine.Container(id); !there || !c.State.Running {
				t.Errorf("%s: a container that was run by hand was stopped or removed", when)
			}
		}
		list, err := h.runtime.ListContainers(h.Context(), &runtimeapi.ListContainersRequest{})
		h.must(err)
		var ids []string
		for _, c := range list.GetContainers() {
			ids = append(ids, c.GetId())
			if len(c.GetLabels())+len(c.GetAnnotations()) > 0 || c.GetMetadata().GetName() != "c" {
				t.Errorf("%s: list entry %v has what the image says", when, c)
			}
			s, err := h.runtime.ContainerStatus(h.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.GetId()})
			h.must(err)
			want := ""
			if i := slices.Index(containers, c.GetId()); (i+1)%2 == 0 {
				want = filepath.Join(h.dir, "log", fmt.Sprintf("c%d.log", i+1))
			}
			if got := s.GetStatus(); got.GetLogPath() != want || got.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("%s: status %v, want it running with log path %q", when, got, want)
			}
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(containers)), slices.Sorted(slices.Values(ids))); diff != "" {
			t.Errorf("%s: listed containers (-want +got):\n%s", when, diff)
		}
		sandboxes, err := h.runtime.ListPodSandbox(h.Context(), &runtimeapi.ListPodSandboxRequest{})
		h.must(err)
		if len(sandboxes.GetItems()) != len(pods) {
			t.Errorf("%s: %d sandboxes are listed, want %d", when, len(sandboxes.GetItems()), len(pods))
		}
	}
	check("running")
	// A start inspects every container and collects every leftover.
	h.stop()
	h.start()
	check("after a restart of berthd")
	for _, id := range pods {
		_, err := h.runtime.RemovePodSandbox(h.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		h.must(err)
	}
	pods, containers = nil, nil
	check("pods removed")
	if n := h.engine.Len(); n != len(byHand) {
		t.Errorf("%d containers are left, want the %d that were run by hand", n, len(byHand))
	}
}

// An image of hostile labels that is the pause image makes sandboxes as any other.
func TestLabelsOfPauseImageAreNotTrusted(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	all := map[string]string{}
	for _, set := range enginetest.HostileLabels(filepath.Join(h.dir, "run"), filepath.Join(h.dir, "target")) {
		maps.Copy(all, set)
	}
	pod := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}, Linux: &runtimeapi.LinuxPodSandboxConfig{}}
	plain, err := h.runtime.RunPodSandbox(h.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod})
	h.must(err)
	want, err := h.runtime.PodSandboxStatus(h.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: plain.GetPodSandboxId()})
	h.must(err)
	_, err = h.runtime.RemovePodSandbox(h.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: plain.GetPodSandboxId()})
	h.must(err)

	h.engine.SetImageLabels("berth.local/pause:1", all)
	hostile, err := h.runtime.RunPodSandbox(h.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod})
	h.must(err)
	c, _ := h.engine.Container(hostile.GetPodSandboxId())
	if c.Config.Labels["berth.look"] != all["berth.look"] {
		t.Fatal("the pause image did not have the labels")
	}
	h.stop()
	h.start()
	got, err := h.runtime.PodSandboxStatus(h.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: hostile.GetPodSandboxId()})
	h.must(err)
	ignore := protocmp.IgnoreFields(&runtimeapi.PodSandboxStatus{}, "id", "created_at")
	if diff := cmp.Diff(want.GetStatus(), got.GetStatus(), protocmp.Transform(), ignore); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}
