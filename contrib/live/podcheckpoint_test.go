package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/tartest"
)

// pair returns two containers that count in lockstep, some hundred times a second: pong is at the number of ping or one behind. They use a volume without opening
// files in it, so that it can be another one after a restore, and each writes its number to /n.
func pair(volume string) []*runtimeapi.ContainerConfig {
	both := []*runtimeapi.ContainerConfig{
		shell("ping", "i=0; while :; do [ -d /shared/a$i ] || mkdir /shared/a$i; if [ -d /shared/b$i ]; then i=$((i+1)); echo $i >/m; mv /m /n; fi; done"),
		shell("pong", "j=-1; while :; do if [ -d /shared/a$((j+1)) ]; then j=$((j+1)); echo $j >/m; mv /m /n; fi; [ $j -lt 0 ] || [ -d /shared/b$j ] || mkdir /shared/b$j; done"),
	}
	for _, c := range both {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/shared", HostPath: volume}}
		c.Envs = []*runtimeapi.KeyValue{{Key: "ROLE", Value: []byte(c.Metadata.Name)}}
	}
	return both
}

// startPair runs a pod with a pair, and waits until it counts.
func (n *node) startPair(config *runtimeapi.PodSandboxConfig, volume string) (pod string, ids []string) {
	n.t.Helper()
	pod, err := n.run(n.t.Context(), config)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.MkdirAll(volume, 0o755); err != nil {
		n.t.Fatal(err)
	}
	for _, c := range pair(volume) {
		ids = append(ids, n.create(pod, config, c))
	}
	n.counts(ids, 5)
	return pod, ids
}

// counts waits until all containers are beyond a number.
func (n *node) counts(ids []string, least int) {
	n.t.Helper()
	for _, id := range ids {
		n.until(60*time.Second, "the container does not count", func() bool {
			r, err := n.runtime.ExecSync(n.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"cat", "/n"}, Timeout: 20})
			at, numErr := strconv.Atoi(strings.TrimSpace(string(r.GetStdout())))
			return err == nil && numErr == nil && at > least
		})
	}
}

// allGoOn fails the test unless all containers of a pair count.
func (n *node) allGoOn(ids []string) {
	n.t.Helper()
	n.counts(ids, n.count(ids[0])+3)
}

func (n *node) checkpointPod(ctx context.Context, pod, path string, ids ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	_, err := n.runtime.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: path, ContainerIds: ids})
	return err
}

// restorePod restores the pair of a checkpoint with another volume.
func (n *node) restorePod(ctx context.Context, path string, config *runtimeapi.PodSandboxConfig, containers []*runtimeapi.ContainerConfig) (*runtimeapi.RestorePodResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return n.runtime.RestorePod(ctx, &runtimeapi.RestorePodRequest{CheckpointPath: path, Config: config, ContainerConfigs: containers})
}

// emptyDir makes a directory.
func (n *node) emptyDir(elem ...string) string {
	n.t.Helper()
	path := n.path(elem...)
	if err := os.MkdirAll(path, 0o700); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// filesIn returns what is in a directory, with the time of each file.
func (n *node) filesIn(dir string) (texts map[string]string, all string) {
	n.t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		n.t.Fatal(err)
	}
	texts = map[string]string{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			n.t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			n.t.Fatal(err)
		}
		texts[e.Name()] = string(text)
		all += fmt.Sprintln(e.Name(), info.Mode(), info.Size(), info.ModTime())
	}
	return texts, all
}

