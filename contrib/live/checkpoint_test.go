package live

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/criu"
	"berth/core/tartest"
)

// needsCRIU skips the test where Docker has no CRIU that works with this kernel.
func (n *node) needsCRIU() {
	n.t.Helper()
	version, err := criu.Probe(n.t.Context(), n.enginePID())
	if err != nil {
		n.t.Skip(err)
	}
	n.t.Log("CRIU", version)
}

// counter is a container that counts, and changes files of its image.
func counter(name string) *runtimeapi.ContainerConfig {
	return shell(name, "rm /etc/group; echo new >/etc/new; i=0; while :; do i=$((i+1)); echo $i >/n; sleep 1; done")
}

// count returns how far a counter is.
func (n *node) count(id string) int {
	n.t.Helper()
	for range 20 { // the file is empty for a moment
		if i, err := strconv.Atoi(strings.TrimSpace(n.exec(id, "cat", "/n"))); err == nil {
			return i
		}
	}
	n.t.Fatal("the counter has no number")
	return 0
}

// goesOn fails the test unless the counter counts.
func (n *node) goesOn(id string) {
	n.t.Helper()
	before := n.count(id)
	n.until(20*time.Second, "the counter goes on", func() bool { return n.count(id) > before })
}

func (n *node) checkpoint(ctx context.Context, id, location string, timeout int64) error {
	_, err := n.runtime.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: location, Timeout: timeout})
	return err
}

// noCheckpoints fails the test unless nothing is left of checkpoints but the given files in dir.
func (n *node) noCheckpoints(dir string, want ...string) {
	n.t.Helper()
	var left []string
	n.until(60*time.Second, "nothing is left of checkpoints", func() bool {
		in, err := os.ReadDir(n.path("root", "berth", "checkpoints"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			n.t.Fatal(err)
		}
		out, err := os.ReadDir(dir)
		if err != nil {
			n.t.Fatal(err)
		}
		left = nil
		for _, e := range append(in, out...) {
			left = append(left, e.Name())
		}
		return strings.Join(left, " ") == strings.Join(want, " ")
	})
}

func TestCheckpointLeavesTheContainerRunning(t *testing.T) {
	n := newNode(t)
	n.needsCRIU()
	dir := n.path("archives")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	pod, id := n.begin(n.pod("checkpoint"), counter("counter"))
	location := filepath.Join(dir, "c.tar")
	start := time.Now()
	if err := n.checkpoint(t.Context(), id, location, 120); err != nil {
		t.Fatal(err)
	}
	t.Log("took", time.Since(start))
	n.goesOn(id)
	n.noCheckpoints(dir, "c.tar")
	info, err := os.Stat(location)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("archive: %v, %v", info, err)
	}
	f, err := os.Open(location)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := tartest.Entries(t, f)
	for name, want := range map[string]string{
		"config.dump": id, "spec.dump": `"io.kubernetes.cri.sandbox-namespace": "live"`, "status.dump": id, "dump.log": "Dumping finished successfully", "stats-dump": "", "checkpoint/inventory.img": "",
		"deleted.files": "/etc/group", "rootfs-diff.tar": "etc/new",
	} {
		if text, ok := found[name]; !ok || !strings.Contains(text, want) {
			t.Errorf("%s: in the archive: %v; it lacks %q", name, ok, want)
		}
	}
	if program, err := exec.LookPath("checkpointctl"); err == nil {
		out, err := exec.Command(program, "inspect", "--all", location).CombinedOutput()
		t.Logf("checkpointctl inspect: %v\n%s", err, out)
	}
	if err := n.checkpoint(t.Context(), pod, filepath.Join(dir, "p.tar"), 0); codeOf(err) != codes.NotFound {
		t.Errorf("a checkpoint of a sandbox: %v", err)
	}
	n.remove(pod)
}

func TestFailedCheckpointLeavesNothing(t *testing.T) {
	n := newNode(t)
	n.needsCRIU()
	dir := n.path("archives")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	config := n.pod("failed")
	pod, id := n.begin(config, counter("counter"))
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := n.checkpoint(short, id, filepath.Join(dir, "cancelled"), 0); err == nil {
		t.Log("the checkpoint was faster than its deadline")
	}
	_ = os.Remove(filepath.Join(dir, "cancelled"))
	n.noCheckpoints(dir)
	n.goesOn(id)
	for range 3 { // killed at different moments
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.checkpoint(ctx, id, filepath.Join(dir, "killed"), 0) }()
		n.until(20*time.Second, "the checkpoint begins", func() bool {
			in, _ := os.ReadDir(n.path("root", "berth", "checkpoints"))
			return len(in) > 0
		})
		n.kill()
		cancel()
		<-ended
		n.start()
		_ = os.Remove(filepath.Join(dir, "killed"))
		n.noCheckpoints(dir)
		n.goesOn(id)
	}
	if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if err := n.checkpoint(t.Context(), id, filepath.Join(dir, "stopped"), 0); codeOf(err) != codes.FailedPrecondition {
		t.Errorf("a checkpoint of a container that does not run: %v", err)
	}
	n.remove(pod)
}
