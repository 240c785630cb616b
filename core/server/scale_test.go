package server_test

import (
	"bytes"
	"flag"
	"fmt"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/labels"
	"berth/core/names"
)

const (
	// crowd is how many pods of one container a large node may have.
	crowd = 500
	// mostHeap is what one Docker container may cost, in bytes.
	mostHeap = 20 << 10
)

var scale = flag.Int("scale", 100, "how many `pods` TestScale has")

// crowded is a container with as much to it as those that a kubelet orders.
func (h *house) crowded() *runtimeapi.ContainerConfig {
	c := command("c", "sleep", "1000000")
	c.Labels, c.Annotations = map[string]string{}, map[string]string{}
	for _, word := range []string{"container.name", "pod.name", "pod.namespace", "pod.uid"} {
		c.Labels["io.kubernetes."+word] = "what a kubelet says of it"
	}
	for i := range 8 {
		c.Annotations[fmt.Sprintf("io.kubernetes.container.annotation-%d", i)] = "what a kubelet wants to find again"
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: fmt.Sprintf("/var/run/secrets/mount-%d", i), HostPath: h.dir, Readonly: true})
	}
	for i := range 30 {
		c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: fmt.Sprintf("KUBERNETES_SERVICE_PORT_%d", i), Value: []byte("tcp://10.96.0.1:443")})
	}
	return c
}

// fill sets up pods of one container from number begin to end.
func (h *house) fill(begin, end int) {
	h.Helper()
	var g errgroup.Group
	g.SetLimit(8)
	for i := begin; i < end; i++ {
		g.Go(func() error {
			_, _, err := h.begin(h.pod(fmt.Sprintf("p%d", i)), h.crowded())
			return err
		})
	}
	h.must(g.Wait())
}

// relist asks what a kubelet asks every second, and for the status of all as
// well if whole is set, and returns how many containers there are.
func (h *house) relist(whole bool) int {
	h.Helper()
	pods, err := h.runtime.ListPodSandbox(h.Context(), &runtimeapi.ListPodSandboxRequest{})
	h.must(err)
	list, err := h.runtime.ListContainers(h.Context(), &runtimeapi.ListContainersRequest{})
	h.must(err)
	if !whole {
		return len(list.GetContainers())
	}
	for _, p := range pods.GetItems() {
		_, err := h.runtime.PodSandboxStatus(h.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.GetId()})
		h.must(err)
	}
	for _, c := range list.GetContainers() {
		_, err := h.runtime.ContainerStatus(h.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.GetId()})
		h.must(err)
	}
	return len(list.GetContainers())
}

// ours returns the stacks of all goroutines that are in the house, or begun by
// it, but for the Engine's and this test's.
func ours() (stacks []string) {
	var all bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&all, 2); err != nil {
		return []string{err.Error()}
	}
	for stack := range strings.SplitSeq(all.String(), "\n\n") {
		if strings.Contains(stack, "berth/core/") && !strings.Contains(stack, "berth/core/engine/enginetest.") && !strings.Contains(stack, "testing.tRunner") {
			stacks = append(stacks, stack)
		}
	}
	return stacks
}

