package live

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCDIDevicesAreInTheContainer asks for a made-up device of which a CDI specification says a variable, a
// device node and a mount; or reads why that cannot be.
func TestCDIDevicesAreInTheContainer(t *testing.T) {
	n := newNode(t)
	config := n.pod("cdi")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	c := shell("c", "exec sleep 1000")
	c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "berth.test/thing=one"}}
	dirs := n.info().CDISpecDirs
	if len(dirs) == 0 {
		if err := n.refused(pod, config, c); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "28.2") {
			t.Errorf("an Engine without CDI: %v", err)
		}
		n.remove(pod)
		n.removeLeftovers()
		return
	}
	data, dir := n.path("cdi"), "/run/cdi" // which an Engine in another root sees too
	if err := os.MkdirAll(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	spec := filepath.Join(dir, "berth-test.json")
	text := fmt.Sprintf(`{"cdiVersion": "0.6.0", "kind": "berth.test/thing", "devices": [{"name": "one", "containerEdits": {
		"env": ["THING=one"],
		"deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/zero"}],
		"mounts": [{"hostPath": %q, "containerPath": "/thing", "options": ["ro", "bind"]}]}}]}`, data)
	if err := os.WriteFile(spec, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(spec) })
	id := n.create(pod, config, c)
	if got := n.exec(id, "sh", "-c", "tr '\\0' '\\n' </proc/1/environ | grep THING; stat -c %t:%T /dev/thing; touch /thing/x 2>/dev/null || echo read-only"); got != "THING=one\n1:5\nread-only\n" {
		t.Errorf("%q", got)
	}
	n.remove(pod)
	n.removeLeftovers()
}
