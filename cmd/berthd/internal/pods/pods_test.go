package pods

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cmd/berthd/internal/config"
	"berth/core/daemon"
	"berth/core/engine/enginetest"
	"berth/core/logs"
	"berth/core/testdir"
	"berth/network"
)

// A node has a fake Engine and, until stop is called, a daemon.
type node struct {
	t       *testing.T
	engine  *enginetest.Engine
	cfg     config.Config
	runtime runtimeapi.RuntimeServiceClient
	stop    func()
}

// newNode starts a daemon whose pods are on Docker's own bridge, which needs no plugins.
func newNode(t *testing.T) *node {
	t.Helper()
	dir := testdir.New(t)
	n := &node{t: t, engine: enginetest.New(t)}
	n.engine.AddImage(enginetest.Image{}, "busybox:1")
	n.cfg = config.Config{
		Endpoint: "unix://" + filepath.Join(dir, "cri.sock"), DockerEndpoint: n.engine.Host, RunDir: filepath.Join(dir, "run"), RootDir: filepath.Join(dir, "root"),
		CNIConfDir: filepath.Join(dir, "net.d"), CNICacheDir: filepath.Join(dir, "cache"), CNIBinDirs: []string{dir}, RequestTimeout: time.Minute,
	}
	d, err := daemon.New(daemon.Config{
		RootDir: n.cfg.RootDir, RunDir: n.cfg.RunDir, DockerHost: n.engine.Host, ContainerLogs: logs.ModeCRI, PauseImage: "berth.local/pause:1",
		PullProgress: time.Minute, Bridge: true,
		Network: network.Config{ConfDir: n.cfg.CNIConfDir, CacheDir: n.cfg.CNICacheDir, RunDir: n.cfg.RunDir, BinDirs: n.cfg.CNIBinDirs},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "cri.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, l) }()
	conn, err := grpc.NewClient(n.cfg.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(n.stop)
	n.runtime = runtimeapi.NewRuntimeServiceClient(conn)
	enginetest.Until(t, "not ready", func() bool {
		_, err := n.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		return err == nil
	})
	return n
}

// pod runs a pod with a container and returns their IDs.
func (n *node) pod(namespace, name string) (pod, c string) {
	n.t.Helper()
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: "uid-" + name}, LogDirectory: filepath.Join(n.cfg.RunDir, "logs", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	r, err := n.runtime.RunPodSandbox(n.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		n.t.Fatal(err)
	}
	made, err := n.runtime.CreateContainer(n.t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: r.GetPodSandboxId(), SandboxConfig: config, Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "app", Attempt: 2}, Image: &runtimeapi.ImageSpec{Image: "busybox:1"}, Command: []string{"sleep", "1000"}, LogPath: "app/2.log",
			Labels: map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace},
			Linux:  &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
		},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.runtime.StartContainer(n.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		n.t.Fatal(err)
	}
	return r.GetPodSandboxId(), made.GetContainerId()
}

// load returns the report, which must be from that source.
func (n *node) load(namespace, source string) *Report {
	n.t.Helper()
	report, err := Load(n.t.Context(), n.cfg, namespace)
	if err != nil {
		n.t.Fatal(err)
	}
	if report.Source != source || (report.Note != "") != (source == FromDocker) {
		n.t.Errorf("from %s at %s: %s; want %s", report.Source, report.Endpoint, report.Note, source)
	}
	return report
}

// What berthd answers and what is read from Docker while it is stopped must agree.
func TestBerthdAndDockerAgree(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	webID, _ := n.pod("default", "web")
	_, failed := n.pod("apps", "worker")
	ended, _ := n.pod("default", "ended")
	n.engine.Die(failed, 3)
	n.engine.Die(ended, 137)
	enginetest.Until(t, "the exits are not seen", func() bool {
		pods := n.load("", FromBerthd).Pods
		return len(pods) == 3 && pods[0].Containers[0].State == "Exited" && !pods[1].Ready
	})
	before := n.load("", FromBerthd)
	n.stop()
	after := n.load("", FromDocker)
	if got, want := asJSON(t, after.Pods), asJSON(t, before.Pods); got != want {
		t.Errorf("from Docker:\n%s\nfrom berthd:\n%s", got, want)
	}
	worker, gone, web := after.Pods[0], after.Pods[1], after.Pods[2]
	if worker.Namespace != "apps" || gone.Name != "ended" || web.Name != "web" {
		t.Fatalf("not sorted: %s", asJSON(t, after.Pods))
	}
	if web.ID != webID || !web.Ready || web.NotReady != "" || web.Pid == 0 || web.DockerName != "k8s_POD_web_default_uid-web_0" || web.LogDir == "" || web.NetNS == "" {
		t.Errorf("pod %+v", web)
	}
	if c := web.Containers[0]; c.State != "Running" || c.Attempt != 2 || c.Pid == 0 || c.DockerName != "k8s_app_web_default_uid-web_2" || c.LogPath == "" || c.ExitCode != nil {
		t.Errorf("container %+v", c)
	}
	if c := worker.Containers[0]; c.State != "Exited" || c.Reason != "Error" || c.ExitCode == nil || *c.ExitCode != 3 || c.Pid != 0 {
		t.Errorf("container that has failed %+v", c)
	}
	if gone.Ready || gone.NotReady != "the pause container is exited" {
		t.Errorf("pod without a pause process %+v", gone)
	}
	if only := n.load("apps", FromDocker).Pods; len(only) != 1 || only[0].Name != "worker" {
		t.Errorf("of one namespace: %s", asJSON(t, only))
	}
}

// A container whose pause container is gone must not be missing.
func TestContainersWithoutSandboxAreShown(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	pod, _ := n.pod("default", "web")
	n.stop()
	if err := n.engine.Client(t).ContainerRemove(t.Context(), pod, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	found := n.load("default", FromDocker).Pods
	if len(found) != 1 || found[0].Name != "web" || found[0].ID != pod || found[0].NotReady != "there is no pause container" || len(found[0].Containers) != 1 {
		t.Errorf("got %s", asJSON(t, found))
	}
}

// Reading Docker changes nothing, and an Engine that hangs or is away is one line in bounded time.
func TestLoadIsBoundedAndChangesNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.pod("default", "web")
	n.stop()
	n.engine.ResetCalls()
	n.load("", FromDocker)
	for _, call := range n.engine.Called() {
		if !strings.HasPrefix(call, "GET ") && !strings.HasPrefix(call, "HEAD ") {
			t.Errorf("called %s", call)
		}
	}
	if left, err := os.ReadDir(n.cfg.CNIConfDir); err == nil {
		t.Errorf("made in the CNI directory: %v", left)
	}
	n.engine.Stop()
	_, err := Load(t.Context(), n.cfg, "")
	if err == nil || !strings.Contains(err.Error(), "neither berthd nor Docker answers") || strings.Contains(err.Error(), "\n") {
		t.Errorf("without Docker: %v", err)
	}
	n.engine.Restart()
	release := n.engine.Hang("GET /info")
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	begin := time.Now()
	_, err = Load(ctx, n.cfg, "")
	if err == nil || !strings.Contains(err.Error(), "has not answered within") || time.Since(begin) > 15*time.Second {
		t.Errorf("with a Docker that hangs: %v after %v", err, time.Since(begin))
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTable(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	code := int32(137)
	report := &Report{Source: FromDocker, Endpoint: "unix:///var/run/docker.sock", Note: "berthd does not answer: connection\nrefused", Pods: []Pod{
		{
			Namespace: "default", Name: "web-0", Ready: true, ID: strings.Repeat("a", 64), DockerName: "k8s_POD_web-0_default_u_0", Pid: 4711, CreatedAt: now.Add(-3 * time.Hour),
			NetNS: "/var/run/netns/berth-a", LogDir: "/var/log/pods/x", Addresses: []string{"10.88.0.2", "fd00::2"},
			Containers: []Container{
				{Name: "app", Attempt: 3, ID: strings.Repeat("b", 64), State: "Running", Pid: 4800, CreatedAt: now.Add(-90 * time.Second), LogPath: "app/3.log"},
				{Name: "app", Attempt: 2, ID: strings.Repeat("c", 64), State: "Exited", Reason: "OOMKilled", ExitCode: &code, CreatedAt: now.Add(-5 * 24 * time.Hour), Message: "\x1b[31mred" + strings.Repeat("!", 100)},
			},
		},
		{Namespace: "kube-system", Name: "proxy", Ready: true, ID: "short", HostNetwork: true},
		{Namespace: "kube-system", Name: "x", ID: "d", NotReady: "the pause container is exited"},
	}}
	var table, wide bytes.Buffer
	if err := report.WriteTable(&table, now, false); err != nil {
		t.Fatal(err)
	}
	want := `# from docker at unix:///var/run/docker.sock; berthd does not answer: connection refused
POD                STATE     TRY  AGE  PID   ID            ADDRESS OR REASON
default/web-0      Ready     0    3h   4711  aaaaaaaaaaaa  10.88.0.2 fd00::2
  app              Running   3    90s  4800  bbbbbbbbbbbb  -
  app              Exited    2    5d   -     cccccccccccc  OOMKilled, exit code 137:  [31mred!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!...
kube-system/proxy  Ready     0    -    -     short         network of the node
kube-system/x      NotReady  0    -    -     d             the pause container is exited
`
	if got := table.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if err := report.WriteTable(&wide, now, true); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"default/web-0      Ready     0    3h   4711  aaaaaaaaaaaa  10.88.0.2 fd00::2\n  docker: k8s_POD_web-0_default_u_0\n  netns: /var/run/netns/berth-a\n  logs: /var/log/pods/x\n",
		"    log: /var/log/pods/x/app/3.log\n",
	} {
		if !strings.Contains(wide.String(), line) {
			t.Errorf("not in the wide table: %q\n%s", line, &wide)
		}
	}
	var none bytes.Buffer
	if err := (&Report{Source: FromBerthd, Endpoint: "unix:///x"}).WriteTable(&none, now, false); err != nil || none.String() != "# from berthd at unix:///x\nno pods\n" {
		t.Errorf("%q, %v", none.String(), err)
	}
}
