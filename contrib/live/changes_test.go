package live

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// logged returns the log lines at level info with the message and the text.
func (n *node) logged(message, text string) (lines []string) {
	for line := range strings.Lines(n.log.String()) {
		quoted := strings.Contains(line, ` msg="`+message+`" `)
		if quoted && strings.Contains(line, "level=INFO") && strings.Contains(line, text) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// TestEachChangeIsOneLogLine runs a pod from its creation to its removal, with exits of three kinds.
func TestEachChangeIsOneLogLine(t *testing.T) {
	n := newNode(t)
	config := n.pod("changes")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.run(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	begin := func(name, script string) string {
		t.Helper()
		made, err := n.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: shell(name, script), SandboxConfig: config})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
			t.Fatal(err)
		}
		return made.GetContainerId()
	}
	ended := begin("ended", "exit 3")
	stopped := begin("stopped", "exec sleep 1000")
	missed := begin("missed", "trap 'exit 7' TERM; while :; do sleep 0.1; done")
	one := func(message, text, want string) {
		t.Helper()
		n.until(10*time.Second, "no line "+message+" of "+text, func() bool { return len(n.logged(message, text)) > 0 })
		lines := n.logged(message, text)
		if len(lines) != 1 || !regexp.MustCompile(want).MatchString(lines[0]) {
			t.Errorf("want one line that matches %s:\n%s", want, strings.Join(lines, "\n"))
			return
		}
		t.Log(lines[0])
	}
	one("pod created", pod, `pod=changes namespace=live sandbox=`+pod+` addresses=10\.87\.[0-9.]+,fd87::[0-9a-f:]+ took=`)
	one("container created", ended, `pod=changes namespace=live sandbox=`+pod+` name=ended container=`+ended+` image=\S+ took=`)
	one("container started", ended, `name=ended`)
	one("container exited", ended, `name=ended .* reason=Error exit-code=3 ran=`)
	for range 2 {
		if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: stopped}); err != nil {
			t.Fatal(err)
		}
	}
	one("container exited", stopped, `exit-code=137`)

	// A berthd that is killed between the line and the record of its time writes the line again.
	recorded := func(id string) {
		t.Helper()
		n.until(10*time.Second, "the exit is not recorded", func() bool {
			text, _ := os.ReadFile(n.path("root", "berth", "last-exit"))
			last, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(string(text)))
			seen, inspectErr := n.docker.ContainerInspect(t.Context(), id)
			if err != nil || inspectErr != nil {
				return false
			}
			finished, err := time.Parse(time.RFC3339Nano, seen.State.FinishedAt)
			return err == nil && last.Equal(finished)
		})
	}
	recorded(stopped)
	n.kill()
	if err := n.docker.ContainerStop(t.Context(), missed, container.StopOptions{}); err != nil {
		t.Fatal(err)
	}
	n.start()
	one("container exited", missed, `exit-code=7 .* while-berthd-was-down=true`)
	recorded(missed)
	n.kill()
	n.start()
	n.remove(pod)
	n.remove(pod)
	one("pod stopped", pod, `pod=changes namespace=live`)
	one("container removed", missed, `name=missed`)
	one("pod removed", pod, `pod=changes namespace=live`)
	for _, id := range []string{ended, stopped, missed} {
		one("container exited", id, `exit-code=`)
	}
	n.removeLeftovers()
}

// TestVerboseStatusHasSpecAndHostConfig finds the bundles where each Engine has them.
func TestVerboseStatusHasSpecAndHostConfig(t *testing.T) {
	n := newNode(t)
	config := n.pod("verbose")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	c := shell("web", "exec sleep 1000")
	c.Envs = []*runtimeapi.KeyValue{{Key: "BERTH_TEST", Value: []byte("spec")}}
	made, err := n.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetContainerId()
	type facts struct {
		Pid              int
		RuntimeSpecError string
		RuntimeSpec      struct {
			OCIVersion string
			Hostname   string
			Process    struct{ Args, Env []string }
		}
		HostConfig struct{ NetworkMode string }
	}
	status := func() (found facts) {
		t.Helper()
		seen, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(seen.GetInfo()["info"]), &found); err != nil {
			t.Fatal(err)
		}
		return found
	}
	if got := status(); got.RuntimeSpec.OCIVersion != "" || got.RuntimeSpecError != "" || got.HostConfig.NetworkMode != "container:"+pod {
		t.Errorf("before the start: %+v", got)
	}
	if _, err := n.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	got := status()
	if got.RuntimeSpecError != "" || got.RuntimeSpec.OCIVersion == "" || got.Pid == 0 || strings.Join(got.RuntimeSpec.Process.Args, " ") != "sh -c exec sleep 1000" ||
		!strings.Contains(strings.Join(got.RuntimeSpec.Process.Env, " "), "BERTH_TEST=spec") {
		t.Errorf("running: %+v", got)
	}
	seen, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var sandbox facts
	if err := json.Unmarshal([]byte(seen.GetInfo()["info"]), &sandbox); err != nil || sandbox.RuntimeSpec.OCIVersion == "" || sandbox.RuntimeSpec.Hostname != "verbose" {
		t.Errorf("sandbox: %+v, %v", sandbox, err)
	}
	if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if got := status(); got.RuntimeSpec.OCIVersion != "" || got.RuntimeSpecError != "" || got.HostConfig.NetworkMode != "container:"+pod {
		t.Errorf("after the exit: %+v", got)
	}
	n.remove(pod)
	n.removeLeftovers()
}
