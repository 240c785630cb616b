package live

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/docker/docker/api/types/container"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A predecessor leaves what cri-dockerd 0.4.3 leaves on a node, with plain calls of Docker
// and libcni: names, labels, settings, checkpoints, links to logs, networks.
type predecessor struct {
	*node
	hostPort int32 // of the pod's port 80, if not 0
}

// sandbox makes a pod with its network and returns its ID.
func (p predecessor) sandbox(name, suffix, networkMode string) string {
	p.t.Helper()
	ctx := context.Background()
	made, err := p.docker.ContainerCreate(ctx, &container.Config{
		Image: *image, Cmd: []string{"sleep", "100000"}, Hostname: name,
		Labels: map[string]string{
			"io.kubernetes.docker.type": "podsandbox", "io.kubernetes.container.name": "POD",
			"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "live", "io.kubernetes.pod.uid": "uid-" + name,
			"app": name, "annotation.kubernetes.io/config.source": "api",
		},
	}, &container.HostConfig{
		NetworkMode: container.NetworkMode(networkMode), IpcMode: "shareable", ShmSize: 64 << 20, SecurityOpt: []string{"no-new-privileges"},
		Resources: container.Resources{CPUShares: 2},
	}, nil, nil, "k8s_POD_"+name+"_live_uid-"+name+"_3"+suffix)
	if err != nil {
		p.t.Fatal(err)
	}
	text := fmt.Sprintf(`{"version":"v1","name":%q,"namespace":"live","data":{},"checksum":2305795928}`, name)
	switch {
	case networkMode == "host":
		text = fmt.Sprintf(`{"version":"v1","name":%q,"namespace":"live","data":{"host_network":true},"checksum":12315789}`, name)
	case p.hostPort != 0: // the checksum is dockershim's: no matter
		text = fmt.Sprintf(`{"version":"v1","name":%q,"namespace":"live","data":{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":%d}]},"checksum":1}`, name, p.hostPort)
	}
	p.write(p.path("root", "sandbox", made.ID), text)
	if err := p.docker.ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil {
		p.t.Fatal(err)
	}
	if networkMode != "none" {
		return made.ID
	}
	seen, err := p.docker.ContainerInspect(ctx, made.ID)
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(seen.ResolvConfPath, "nameserver 10.0.0.53\n")
	conf, err := os.ReadFile(p.path("net.d", "10-live.conflist"))
	if err != nil {
		p.t.Fatal(err)
	}
	rt := &libcni.RuntimeConf{
		ContainerID: made.ID, NetNS: fmt.Sprintf("/proc/%d/ns/net", seen.State.Pid), IfName: "eth0",
		Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "live"}, {"K8S_POD_NAME", name}, {"K8S_POD_INFRA_CONTAINER_ID", made.ID}},
		CapabilityArgs: map[string]any{"ipRanges": [][]any{{}}},
	}
	if p.hostPort != 0 {
		rt.CapabilityArgs["portMappings"] = []map[string]any{{"hostPort": p.hostPort, "containerPort": 80, "protocol": "tcp"}}
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{*cniBin}, p.path("cache"), nil)
	for _, text := range []string{
		`{"cniVersion": "0.2.0", "name": "cni-loopback", "plugins": [{"type": "loopback"}]}`, string(conf),
	} {
		list, err := libcni.NetworkConfFromBytes([]byte(text))
		if err != nil {
			p.t.Fatal(err)
		}
		if _, err := cni.AddNetworkList(ctx, list, rt); err != nil {
			p.t.Fatal(err)
		}
	}
	return made.ID
}