// TestPodCheckpointIsOfOneMoment takes a checkpoint of a pod whose containers count in lockstep, and restores it twice.
func TestPodCheckpointIsOfOneMoment(t *testing.T) {
	n, dir := newRestoreNode(t)
	n.installOCI()
	pod, ids := n.startPair(n.pod("before"), n.path("volume"))
	bystander := n.create(pod, n.pod("before"), counter("bystander"))
	out := n.emptyDir("archives", "pod")
	start := time.Now()
	if err := n.checkpointPod(t.Context(), pod, out, ids...); err != nil {
		t.Fatal(err)
	}
	t.Log("took", time.Since(start))
	n.allGoOn(ids)
	n.goesOn(bystander)
	n.noCheckpoints(dir, "pod")
	files, before := n.filesIn(out)
	t.Logf("%s%s", before, files["pod.json"])
	var manifest struct {
		Version    int
		Containers []struct{ Name, ID, Archive string }
	}
	if err := json.Unmarshal([]byte(files["pod.json"]), &manifest); err != nil || manifest.Version != 1 || len(manifest.Containers) != 2 || len(files) != 3 || strings.Count(before, "-rw------- ") != 3 {
		t.Fatalf("%v: %s", err, before)
	}
	at := map[string]int{}
	for _, c := range manifest.Containers {
		found := tartest.Entries(t, strings.NewReader(files[c.Archive]))
		changed := tartest.Entries(t, strings.NewReader(found["rootfs-diff.tar"]))
		number, err := strconv.Atoi(strings.TrimSpace(changed["n"]))
		if err != nil || !strings.Contains(found["config.dump"], c.ID) || !strings.Contains(found["dump.log"], "Dumping finished successfully") {
			t.Fatalf("%s: %v, %q", c.Name, err, changed)
		}
		at[c.Name] = number
	}
	t.Log("of one moment:", at)
	// The number is written after it is counted.
	if lead := at["ping"] - at["pong"]; lead < -1 || lead > 2 {
		t.Errorf("the files are not of one moment: %v", at)
	}
	n.remove(pod)
	for _, name := range []string{"first", "second"} {
		config, volume := n.pod(name), n.emptyDir("volume-"+name)
		start := time.Now()
		made, err := n.restorePod(t.Context(), out, config, pair(volume))
		if err != nil {
			t.Fatal(err)
		}
		t.Log("took", time.Since(start))
		restored := n.notStarted(made, volume)
		if _, err := n.restorePod(t.Context(), out, config, pair(volume)); codeOf(err) != codes.AlreadyExists {
			t.Errorf("again: %v", err)
		}
		for _, id := range restored {
			if _, err := n.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
		}
		// They wait for each other for ever if they are not of one moment.
		n.counts(restored, max(at["ping"], at["pong"])+10)
		n.noRestores()
		n.remove(made.GetPodSandboxId())
	}
	if _, after := n.filesIn(out); after != before {
		t.Errorf("the checkpoint was changed:\n%s%s", before, after)
	}
	if log := n.log.String(); strings.Count(log, "pod checkpointed") != 1 || strings.Count(log, "pod restored") != 2 {
		t.Error("changes without a line in the log")
	}
	n.removeLeftovers()
}

// notStarted fails the test unless the containers of a restored pod are created and have executed nothing. It returns their IDs.
func (n *node) notStarted(made *runtimeapi.RestorePodResponse, volume string) (ids []string) {
	n.t.Helper()
	if len(made.GetRestoredContainers()) != 2 || n.sandboxState(made.GetPodSandboxId()) != runtimeapi.PodSandboxState_SANDBOX_READY {
		n.t.Fatal(made)
	}
	for i, name := range []string{"ping", "pong"} {
		c := made.GetRestoredContainers()[i]
		s := n.containerStatus(c.GetContainerId())
		seen, err := n.docker.ContainerInspect(n.t.Context(), c.GetContainerId())
		if err != nil || c.GetName() != name || s.GetMetadata().GetName() != name || s.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || seen.State.Pid != 0 || seen.State.Status != "created" || n.processesOf(c.GetContainerId()) > 0 {
			n.t.Errorf("%s: %v, %v, %v", name, err, s, seen.State)
		}
		ids = append(ids, c.GetContainerId())
	}
	if left, err := os.ReadDir(volume); err != nil || len(left) > 0 {
		n.t.Errorf("in the volume: %v, %v", left, err)
	}
	return ids
}