// calm waits until no more than so many goroutines are in the house.
func (h *house) calm(most int, when string) {
	h.Helper()
	for range 500 {
		if len(ours()) <= most {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	all := ours()
	h.Errorf("%d goroutines %s, want at most the %d of an empty node, among them\n%s", len(all), when, most, all[len(all)-1])
}

// heap returns what is in use, in bytes.
func heap() int64 {
	for range 3 { // what has a finalizer goes in the second
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A node with many pods holds no goroutine for any of them, little memory, and
// answers at a price that grows no faster than they do.
func TestScale(t *testing.T) {
	pods := *scale
	h := furnish(t)
	h.calm(20, "on an empty node")
	empty := len(ours())
	few := pods / 5
	h.fill(0, few)
	h.calm(empty, fmt.Sprintf("with %d pods", few))
	cheap := testing.AllocsPerRun(5, func() { h.relist(false) })
	h.fill(few, pods)
	h.calm(empty, fmt.Sprintf("with %d pods", pods))
	dear := testing.AllocsPerRun(5, func() { h.relist(false) })
	if dear > cheap*5*1.1 {
		t.Errorf("a relist of %d pods takes %.0f allocations, of %d pods %.0f: more than so many times as many", few, cheap, pods, dear)
	}

	// The Engine of maps lives in this process too: only what goes with the
	// daemon is the daemon's.
	h.enterAgain(pods)
	with := heap()
	goroutines := len(ours())
	h.leave()
	h.told = nil // it knows the view
	without := with
	for range 10 { // connections that are being closed hold on to what they have served
		time.Sleep(100 * time.Millisecond)
		without = min(without, heap())
	}
	each := (with - without) / int64(2*pods)
	t.Logf("%d pods: %d goroutines, as with none: %d; %d bytes for each Docker container; %.0f allocations a relist and row, client and all",
		pods, goroutines, empty, each, dear/float64(2*pods))
	if each > mostHeap {
		t.Errorf("%d bytes for each Docker container, want at most %d", each, mostHeap)
	}
	if goroutines > empty {
		t.Errorf("%d goroutines after a restart, want at most %d", goroutines, empty)
	}
	h.enter()
}

// enterAgain restarts the daemon and waits until it knows all pods.
func (h *house) enterAgain(pods int) {
	h.Helper()
	empty := len(ours())
	h.leave()
	h.enter()
	h.until("not all is known again", func() bool { return h.relist(true) == pods })
	h.calm(empty, "after a restart")
}

// Probes leave nothing running.
func TestProbesLeaveNothing(t *testing.T) {
	h := furnish(t)
	_, id, err := h.begin(h.pod("web"), command("c", "sleep", "1000000"))
	h.must(err)
	h.calm(20, "with one pod")
	before := len(ours())
	var g errgroup.Group
	g.SetLimit(10)
	for range 200 {
		g.Go(func() error {
			_, err := h.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 10})
			return err
		})
	}
	h.must(g.Wait())
	h.calm(before, "after 200 probes")
	for _, s := range h.engine.Execs() {
		if s.Running {
			t.Errorf("an exec session goes on: %+v", s)
		}
	}
	h.endAll()
}

// BenchmarkScale shows what a relist, and a look at the status of all, costs
// with more and more pods.
func BenchmarkScale(b *testing.B) {
	h := furnish(b)
	n := 0
	for _, pods := range []int{50, 100, 250, crowd} {
		h.fill(n, pods)
		n = pods
		for name, whole := range map[string]bool{"relist": false, "status": true} {
			b.Run(fmt.Sprintf("%s/%d", name, pods), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					h.relist(whole)
				}
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(pods), "µs/pod")
			})
		}
	}
}

// largePod makes a sandbox and a container of it in the Engine, without the daemon.
func (h *house) largePod(name string, ofPod, ofContainer map[string]string) {
	h.Helper()
	docker := h.engine.Client(h)
	create := func(name names.Name, set labels.Set) string {
		made, err := docker.ContainerCreate(h.Context(), &container.Config{Image: busybox, Cmd: []string{"sleep", "1000"}, Labels: set.Encode()},
			&container.HostConfig{Init: new(bool)}, nil, nil, name.String())
		h.must(err)
		return made.ID
	}
	id := create(names.Name{Container: names.Pod, Pod: name, Namespace: "default", UID: "u"}, labels.Set{
		Kind: labels.Sandbox, Config: fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"default","uid":"u"}}`, name), Annotations: ofPod,
	})
	create(names.Name{Container: "c", Pod: name, Namespace: "default", UID: "u"}, labels.Set{
		Kind: labels.Container, SandboxID: id, Config: `{"metadata":{"name":"c"}}`, Annotations: ofContainer,
	})
}

// Pods with more annotations than one message carries are listed.
func TestListsOfLargePods(t *testing.T) {
	h := furnish(t)
	const pods = 6
	large := strings.Repeat("x", answerLimit/5)
	pod, c := h.pod("p0"), command("c", "sleep", "1000")
	pod.Annotations = map[string]string{"large": large}
	c.Annotations = map[string]string{"large": large, "io.kubernetes.container.hash": "1"}
	id, _, err := h.begin(pod, c)
	h.must(err)
	// The others have been there before the daemon, which costs a tenth: Docker repeats
	// annotations, which are labels, in each event and each inspect.
	h.leave()
	for i := range pods - 1 {
		h.largePod(fmt.Sprintf("p%d", i+1), pod.Annotations, c.Annotations)
	}
	h.enter()
	ctx := t.Context()
	sandboxes, err := h.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	h.must(err)
	containers, err := h.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	h.must(err)
	if len(sandboxes.GetItems()) != pods || len(containers.GetContainers()) != pods {
		t.Errorf("%d pods and %d containers, want %d of each", len(sandboxes.GetItems()), len(containers.GetContainers()), pods)
	}
	for _, m := range []proto.Message{sandboxes, containers} {
		if size := proto.Size(m); size > answerLimit {
			t.Errorf("a list has %d bytes, want at most %d", size, answerLimit)
		}
	}
	for _, c := range containers.GetContainers() {
		if c.GetAnnotations()["io.kubernetes.container.hash"] != "1" {
			t.Errorf("annotations of %s lack its hash", c.GetId())
		}
	}
	_, err = h.runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	h.must(err)
	_, err = h.runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	h.must(err)
	one, err := h.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil || one.GetStatus().GetAnnotations()["large"] != large {
		t.Errorf("the status of one has not all its annotations: %v", err)
	}
}
