package live

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// pods runs berthd pods.
func (n *node) pods(args ...string) string {
	n.t.Helper()
	cmd := exec.Command(*program, append([]string{
		"pods", "--container-runtime-endpoint", "unix://" + n.path("cri.sock"), "--docker-endpoint", "unix://" + n.path("docker.sock"), "--run-dir", n.path("run"),
		"--cni-conf-dir", n.path("net.d"), "--cni-bin-dir", *cniBin, "--cni-cache-dir", n.path("cache"),
	}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("berthd pods: %v", err)
	}
	return string(out)
}

// TestPodsCommandWithAndWithoutBerthd compares what berthd pods prints while berthd runs, and after its crash.
func TestPodsCommandWithAndWithoutBerthd(t *testing.T) {
	n := newNode(t)
	pod, _ := n.begin(n.pod("shown"), shell("c", "echo started; exec sleep 1000"))
	ended, _ := n.begin(n.pod("ended"), shell("c", "exit 3"))
	type report struct {
		Source string
		Pods   []map[string]any
	}
	load := func() (r report) {
		if err := json.Unmarshal([]byte(n.pods("--json")), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	var before report
	n.until(10*time.Second, "the exit is not seen", func() bool {
		before = load()
		return strings.Contains(fmt.Sprint(before.Pods), "Exited")
	})
	if before.Source != "berthd" || len(before.Pods) != 2 {
		t.Fatalf("%+v", before)
	}
	t.Logf("\n%s", n.pods())
	t.Logf("\n%s", n.pods("-o", "wide", "-n", "live"))
	shown := before.Pods[1]
	netns, _ := shown["netns"].(string)
	if shown["name"] != "shown" || shown["ready"] != true || shown["dockerName"] != "k8s_POD_shown_live_uid-shown_0" || !strings.Contains(fmt.Sprint(shown["addresses"]), "10.87.") {
		t.Errorf("%v", shown)
	}
	if _, err := os.Stat(netns); err != nil {
		t.Errorf("its network namespace: %v", err)
	}
	n.kill()
	after := load()
	if after.Source != "docker" || fmt.Sprint(after.Pods) != fmt.Sprint(before.Pods) {
		t.Errorf("from %s:\n%v\nbefore:\n%v", after.Source, after.Pods, before.Pods)
	}
	t.Logf("\n%s", n.pods())
	n.proxy.close()
	out, err := exec.Command(*program, "pods", "--container-runtime-endpoint", "unix://"+n.path("cri.sock"), "--docker-endpoint", "unix://"+n.path("docker.sock")).CombinedOutput()
	if err == nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "neither berthd nor Docker answers") {
		t.Errorf("without both: %v, %s", err, out)
	}
	t.Logf("%s", out)
	n.proxy.open()
	n.start()
	n.remove(pod)
	n.remove(ended)
	n.clean()
}
