package stats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/core/engine/enginetest"
	"berth/core/labels"
	containernames "berth/core/names"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// fakeNetwork says of each pod that it is attached, and stands for the logs too.
type fakeNetwork struct{}

func (fakeNetwork) Addresses(string) ([]netip.Addr, bool, error) { return nil, true, nil }
func (fakeNetwork) InNetNS(string, int) bool                     { return true }
func (fakeNetwork) Observe(context.Context, *cache.Container)    {}
func (fakeNetwork) Discard(string)                               {}

// countMetrics returns how many metrics of a family the containers of each pod have.
func countMetrics(all []*podMetrics, name string) (counts []int) {
	for _, p := range all {
		n := 0
		for _, c := range p.containers {
			for _, m := range c.metrics {
				if m.family.name == name {
					n++
				}
			}
		}
		counts = append(counts, n)
	}
	return counts
}

// newService returns a Service on a node with pods that run, each with a container.
func newService(t testing.TB, pods int) *Service {
	t.Helper()
	s := newServiceOf(t, pods, "", nil)
	own, err := cgroup.ForPID(os.Getpid())
	must(t, err)
	list, containersOf, err := s.pods(t.Context(), nil)
	must(t, err)
	for _, p := range list {
		s.groups[procKey{p.ID(), p.Pid}] = own // this process stands for all
		for _, c := range containersOf[p.ID()] {
			s.groups[procKey{c.ID(), c.Pid}] = own
		}
	}
	return s
}

// newServiceOf is newService without the cgroups; parent is the cgroup parent of the pods, and pid is for Engine.PID.
func newServiceOf(t testing.TB, pods int, parent string, pid func(string) int) *Service {
	t.Helper()
	e := enginetest.New(t)
	if pid != nil {
		e.PID = pid
	}
	e.AddImage(enginetest.Image{}, "server")
	docker := e.Connect(t)
	c := cache.New(cache.Config{Network: fakeNetwork{}, Logs: fakeNetwork{}}, docker, slog.New(slog.DiscardHandler))
	enginetest.Background(t, c.Run)
	client := e.Client(t)
	run := func(name containernames.Name, set labels.Set) string {
		created, err := client.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"serve"}, Labels: set.Encode(), NetworkDisabled: true},
			&container.HostConfig{NetworkMode: "none", Resources: container.Resources{CgroupParent: parent}}, nil, nil, name.String())
		must(t, err)
		must(t, client.ContainerStart(t.Context(), created.ID, container.StartOptions{}))
		return created.ID
	}
	for i := range pods {
		name := fmt.Sprint("pod", i)
		pod := run(containernames.Name{Container: containernames.Pod, Pod: name, Namespace: "ns", UID: name}, labels.Set{
			Kind: labels.Sandbox, Config: fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"ns","uid":%q}}`, name, name),
		})
		run(containernames.Name{Container: "c", Pod: name, Namespace: "ns", UID: name}, labels.Set{Kind: labels.Container, SandboxID: pod, Config: `{"metadata":{"name":"c"}}`})
	}
	s := New(docker, c, slog.New(slog.DiscardHandler))
	enginetest.Until(t, "not all pods run", func() bool {
		list, containersOf, err := s.pods(t.Context(), nil)
		ready := 0
		for _, p := range list {
			if p.Running && len(containersOf[p.ID()]) == 1 {
				ready++
			}
		}
		return err == nil && ready == pods
	})
	return s
}

// newServiceInCgroups is newService with a cgroup for each pod and container, which has a process so that nothing else
// on the machine removes it.
func newServiceInCgroups(t testing.TB, pods int) *Service {
	t.Helper()
	s := newServiceOf(t, pods, "/pods", func(string) int { return os.Getpid() })
	controllers := []string{"cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"}
	parent := fmt.Sprintf("berth-stats-%d", os.Getpid())
	create := func(path string) cgroup.Group {
		g, err := cgroup.Create(parent+path, controllers)
		if err != nil {
			t.Skipf("needs root, for cgroups of its own: %v", err)
		}
		t.Cleanup(func() { _ = g.Remove() })
		return g
	}
	occupied := func(path string) cgroup.Group {
		g, sleeper := create(path), exec.Command("sleep", "1000")
		must(t, sleeper.Start())
		t.Cleanup(func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() })
		for _, dir := range append(slices.Collect(maps.Values(g.V1)), g.V2) {
			if dir != "" {
				must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), strconv.AppendInt(nil, int64(sleeper.Process.Pid), 10), 0))
			}
		}
		return g
	}
	create("")
	list, containersOf, err := s.pods(t.Context(), nil)
	must(t, err)
	for i, p := range list {
		pod := fmt.Sprintf("/pod%d", i)
		create(pod)
		s.groups[procKey{p.ID(), p.Pid}] = occupied(pod + "/pause")
		for _, c := range containersOf[p.ID()] {
			s.groups[procKey{c.ID(), c.Pid}] = occupied(pod + "/c")
		}
	}
	return s
}

// Without time left to count open files, all other metrics are there.
func TestCountingOpenFilesBlanksNoOtherMetrics(t *testing.T) {
	s := newService(t, 3)
	s.fdBudget = -time.Second // used up
	all, err := s.scrapeAll(t.Context())
	must(t, err)
	if memory := countMetrics(all, "container_memory_usage_bytes"); fmt.Sprint(memory) != "[1 1 1]" {
		if len(all) == 3 {
			t.Skip("this machine does not count what cgroups use")
		}
		t.Errorf("%d pods, metrics of memory %v", len(all), memory)
	}
	if files := countMetrics(all, "container_file_descriptors"); fmt.Sprint(files) != "[0 0 0]" {
		t.Errorf("open files %v, though there was no time to count any", files)
	}
	s.fdBudget = time.Minute
	all, err = s.scrapeAll(t.Context())
	must(t, err)
	if files := countMetrics(all, "container_file_descriptors"); fmt.Sprint(files) != "[1 1 1]" {
		t.Errorf("open files %v", files)
	}
	// So is disk usage, which is measured for the first time here.
	if usage := countMetrics(all, "container_fs_usage_bytes"); fmt.Sprint(usage) != "[1 1 1]" {
		t.Errorf("disk usage %v", usage)
	}
}

// expiringContext is a context that exceeds its deadline after a number of calls of Err.
type expiringContext struct {
	context.Context
	left *atomic.Int64
}

func (c expiringContext) Err() error {
	if c.left.Add(-1) < 0 {
		return context.DeadlineExceeded
	}
	return nil
}

func TestScrapePastDeadlineReturnsThePodsThatWereRead(t *testing.T) {
	s := newService(t, 5)
	for _, calls := range []int64{0, 6} {
		ctx := expiringContext{t.Context(), new(atomic.Int64)}
		ctx.left.Store(calls)
		all, err := s.scrapeAll(ctx)
		if err != nil || len(all) >= 5 {
			t.Errorf("%d pods, %v", len(all), err)
		}
	}
}

// A panic must end neither the call nor the daemon.
func TestParallelMapLeavesOutElementThatPanics(t *testing.T) {
	got := parallelMap(slog.New(slog.DiscardHandler), []int{1, 2, 3}, func(n int) *int {
		if n == 2 {
			panic("boom")
		}
		return &n
	})
	if len(got) != 2 || *got[0] != 1 || *got[1] != 3 {
		t.Errorf("got %v", got)
	}
}
