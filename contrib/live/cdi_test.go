package live

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/premount"
)

// cdiSpec is a CDI specification with a device "one", which every Engine can have, and a device "hooked", which
// an Engine without CDI cannot. Its arguments are the host paths of a device node and of a mount, and the mount's options.
const cdiSpec = `{"cdiVersion": "0.7.0", "kind": "berth.test/thing", "containerEdits": {"env": ["THINGS=all"]}, "devices": [
	{"name": "one", "containerEdits": {
		"env": ["THING=one"],
		"deviceNodes": [{"path": "/dev/thing", "hostPath": %q}],
		"mounts": [{"hostPath": %q, "containerPath": "/thing", "options": [%s]}],
		"additionalGids": [4242]}},
	{"name": "hooked", "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/bin/true"}]}}]}`

// TestCDIDevicesAreInTheContainer requests a device whose CDI specification has two variables, a
// device node, a mount and a group: by the CRI's field, by an annotation of the container, by both, and by an
// annotation of the pod, which must have no effect.
func TestCDIDevicesAreInTheContainer(t *testing.T) {
	n := newNode(t)
	data, thing, dir := n.path("cdi"), n.path("thing-node"), "/run/cdi" // which an Engine in another root sees too
	for _, d := range []string{data, dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(thing, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil { // as /dev/zero
		t.Fatal(err)
	}
	if err := os.Chmod(thing, 0o666); err != nil {
		t.Fatal(err)
	}
	const key, name = "cdi.k8s.io/berth_thing", "berth.test/thing=one"
	config := n.pod("cdi")
	config.Annotations = map[string]string{key: name}
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	// For an Engine without CDI and with a mount namespace of its own, berth cannot prepare mounts.
	options, nosuid := `"ro", "nosuid", "bind"`, "nosuid\n"
	if len(n.info().CDISpecDirs) == 0 && premount.InOtherMountNS(n.shim(pod)) {
		options, nosuid = `"ro", "rbind"`, ""
	}
	spec := filepath.Join(dir, "berth-test.json")
	t.Cleanup(func() { os.Remove(spec) })
	if err := os.WriteFile(spec, fmt.Appendf(nil, cdiSpec, thing, data, options), 0o644); err != nil {
		t.Fatal(err)
	}
	inspect := func(c *runtimeapi.ContainerConfig) string {
		return n.exec(n.create(pod, config, c), "sh", "-c", `tr '\0' '\n' </proc/1/environ | grep THING | sort; echo $THINGS $THING; stat -c %t:%T /dev/thing 2>/dev/null; head -c 1 /dev/thing 2>/dev/null | wc -c
			touch /thing/x 2>/dev/null || echo not writable; grep ' /thing ' /proc/mounts | grep -o nosuid; grep -o 4242 /proc/1/status; true`)
	}
	with, without := "THING=one\nTHINGS=all\nall one\n1:5\n1\nnot writable\n"+nosuid+"4242\n", "\n0\nnot writable\n"
	field, annotation, both := shell("field", "exec sleep 1000"), shell("annotation", "exec sleep 1000"), shell("both", "exec sleep 1000")
	field.CDIDevices = []*runtimeapi.CDIDevice{{Name: name}}
	annotation.Annotations = map[string]string{key: name}
	both.CDIDevices, both.Annotations = field.CDIDevices, annotation.Annotations
	for _, c := range []*runtimeapi.ContainerConfig{field, annotation, both} {
		if got := inspect(c); got != with {
			t.Errorf("%s: %q, want %q", c.GetMetadata().GetName(), got, with)
		}
	}
	if got := inspect(shell("none", "exec sleep 1000")); got != without {
		t.Errorf("with an annotation of the pod only: %q, want %q", got, without)
	}
	if len(n.info().CDISpecDirs) == 0 {
		n.refusesCDI(pod, config, "berth.test/thing=hooked", "has hooks (createContainer /bin/true)", spec)
		n.refusesCDI(pod, config, "berth.test/thing=absent", "unresolvable CDI device berth.test/thing=absent", "/etc/cdi or /var/run/cdi")
	}
	n.remove(pod)
	n.removeLeftovers()
}

// refusesCDI creates a container with a CDI device, which must be refused with an error that has all texts.
func (n *node) refusesCDI(pod string, config *runtimeapi.PodSandboxConfig, device string, texts ...string) {
	n.t.Helper()
	c := shell("refused", "exec sleep 1000")
	c.CDIDevices = []*runtimeapi.CDIDevice{{Name: device}}
	err := n.refused(pod, config, c)
	for _, text := range texts {
		if codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), text) {
			n.t.Errorf("%s: %v, want %q in it", device, err, text)
		}
	}
}