func (n *node) sandboxState(id string) runtimeapi.PodSandboxState {
	n.t.Helper()
	r, err := n.runtime.PodSandboxStatus(n.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.GetStatus().GetState()
}

func TestPodCheckpointIsRefused(t *testing.T) {
	n := newNode(t)
	n.needsCRIU()
	pod, ids := n.startPair(n.pod("refused"), n.path("volume"))
	other, foreign := n.begin(n.pod("other"), shell("c", "sleep 1000"))
	stopped := n.create(pod, n.pod("refused"), shell("stopped", "sleep 1000"))
	if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: stopped}); err != nil {
		t.Fatal(err)
	}
	out, full := n.emptyDir("out"), n.emptyDir("full")
	if err := errors.Join(os.WriteFile(filepath.Join(full, "x"), nil, 0o600), os.Symlink(out, n.path("link"))); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		request *runtimeapi.CheckpointPodRequest
		code    codes.Code
	}{
		"no pod":          {&runtimeapi.CheckpointPodRequest{PodSandboxId: strings.Repeat("0", 64), OutputPath: out, ContainerIds: ids}, codes.NotFound},
		"no containers":   {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: out}, codes.InvalidArgument},
		"a duplicate":     {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: out, ContainerIds: []string{ids[0], ids[1], ids[0]}}, codes.InvalidArgument},
		"another pod's":   {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: out, ContainerIds: []string{ids[0], foreign}}, codes.InvalidArgument},
		"no container":    {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: out, ContainerIds: []string{ids[0], strings.Repeat("0", 64)}}, codes.NotFound},
		"a pause":         {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: out, ContainerIds: []string{pod}}, codes.NotFound},
		"one has stopped": {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: out, ContainerIds: []string{ids[0], stopped}}, codes.FailedPrecondition},
		"options":         {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: out, ContainerIds: ids, Options: map[string]string{"x": ""}}, codes.InvalidArgument},
		"relative":        {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: "out", ContainerIds: ids}, codes.InvalidArgument},
		"not clean":       {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: out + "/../out", ContainerIds: ids}, codes.InvalidArgument},
		"no directory":    {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: n.path("none"), ContainerIds: ids}, codes.InvalidArgument},
		"a file":          {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: filepath.Join(full, "x"), ContainerIds: ids}, codes.InvalidArgument},
		"a link":          {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: n.path("link"), ContainerIds: ids}, codes.InvalidArgument},
		"not empty":       {&runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: full, ContainerIds: ids}, codes.InvalidArgument},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := n.runtime.CheckpointPod(ctx, test.request)
		cancel()
		if codeOf(err) != test.code {
			t.Errorf("%s: %v, want %v", name, err, test.code)
		}
	}
	if _, err := n.runtime.CheckpointPod(context.Background(), &runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: out, ContainerIds: ids}); codeOf(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("without a deadline: %v", err)
	}
	if err := n.docker.ContainerPause(t.Context(), ids[1]); err != nil {
		t.Fatal(err)
	}
	if err := n.checkpointPod(t.Context(), pod, out, ids...); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "paused with Docker") {
		t.Errorf("one is paused with Docker: %v", err)
	}
	if seen, err := n.docker.ContainerInspect(t.Context(), ids[1]); err != nil || !seen.State.Paused {
		t.Errorf("one that was paused with Docker: %v, %v", seen.State, err)
	}
	if err := n.docker.ContainerUnpause(t.Context(), ids[1]); err != nil {
		t.Fatal(err)
	}
	n.allGoOn(ids)
	n.noCheckpoints(out)
	n.remove(pod)
	if err := n.checkpointPod(t.Context(), other, out, foreign); err != nil {
		t.Errorf("of one container: %v", err)
	}
	n.remove(other)
}