func (p predecessor) write(path, text string) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// container makes a container in a pod, with a link to its log, and starts it.
func (p predecessor) container(sandbox, pod, name, script string) (id, log string) {
	p.t.Helper()
	ctx := context.Background()
	log = p.path("logs", "live_"+pod+"_uid-"+pod, name, "2.log")
	made, err := p.docker.ContainerCreate(ctx, &container.Config{
		Image: *image, Entrypoint: []string{"sh", "-c", script}, Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
		Labels: map[string]string{
			"io.kubernetes.docker.type": "container", "io.kubernetes.sandbox.id": sandbox, "io.kubernetes.container.logpath": log,
			"io.kubernetes.container.name": name, "io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": "live",
			"io.kubernetes.pod.uid": "uid-" + pod, "annotation.io.kubernetes.container.restartCount": "2",
		},
	}, &container.HostConfig{
		NetworkMode: container.NetworkMode("container:" + sandbox), IpcMode: container.IpcMode("container:" + sandbox),
		RestartPolicy: container.RestartPolicy{Name: "no"}, ShmSize: 64 << 20, SecurityOpt: []string{"seccomp=unconfined"},
	}, nil, nil, "k8s_"+name+"_"+pod+"_live_uid-"+pod+"_2")
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.docker.ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil {
		p.t.Fatal(err)
	}
	seen, err := p.docker.ContainerInspect(ctx, made.ID)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Symlink(seen.LogPath, log); err != nil {
		p.t.Fatal(err)
	}
	return made.ID, log
}

// portRules returns the rules of the portmap plugin for a pod.
func portRules(sandbox string) string {
	var found []string
	for _, tool := range []string{"iptables-save", "ip6tables-save"} {
		out, _ := exec.Command(tool).Output()
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, sandbox) {
				found = append(found, line)
			}
		}
	}
	out, _ := exec.Command("nft", "list", "ruleset").Output()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, sandbox) {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}

// TestTakeoverOfCRIDockerdPods is the life of a pod of cri-dockerd under berthd: nothing of it is
// started again, everything works, nothing is left of it in the end.
func TestTakeoverOfCRIDockerdPods(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	n.kill()
	old := predecessor{node: n}
	id := old.sandbox("old", "", "none")
	c, log := old.container(id, "old", "web", "echo hello; exec sleep 100000")
	dead, _ := old.container(id, "old", "dead", "exit 3")
	was, err := n.docker.ContainerInspect(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	n.start()

	list, err := n.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.GetItems()) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	row := list.GetItems()[0]
	if m := row.GetMetadata(); row.GetId() != id || row.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY ||
		m.GetName() != "old" || m.GetNamespace() != "live" || m.GetUid() != "uid-old" || m.GetAttempt() != 3 {
		t.Errorf("sandbox %v", row)
	}
	wantLabels := "map[app:old io.kubernetes.pod.name:old io.kubernetes.pod.namespace:live io.kubernetes.pod.uid:uid-old]"
	if got := fmt.Sprint(row.GetLabels()); got != wantLabels {
		t.Errorf("labels %s, want %s", got, wantLabels)
	}
	if got := fmt.Sprint(row.GetAnnotations()); got != "map[kubernetes.io/config.source:api]" {
		t.Errorf("annotations %s", got)
	}
	seen, err := n.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil || !strings.HasPrefix(seen.GetStatus().GetNetwork().GetIp(), "10.87.") || len(seen.GetStatus().GetNetwork().GetAdditionalIps()) != 1 {
		t.Errorf("status %v, %v; want the addresses that libcni remembers", seen, err)
	}

	reported, err := n.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c})
	if s := reported.GetStatus(); err != nil || s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || s.GetLogPath() != log ||
		s.GetMetadata().GetName() != "web" || s.GetMetadata().GetAttempt() != 2 || s.GetImage().GetImage() != *image ||
		s.GetAnnotations()["io.kubernetes.container.restartCount"] != "2" {
		t.Errorf("container %v, %v", reported, err)
	}
	reported, err = n.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: dead})
	if s := reported.GetStatus(); err != nil || s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 3 {
		t.Errorf("the exited one: %v, %v", reported, err)
	}
	containers, err := n.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: id}})
	if err != nil || len(containers.GetContainers()) != 2 {
		t.Errorf("containers %v, %v", containers, err)
	}
	if got := n.exec(c, "hostname"); got != "old\n" {
		t.Errorf("hostname %q", got)
	}
	if got := n.exec(c, "cat", "/etc/resolv.conf"); got != "nameserver 10.0.0.53\n" {
		t.Errorf("resolv.conf %q", got)
	}
	if got := n.exec(c, "ip", "-o", "addr", "show", "eth0"); !strings.Contains(got, seen.GetStatus().GetNetwork().GetIp()) {
		t.Errorf("eth0 %q", got)
	}
	stats, err := n.runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c})
	if err != nil || stats.GetStats().GetMemory().GetUsageBytes().GetValue() == 0 {
		t.Errorf("stats %v, %v", stats, err)
	}

	// The log stays the link that it is: its reader knows Docker's form.
	var line struct{ Log string }
	if text, err := os.ReadFile(log); err != nil || json.Unmarshal(text, &line) != nil || line.Log != "hello\n" {
		t.Errorf("log %q, %v", text, err)
	}
	if info, err := os.Lstat(log); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the log is no link any more: %v, %v", info, err)
	}

	// The kubelet starts a further container in the old pod.
	pod := n.pod("old")
	made, err := n.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: shell("new", "echo new; exec sleep 1000"), SandboxConfig: pod})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		t.Fatal(err)
	}
	if got := n.exec(made.GetContainerId(), "ip", "-o", "addr", "show", "eth0"); !strings.Contains(got, seen.GetStatus().GetNetwork().GetIp()) {
		t.Errorf("eth0 of the new container %q", got)
	}
	if got := n.exec(made.GetContainerId(), "cat", "/etc/resolv.conf"); got != "nameserver 10.0.0.53\n" {
		t.Errorf("resolv.conf of the new container %q", got)
	}

	is, err := n.docker.ContainerInspect(ctx, c)
	if err != nil || is.State.Pid != was.State.Pid || is.State.StartedAt != was.State.StartedAt {
		t.Errorf("it was started again: %v, %v; was %v", is.State, err, was.State)
	}
	if _, err := n.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 1}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := n.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c}); err != nil {
		t.Errorf("remove: %v", err)
	}
	if _, err := os.Lstat(log); !os.IsNotExist(err) {
		t.Errorf("the link to the log is left: %v", err)
	}
	n.remove(id)
	_, err = n.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if status.Code(err) != codes.NotFound {
		t.Errorf("status of what is gone: %v, want NotFound", err)
	}
	n.clean()
}

