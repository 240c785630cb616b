package live

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDockerReloadUpdatesFeatures adds a runtime to the file that Docker has read at its start, and has it
// read that again, as the tools of GPUs do.
func TestDockerReloadUpdatesFeatures(t *testing.T) {
	n := newNode(t)
	dir := filepath.Dir(strings.TrimPrefix(*host, "unix://"))
	file := filepath.Join(dir, "daemon.json")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Skip("needs an Engine whose configuration is beside its socket:", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	reload := func(text []byte) {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	request := func() (string, error) {
		r, err := n.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.pod("reload"), RuntimeHandler: "another"})
		return r.GetPodSandboxId(), err
	}
	status := func() bool {
		r, err := n.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(r.GetRuntimeHandlers(), func(h *runtimeapi.RuntimeHandler) bool { return h.GetName() == "another" })
	}

	if _, err := request(); codeOf(err) == codes.OK || status() {
		t.Fatalf("before: %v, in the status: %v", err, status())
	}
	config := map[string]any{}
	if err := json.Unmarshal(before, &config); err != nil {
		t.Fatal(err)
	}
	runtimes, _ := config["runtimes"].(map[string]any)
	if runtimes == nil {
		runtimes = map[string]any{}
		config["runtimes"] = runtimes
	}
	runtimes["another"] = map[string]any{"path": "runc"}
	if clamp := runtimes["clamp"]; clamp != nil {
		runtimes["another"] = clamp
	}
	after, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	reload(after)
	t.Cleanup(func() { reload(before) })
	n.until(5*time.Second, "the runtime is not in the status", status)
	id, err := request()
	if err != nil {
		t.Fatal(err)
	}
	seen, err := n.docker.ContainerInspect(t.Context(), id)
	if err != nil || seen.HostConfig.Runtime != "another" {
		t.Errorf("it runs with %q, %v", seen.HostConfig.Runtime, err)
	}
	n.remove(id)
	n.removeLeftovers()
}

// TestReloadChangesPauseImageOfNewPods changes the configuration file of a running berthd.
func TestReloadChangesPauseImageOfNewPods(t *testing.T) {
	n := prepareNode(t, "--config", "")
	file := n.path("config.yaml")
	n.flags[1] = file
	reload := func(text, want string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n.cmd == nil {
			return
		}
		if err := n.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		n.until(5*time.Second, "no log line "+want, func() bool { return strings.Contains(n.log.String(), want) })
	}
	imageOf := func(id string) string {
		t.Helper()
		seen, err := n.docker.ContainerInspect(t.Context(), id)
		if err != nil || !seen.State.Running {
			t.Fatalf("%v, %v; want a running sandbox", seen.State, err)
		}
		return seen.Image
	}
	run := func(name string) string {
		t.Helper()
		id, err := n.run(t.Context(), n.pod(name))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}

	reload("pod-infra-container-image: berth.local/pause:1\n", "")
	n.start()
	n.build("berth-other-pause:1", "FROM "+*image+"\nENTRYPOINT [\"sleep\", \"1000\"]\n")
	first := run("first")
	before := imageOf(first)
	reload("pod-infra-container-image: berth-other-pause:1\nno-such: 1\n", "config.yaml:2: unknown option")
	if second := run("second"); imageOf(second) != before {
		t.Error("a file with an error was applied")
	}
	reload("pod-infra-container-image: berth-other-pause:1\npod-cidr: 10.1.0.0/16\n", `applied=pod-infra-container-image unchanged-until-restart=pod-cidr`)
	third := run("third")
	if got, want := imageOf(third), n.status("berth-other-pause:1"); got != want || got == before {
		t.Errorf("a new pod runs %s, want %s", got, want)
	}
	if imageOf(first) != before {
		t.Error("a running pod has another image")
	}
	n.removeAll()
	n.removeLeftovers()
}