// TestPodCheckpointInterrupted ends checkpoints of a pod at different moments: by a deadline, by a container that is stopped, and by the end of berthd.
func TestPodCheckpointInterrupted(t *testing.T) {
	n := newNode(t)
	n.needsCRIU()
	config := n.pod("interrupted")
	pod, ids := n.startPair(config, n.path("volume"))
	out := n.emptyDir("out")
	clear := func() {
		for _, name := range []string{"ping.tar", "pong.tar", "pod.json"} {
			_ = os.Remove(filepath.Join(out, name)) // it was faster
		}
	}
	for _, after := range []time.Duration{100, 300, 600, 1000} {
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		err := n.checkpointPod(ctx, pod, out, ids...)
		cancel()
		t.Logf("after %d ms: %v", after, err)
		if err == nil {
			clear()
		}
		n.noCheckpoints(out)
		n.allGoOn(ids)
	}
	killed := 0
	for _, after := range []time.Duration{0, 25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 700} {
		ended := make(chan error, 1)
		go func() { ended <- n.checkpointPod(context.Background(), pod, out, ids...) }()
		n.until(20*time.Second, "the checkpoint does not begin", func() bool {
			in, _ := os.ReadDir(n.path("root", "berth", "checkpoints"))
			return len(in) > 0
		})
		time.Sleep(after * time.Millisecond)
		n.kill()
		if err := <-ended; err == nil {
			clear()
		} else {
			killed++
		}
		n.start()
		n.noCheckpoints(out)
		n.allGoOn(ids)
	}
	if killed == 0 {
		t.Error("no checkpoint was interrupted")
	}
	for _, after := range []time.Duration{100, 500} {
		ended := make(chan error, 1)
		go func() { ended <- n.checkpointPod(context.Background(), pod, out, ids...) }()
		n.until(20*time.Second, "the checkpoint does not begin", func() bool {
			in, _ := os.ReadDir(n.path("root", "berth", "checkpoints"))
			return len(in) > 0
		})
		time.Sleep(after * time.Millisecond)
		begin := time.Now()
		if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: ids[1], Timeout: 1}); err != nil {
			t.Error(err)
		}
		err := <-ended
		t.Logf("stopped after %d ms, which took %v: %v", after, time.Since(begin), err)
		if err == nil {
			clear()
		} else if codeOf(err) != codes.FailedPrecondition {
			t.Errorf("a checkpoint of a container that was stopped: %v", err)
		}
		n.noCheckpoints(out)
		n.goesOnAlone(ids[0])
		n.remove(pod)
		config.Metadata.Attempt++
		pod, ids = n.startPair(config, n.path("volume-"+strconv.Itoa(int(after))))
	}
	n.remove(pod)
	n.removeLeftovers()
}

// goesOnAlone fails the test if a container is frozen.
func (n *node) goesOnAlone(id string) {
	n.t.Helper()
	if got := n.exec(id, "echo", "runs"); got != "runs\n" {
		n.t.Errorf("exec: %q", got)
	}
}

