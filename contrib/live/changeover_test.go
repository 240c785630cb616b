package live

import (
	"context"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var criDockerd = flag.String("cri-dockerd", "", "`path` of a cri-dockerd to change over from and back to; without it TestChangeoverFromCRIDockerdAndBack is skipped")

// processes returns the first process of each container of a pod: a container that is started again has another.
func (n *node) processes() map[string]int {
	n.t.Helper()
	list, err := n.docker.ContainerList(context.Background(), container.ListOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	found := map[string]int{}
	for _, c := range list {
		seen, err := n.docker.ContainerInspect(context.Background(), c.ID)
		if err != nil {
			n.t.Fatal(err)
		}
		found[c.ID] = seen.State.Pid
	}
	return found
}

// works fails unless a pod is ready and has its address, and its container runs commands and has stats.
func (n *node) works(under, sandbox, address, c string) {
	n.t.Helper()
	seen, err := n.runtime.PodSandboxStatus(n.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox})
	if s := seen.GetStatus(); err != nil || s.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || s.GetNetwork().GetIp() != address {
		n.t.Errorf("under %s: sandbox %v, %v; want it ready at %q", under, s, err, address)
	}
	status, err := n.runtime.ContainerStatus(n.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c})
	if s := status.GetStatus(); err != nil || s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || s.GetMetadata().GetAttempt() != 0 {
		n.t.Errorf("under %s: container %v, %v", under, s, err)
	}
	if got := n.exec(c, "echo", "hello"); got != "hello\n" {
		n.t.Errorf("under %s: exec %q", under, got)
	}
	// Metadata are read back from labels, names and the journal.
	if m := seen.GetStatus().GetMetadata(); m.GetNamespace() != "live" || m.GetUid() != "uid-"+m.GetName() || status.GetStatus().GetMetadata().GetName() != "web" {
		n.t.Errorf("under %s: metadata %v, %v", under, m, status.GetStatus().GetMetadata())
	}
}

// up makes a pod with a container in it, and returns their IDs and its address.
func (n *node) up(name string, hostPort int32) (sandbox, c, address string) {
	n.t.Helper()
	pod := n.pod(name)
	if hostPort != 0 {
		pod.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: hostPort}}
	}
	sandbox, err := n.run(n.t.Context(), pod)
	if err != nil {
		n.t.Fatal(err)
	}
	config := shell("web", "echo out of "+name+"; exec sleep 100000")
	if err := os.MkdirAll(n.path("logs", name, "web"), 0o755); err != nil { // as the kubelet does
		n.t.Fatal(err)
	}
	made, err := n.runtime.CreateContainer(n.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: config, SandboxConfig: pod})
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.runtime.StartContainer(n.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		n.t.Fatal(err)
	}
	seen, err := n.runtime.PodSandboxStatus(n.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox})
	if err != nil {
		n.t.Fatal(err)
	}
	return sandbox, made.GetContainerId(), seen.GetStatus().GetNetwork().GetIp()
}

// TestChangeoverFromCRIDockerdAndBack changes a node from a real cri-dockerd to berthd and back, with pods
// of both: none is started again, all of them work under each, and each leaves
// nothing of the other's pods when it removes them.
func TestChangeoverFromCRIDockerdAndBack(t *testing.T) {
	if *criDockerd == "" {
		t.Skip("needs a cri-dockerd: -cri-dockerd PATH")
	}
	n := newNode(t)
	warm, _, _ := n.up("warm", 0) // the pause image is there from now on
	n.remove(warm)
	theirs := func() {
		n.kill()
		n.launch(*criDockerd, "--network-plugin", "cni", "--streaming-bind-addr", "127.0.0.1:0")
	}
	ours := func() {
		n.kill()
		n.start()
	}

	theirs()
	old, oldWeb, oldIP := n.up("old", 18080)
	removed, removedWeb, removedIP := n.up("gone", 0)
	if oldIP == "" || removedIP == "" {
		t.Fatalf("no addresses: %q, %q", oldIP, removedIP)
	}
	before := n.processes()

	ours()
	n.works("berthd", old, oldIP, oldWeb)
	n.works("berthd", removed, removedIP, removedWeb)
	log := n.path("logs", "old", "web", "0.log")
	if text, err := os.ReadFile(log); err != nil || !strings.Contains(string(text), "out of old") {
		t.Errorf("the log of the old pod: %q, %v", text, err)
	}
	stats, err := n.runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: oldWeb})
	if err != nil || stats.GetStats().GetMemory().GetUsageBytes().GetValue() == 0 {
		t.Errorf("stats of the old pod: %v, %v", stats, err)
	}
	if portRules(old) == "" {
		t.Error("the port of the old pod is gone")
	}
	n.remove(removed)
	fresh, freshWeb, freshIP := n.up("fresh", 18081)
	for id, pid := range before {
		if now := n.processes()[id]; now != pid && id != removed && id != removedWeb {
			t.Errorf("%s: process %d, was %d", id, now, pid)
		}
	}
	before = n.processes()

	theirs()
	n.works("cri-dockerd", old, oldIP, oldWeb)
	n.works("cri-dockerd", fresh, freshIP, freshWeb)
	list, err := n.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.GetItems()) != 2 {
		t.Errorf("cri-dockerd lists %v, %v; want two pods", list, err)
	}
	if now := n.processes(); len(now) != len(before) {
		t.Errorf("under cri-dockerd run %v, before %v", now, before)
	}
	n.remove(fresh) // ours, by them
	if rules := portRules(fresh); rules != "" {
		t.Errorf("cri-dockerd leaves rules of our pod:\n%s", rules)
	}

	ours()
	n.until(10*time.Second, "the old pod is not there", func() bool {
		list, err := n.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		return err == nil && len(list.GetItems()) == 1 && list.GetItems()[0].GetId() == old
	})
	n.works("berthd again", old, oldIP, oldWeb)
	n.remove(old)
	if rules := portRules(old); rules != "" {
		t.Errorf("rules of the old pod are left:\n%s", rules)
	}
	n.clean()
}
