package live

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/nri/nritest"
)

// containerd starts a containerd 2.3 where the Engine runs, with its CRI plugin, NRI, and the images of the Engine that the tests
// use. The result has no berthd, and is for calls of the CRI only.
func (n *node) containerd() *node {
	n.t.Helper()
	if *peerBin == "" {
		n.t.Skip("needs the flag -containerd")
	}
	peer := &node{t: n.t, dir: n.path("peer"), docker: n.docker}
	if err := os.MkdirAll(peer.path("empty"), 0o700); err != nil {
		n.t.Fatal(err)
	}
	const sandbox = "peer-pause:1"
	socket := peer.path("containerd.sock")
	// Without CAP_SYS_RESOURCE nobody can lower oom_score_adj.
	text := fmt.Sprintf(`version = 3
root = %q
state = %q
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
[plugins."io.containerd.nri.v1.nri"]
  disable = false
  socket_path = %q
  plugin_path = %q
  plugin_config_path = %q
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "native"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  enable_experimental_restore_via_create = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    runtime_path = %q
`, peer.path("root"), peer.path("state"), socket, peer.path("opt"), peer.nriSocket(), peer.path("empty"), peer.path("empty"), "docker.io/library/"+sandbox, filepath.Join(*peerBin, "containerd-shim-runc-v2"))
	peer.runContainerd(append(strings.Fields(*enter), filepath.Join(*peerBin, "containerd")), peer.path("containerd.toml"), text, socket)
	made, err := n.docker.ContainerCreate(n.t.Context(), &container.Config{Image: *image}, nil, nil, nil, "")
	if err == nil {
		_, err = n.docker.ContainerCommit(n.t.Context(), made.ID, container.CommitOptions{Reference: sandbox, Changes: []string{`CMD ["/bin/sleep", "100000"]`}})
	}
	if err := errors.Join(err, n.docker.ContainerRemove(n.t.Context(), made.ID, container.RemoveOptions{})); err != nil {
		n.t.Fatal(err)
	}
	n.wantCopy("images: 2 copied", socket, "--to", "containerd", sandbox, *image)
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { conn.Close() })
	peer.runtime, peer.images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	return peer
}

// hostPod is a pod in the network of the node, which needs no CNI plugin, and hostShell a container of it.
func (n *node) hostPod(name string) *runtimeapi.PodSandboxConfig {
	p := n.pod(name)
	p.Hostname = ""
	p.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	if err := os.MkdirAll(p.GetLogDirectory(), 0o700); err != nil {
		n.t.Fatal(err)
	}
	return p
}

func hostNetwork(c *runtimeapi.ContainerConfig) *runtimeapi.ContainerConfig {
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	c.LogPath = c.GetMetadata().GetName() + ".log"
	return c
}

// nriTranscript takes a pod through its life and returns what a plugin sees.
func (n *node) nriTranscript() string {
	n.t.Helper()
	ctx := n.t.Context()
	p := n.connectPlugin("10", &nritest.Plugin{}, n.hostPod)
	defer p.Stub.Stop()
	config := n.hostPod("transcript")
	var seen []string
	names := []string{}
	step := func(what string, err error) {
		n.t.Helper()
		if err != nil {
			n.t.Fatalf("%s: %v", what, err)
		}
		seen = append(seen, what+":")
		for line := range strings.Lines(p.Take(names...)) {
			seen = append(seen, "  "+strings.TrimSpace(line))
		}
	}
	pod, err := n.run(ctx, config)
	names = append(names, pod, "POD")
	step("RunPodSandbox", err)
	_, err = n.runtime.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 99}})
	step("UpdatePodSandboxResources", err)
	var ids []string
	for _, c := range []struct{ name, script string }{{"C", "exec sleep 1000"}, {"EXITS", "sleep 1; exit 3"}} {
		made, err := n.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: hostNetwork(shell(strings.ToLower(c.name), c.script)), SandboxConfig: config})
		id := made.GetContainerId()
		ids, names = append(ids, id), append(names, id, c.name)
		step("CreateContainer "+c.name, err)
		_, err = n.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		if c.name == "EXITS" {
			n.until(20*time.Second, "it does not exit", func() bool {
				return n.containerStatus(id).GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
			})
			time.Sleep(time.Second) // the event of the exit comes after it
		}
		step("StartContainer "+c.name, err)
	}
	_, err = n.runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: ids[0], Linux: &runtimeapi.LinuxContainerResources{CpuShares: 99}})
	step("UpdateContainerResources C", err)
	_, err = n.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: ids[0], Cmd: []string{"true"}, Timeout: 10})
	step("ExecSync C", err)
	_, err = n.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: ids[1]})
	step("RemoveContainer EXITS", err)
	_, err = n.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: ids[0]})
	step("StopContainer C", err)
	_, err = n.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: ids[0]})
	step("StopContainer C again", err)
	_, err = n.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
	step("StopPodSandbox", err)
	_, err = n.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: ids[0]})
	step("RemoveContainer C", err)
	_, err = n.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
	step("RemovePodSandbox", err)
	return strings.Join(seen, "\n")
}

// TestNRITranscriptIsThatOfContainerd has a plugin record the same pod on both.
func TestNRITranscriptIsThatOfContainerd(t *testing.T) {
	n := newNode(t)
	peer := n.containerd()
	own, other := n.nriTranscript(), peer.nriTranscript()
	t.Logf("containerd:\n%s", other)
	if own != other {
		t.Errorf("berthd:\n%s", own)
	}
	n.removeLeftovers()
}

// TestCheckpointsAreExchangedWithContainerd restores a checkpoint of each on the other.
func TestCheckpointsAreExchangedWithContainerd(t *testing.T) {
	n, dir := newRestoreNode(t)
	peer := n.containerd()
	n.installOCI()
	// berthd makes these read-only itself where the Engine has a mount namespace of its own, and then they have to be in the checkpoint.
	var files []*runtimeapi.Mount
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		n.put(n.path(name), name, 0o644)
		files = append(files, &runtimeapi.Mount{HostPath: n.path(name), ContainerPath: "/etc/" + name, Readonly: true})
	}
	with := func(c *runtimeapi.ContainerConfig) *runtimeapi.ContainerConfig {
		c.Mounts = files
		return hostNetwork(c)
	}
	for name, way := range map[string]struct{ from, to *node }{"from containerd": {peer, n}, "to containerd": {n, peer}} {
		location := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".tar")
		config := way.from.hostPod("before")
		pod, id := way.from.begin(config, with(talker("talker")))
		way.from.until(20*time.Second, "the container counts", func() bool { return way.from.count(id) > 2 })
		count := way.from.count(id)
		if err := way.from.checkpoint(t.Context(), id, location, 120); err != nil {
			t.Fatalf("%s: checkpoint: %v", name, err)
		}
		way.from.remove(pod)
		config = way.to.hostPod("after")
		pod, err := way.to.run(t.Context(), config)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		id, err = way.to.restore(pod, config, with(restoredFrom(location)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := way.to.count(id); got < count {
			t.Errorf("%s: the counter is at %d, before the checkpoint at %d", name, got, count)
		}
		way.to.goesOn(id)
		way.to.outputs(id, map[string]string{"cat /etc/new": "new\n"})
		if way.to == n { // containerd 2.3 does not read deleted.files
			way.to.outputs(id, map[string]string{"test -e /etc/group || echo none": "none\n"})
		}
		t.Logf("%s: %d before the checkpoint, %d now", name, count, way.to.count(id))
		way.to.remove(pod)
	}
	n.removeLeftovers()
}