// TestPodCheckpointRestoreIsUndone has RestorePod refused, fail at each container, exceed its deadline and lose its berthd.
func TestPodCheckpointRestoreIsUndone(t *testing.T) {
	n, dir := newRestoreNode(t)
	pod, ids := n.startPair(n.pod("before"), n.path("volume"))
	out := n.emptyDir("archives", "pod")
	if err := n.checkpointPod(t.Context(), pod, out, ids...); err != nil {
		t.Fatal(err)
	}
	n.remove(pod)
	config, volume := n.pod("undone"), n.emptyDir("other-volume")
	nothingLeft := func(what string) {
		t.Helper()
		n.noRestores()
		os.RemoveAll(n.path("logs"))
		n.until(30*time.Second, "something is left after "+what, func() bool { return len(n.leftovers()) == 0 })
	}
	if _, err := n.restorePod(t.Context(), out, config, pair(volume)); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "berthd runtime install") {
		t.Errorf("without the OCI runtime: %v", err)
	}
	nothingLeft("a restore without the OCI runtime")
	n.installOCI()
	// A copy whose second archive has no images of CRIU.
	broken := n.emptyDir("archives", "broken")
	files, _ := n.filesIn(out)
	damaged := string(rewritten(t, []byte(files["pong.tar"]), "checkpoint/descriptors.json", func(string) string { return "damaged" }))
	sizes := fmt.Sprintf(`"bytes": %d`, len(files["pong.tar"]))
	files["pod.json"] = strings.ReplaceAll(files["pod.json"], sizes, fmt.Sprintf(`"bytes": %d`, len(damaged)))
	files["pong.tar"] = damaged
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(broken, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		change func(r *runtimeapi.RestorePodRequest)
		code   codes.Code
		want   string
	}{
		"elsewhere":       {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = n.path("out") }, codes.InvalidArgument, "must be a path below"},
		"no checkpoint":   {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = filepath.Join(dir, "none") }, codes.NotFound, "no such file"},
		"options":         {func(r *runtimeapi.RestorePodRequest) { r.Options = map[string]string{"x": "y"} }, codes.InvalidArgument, "options"},
		"handler":         {func(r *runtimeapi.RestorePodRequest) { r.RuntimeHandler = "none" }, codes.FailedPrecondition, "runtime_handler"},
		"one is missing":  {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs = r.ContainerConfigs[:1] }, codes.InvalidArgument, "is missing"},
		"another command": {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[1].Command = []string{"true"} }, codes.FailedPrecondition, "command and args"},
		"another value":   {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[1].Envs[0].Value = []byte("secret") }, codes.FailedPrecondition, "ROLE"},
		"no metadata":     {func(r *runtimeapi.RestorePodRequest) { r.Config.Metadata = nil }, codes.InvalidArgument, "metadata"},
		"a broken one":    {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = broken }, codes.InvalidArgument, "descriptors.json"},
		"an invalid mount": {func(r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[1].Mounts[0].ContainerPath = ""
		}, codes.InvalidArgument, `container "pong"`},
	} {
		r := &runtimeapi.RestorePodRequest{CheckpointPath: out, Config: n.pod("undone"), ContainerConfigs: pair(volume)}
		test.change(r)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := n.runtime.RestorePod(ctx, r)
		cancel()
		if codeOf(err) != test.code || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %v with %q", name, err, test.code, test.want)
		}
		nothingLeft(name)
	}
	for _, after := range []time.Duration{50, 150, 300, 500} {
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		made, err := n.restorePod(ctx, out, config, pair(volume))
		cancel()
		t.Logf("after %d ms: %v", after, err)
		if err == nil {
			n.remove(made.GetPodSandboxId())
		}
		nothingLeft(fmt.Sprintf("a deadline of %d ms", after))
	}
	for _, after := range []time.Duration{50, 150, 250, 350, 500, 700} {
		ended := make(chan error, 1)
		go func() {
			_, err := n.restorePod(context.Background(), out, config, pair(volume))
			ended <- err
		}()
		time.Sleep(after * time.Millisecond)
		n.kill()
		err := <-ended
		t.Logf("killed after %d ms: %v", after, err)
		n.start()
		if err == nil {
			n.removeAll()
		}
		nothingLeft(fmt.Sprintf("a kill after %d ms", after))
	}
	made, err := n.restorePod(t.Context(), out, config, pair(volume)) // it can still be restored
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(made.GetRestoredContainers(), func(c *runtimeapi.RestoredContainer) bool { return c.GetName() == "pong" }) {
		t.Error(made)
	}
	n.remove(made.GetPodSandboxId())
	if now, _ := n.filesIn(out); !bytes.Equal([]byte(now["pod.json"]), []byte(strings.ReplaceAll(files["pod.json"], fmt.Sprintf(`"bytes": %d`, len(damaged)), sizes))) {
		t.Error("the manifest was changed")
	}
	n.withFlags("--restore-archive-dir", "")
	if _, err := n.restorePod(t.Context(), out, config, pair(volume)); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "restore-archive-dir") {
		t.Errorf("without the option: %v", err)
	}
	n.removeLeftovers()
}