// TestTakeoverOfUnusualPods is what else may be found on a node of cri-dockerd.
func TestTakeoverOfUnusualPods(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	n.kill()
	plain, mapped := predecessor{node: n}, predecessor{node: n, hostPort: 18080}
	host := plain.sandbox("host", "", "host")
	suffixed := plain.sandbox("suffixed", "_0a1b2c3d", "none")
	forgotten := mapped.sandbox("forgotten", "", "none")
	if portRules(forgotten) == "" {
		t.Error("there are no rules for the port of the pod")
	}
	// libcni's cache is lost, as with --cni-cache-dir on a tmpfs: only the checkpoint knows of the port.
	results, _ := filepath.Glob(n.path("cache", "results", "*"+forgotten+"*"))
	for _, f := range results {
		os.Remove(f)
	}
	// A pod that ended with a reboot: no process, no namespace.
	ended := plain.sandbox("ended", "", "none")
	if err := n.docker.ContainerKill(ctx, ended, "KILL"); err != nil {
		t.Fatal(err)
	}
	// Checkpoints of nobody, and a torn one.
	orphan := strings.Repeat("ab", 32)
	plain.write(n.path("root", "sandbox", orphan), `{"version":"v1","name":"x","namespace":"y","data":{},"checksum":2305795928}`)
	plain.write(n.path("root", "sandbox", suffixed), `{"version":`)
	n.start()

	states := map[string]runtimeapi.PodSandboxState{}
	list, err := n.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list.GetItems() {
		if s.GetMetadata().GetUid() == "" || s.GetMetadata().GetAttempt() != 3 {
			t.Errorf("metadata %v", s.GetMetadata())
		}
		states[s.GetId()] = s.GetState()
	}
	const up, down = runtimeapi.PodSandboxState_SANDBOX_READY, runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	for id, want := range map[string]runtimeapi.PodSandboxState{host: up, suffixed: up, forgotten: down, ended: down} {
		if states[id] != want {
			t.Errorf("%s is %v, want %v", id, states[id], want)
		}
	}
	if len(list.GetItems()) != 4 {
		t.Errorf("%d sandboxes, want 4: %v", len(list.GetItems()), list)
	}
	n.until(10*time.Second, "the checkpoint of nobody is left", func() bool {
		_, err := os.Stat(n.path("root", "sandbox", orphan))
		return os.IsNotExist(err)
	})
	for _, id := range []string{host, suffixed, forgotten, ended} {
		n.remove(id)
	}
	if rules := portRules(forgotten); rules != "" {
		t.Errorf("rules for the port are left:\n%s", rules)
	}
	n.clean()
}

