package server_test

import (
	"bytes"
	"flag"
	"fmt"
	"math"
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
	"berth/core/testmain"
)

const (
	// crowd is how many pods of one container a large node may have.
	crowd = 500
	// mostHeap is what one Docker container may cost, in bytes.
	mostHeap = 20 << 10
)

var scale = flag.Int("scale", testmain.Times(100), "how many `pods` TestCostOfAListGrowsNoFasterThanItsPods has")

// crowded is a container with as much to it as those that a kubelet orders.
func (h *testDaemon) crowded() *runtimeapi.ContainerConfig {
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

// runPods sets up pods of one container from number begin to end.
func (h *testDaemon) runPods(begin, end int) {
	h.Helper()
	var g errgroup.Group
	g.SetLimit(8)
	for i := begin; i < end; i++ {
		g.Go(func() error {
			_, _, err := h.runPod(h.pod(fmt.Sprintf("p%d", i)), h.crowded())
			return err
		})
	}
	h.must(g.Wait())
}

// maxIdleGoroutines bounds the goroutines of a daemon without pods: one per background loop and a few for
// connections.
const maxIdleGoroutines = 39

// relist makes the calls that a kubelet makes every second, and those for the status of
// every pod and container if whole is set. It returns the number of containers.
func (h *testDaemon) relist(whole bool) int {
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

// ownGoroutines returns the stacks of the daemon's goroutines: all that are in core or were
// started by it, except those of the fake Engine and of the test.
func ownGoroutines() (stacks []string) {
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

// waitGoroutines waits until the daemon has at most that many goroutines.
func (h *testDaemon) waitGoroutines(most int, when string) {
	h.Helper()
	for range 500 {
		if len(ownGoroutines()) <= most {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	all := ownGoroutines()
	h.Errorf("%d goroutines %s, want at most the %d of an empty node, among them\n%s", len(all), when, most, all[len(all)-1])
}

// heap returns the number of bytes of live objects.
func heap() int64 {
	for range 3 { // objects with a finalizer are freed by the second
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// On a node with many pods the daemon has no goroutine per pod and little memory, and the
// cost of a relist is linear in the number of pods.
func TestCostOfAListGrowsNoFasterThanItsPods(t *testing.T) {
	pods := *scale
	h := newDaemon(t)
	h.waitGoroutines(maxIdleGoroutines, "on an empty node")
	empty := len(ownGoroutines())
	few := pods / 5
	h.runPods(0, few)
	h.waitGoroutines(empty, fmt.Sprintf("with %d pods", few))
	cheap := h.relistAllocs()
	h.runPods(few, pods)
	h.waitGoroutines(empty, fmt.Sprintf("with %d pods", pods))
	dear := h.relistAllocs()
	if dear > cheap*5*1.1 {
		t.Errorf("a relist of %d pods takes %.0f allocations, of %d pods %.0f: more than so many times as many", few, cheap, pods, dear)
	}

	// The fake Engine is in this process too: the daemon's memory is the difference
	// between before and after its end.
	h.restart(pods)
	with := heap()
	goroutines := len(ownGoroutines())
	h.stop()
	h.registry = nil // it references the cache
	without := with
	for range 10 { // connections that are closing still reference their requests
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
	h.start()
}

// relistAllocs returns how many objects a relist allocates, with the client. What runs in the background counts too, so it is the
// least of several measurements.
func (h *testDaemon) relistAllocs() float64 {
	least := math.Inf(1)
	for range 3 {
		least = min(least, testing.AllocsPerRun(5, func() { h.relist(false) }))
	}
	return least
}

// restart restarts the daemon and waits until it knows all pods.
func (h *testDaemon) restart(pods int) {
	h.Helper()
	empty := len(ownGoroutines())
	h.stop()
	h.start()
	h.until("not all pods are listed", func() bool { return h.relist(true) == pods })
	h.waitGoroutines(empty, "after a restart")
}

// Probes leave no goroutine and no exec behind.
func TestProbesLeaveNothingBehind(t *testing.T) {
	h := newDaemon(t)
	_, id, err := h.runPod(h.pod("web"), command("c", "sleep", "1000000"))
	h.must(err)
	h.waitGoroutines(maxIdleGoroutines, "with one pod")
	before := len(ownGoroutines())
	var g errgroup.Group
	g.SetLimit(10)
	for range 200 {
		g.Go(func() error {
			_, err := h.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 10})
			return err
		})
	}
	h.must(g.Wait())
	h.waitGoroutines(before, "after 200 probes")
	for _, s := range h.engine.Execs() {
		if s.Running {
			t.Errorf("an exec is still running: %+v", s)
		}
	}
	h.removeAllPods()
}

// BenchmarkScale measures a relist, and the status of every object, with a growing number
// of pods.
func BenchmarkScale(b *testing.B) {
	h := newDaemon(b)
	n := 0
	for _, pods := range []int{50, 100, 250, crowd} {
		h.runPods(n, pods)
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
func (h *testDaemon) largePod(name string, ofPod, ofContainer map[string]string) {
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
	h := newDaemon(t)
	const pods = 6
	large := strings.Repeat("x", responseLimit/5)
	pod, c := h.pod("p0"), command("c", "sleep", "1000")
	pod.Annotations = map[string]string{"large": large}
	c.Annotations = map[string]string{"large": large, "io.kubernetes.container.hash": "1"}
	id, _, err := h.runPod(pod, c)
	h.must(err)
	// The others have been there before the daemon, which costs a tenth: Docker repeats
	// annotations, which are labels, in each event and each inspect.
	h.stop()
	for i := range pods - 1 {
		h.largePod(fmt.Sprintf("p%d", i+1), pod.Annotations, c.Annotations)
	}
	h.start()
	ctx := t.Context()
	sandboxes, err := h.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	h.must(err)
	containers, err := h.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	h.must(err)
	if len(sandboxes.GetItems()) != pods || len(containers.GetContainers()) != pods {
		t.Errorf("%d pods and %d containers, want %d of each", len(sandboxes.GetItems()), len(containers.GetContainers()), pods)
	}
	for _, m := range []proto.Message{sandboxes, containers} {
		if size := proto.Size(m); size > responseLimit {
			t.Errorf("a list has %d bytes, want at most %d", size, responseLimit)
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