// TestCRIDockerdTakesPodsBack looks at what cri-dockerd needs to go on with our pods.
func TestCRIDockerdTakesPodsBack(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	pod := n.pod("ours")
	pod.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: 18081}}
	id, err := n.run(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	made, err := n.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: shell("web", "exec sleep 1000"), SandboxConfig: pod})
	if err != nil {
		t.Fatal(err)
	}
	n.kill()

	sandbox, err := n.docker.ContainerInspect(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	web, err := n.docker.ContainerInspect(ctx, made.GetContainerId())
	if err != nil {
		t.Fatal(err)
	}
	if sandbox.Name != "/k8s_POD_ours_live_uid-ours_0" || web.Name != "/k8s_web_ours_live_uid-ours_0" {
		t.Errorf("names %s, %s", sandbox.Name, web.Name)
	}
	for key, want := range map[string]string{"io.kubernetes.docker.type": "podsandbox", "io.kubernetes.container.name": "POD", "annotation.note": "an annotation"} {
		if got := sandbox.Config.Labels[key]; got != want {
			t.Errorf("label %s of the sandbox is %q, want %q", key, got, want)
		}
	}
	for key, want := range map[string]string{"io.kubernetes.docker.type": "container", "io.kubernetes.sandbox.id": id, "io.kubernetes.container.logpath": n.path("logs", "ours", "web", "0.log")} {
		if got := web.Config.Labels[key]; got != want {
			t.Errorf("label %s of the container is %q, want %q", key, got, want)
		}
	}
	want := `{"version":"v1","name":"ours","namespace":"live","data":{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":18081}]},"checksum":`
	if got, err := os.ReadFile(n.path("root", "sandbox", id)); err != nil || !strings.HasPrefix(string(got), want) {
		t.Errorf("checkpoint %s, %v; want %s...", got, err, want)
	}

	// cri-dockerd detaches with the configuration on disk and the namespace of the process.
	conf, err := os.ReadFile(n.path("net.d", "10-live.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	cnis, err := libcni.NetworkConfFromBytes(conf)
	if err != nil {
		t.Fatal(err)
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{*cniBin}, n.path("cache"), nil)
	if err := cni.DelNetworkList(ctx, cnis, &libcni.RuntimeConf{
		ContainerID: id, NetNS: fmt.Sprintf("/proc/%d/ns/net", sandbox.State.Pid), IfName: "eth0",
		CapabilityArgs: map[string]any{"portMappings": []map[string]any{{"hostPort": 18081, "containerPort": 80, "protocol": "tcp"}}},
	}); err != nil {
		t.Errorf("DEL as cri-dockerd does it: %v", err)
	}
	if left, _ := filepath.Glob(n.path("ipam", "live", "10.*")); len(left) > 0 {
		t.Errorf("addresses are left: %v", left)
	}
	if rules := portRules(id); rules != "" {
		t.Errorf("rules for the port are left:\n%s", rules)
	}
	for _, c := range []string{made.GetContainerId(), id} {
		if err := n.docker.ContainerRemove(ctx, c, container.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	if err := os.Remove(n.path("root", "sandbox", id)); err != nil {
		t.Error(err)
	}

	// And back again: what we still hold of it is let go.
	n.start()
	n.clean()
}
