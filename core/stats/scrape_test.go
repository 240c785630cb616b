package stats

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
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

type attached struct{}

func (attached) Addresses(string) ([]netip.Addr, bool)  { return nil, true }
func (attached) InNetNS(string, int) bool               { return true }
func (attached) Keep(context.Context, *cache.Container) {}
func (attached) Drop(string)                            {}

// counted returns how many samples of a family each pod's containers have.
func counted(all []*samples, name string) (with []int) {
	for _, p := range all {
		n := 0
		for _, c := range p.containers {
			for _, m := range c.own {
				if m.family.name == name {
					n++
				}
			}
		}
		with = append(with, n)
	}
	return with
}

// scraped is a Service on a node with pods that run, each with a container.
func scraped(t *testing.T, pods int) *Service {
	t.Helper()
	e := enginetest.New(t)
	e.AddImage(enginetest.Image{}, "server")
	docker := e.Connect(t)
	seen := cache.New(cache.Config{Network: attached{}, Logs: attached{}}, docker, slog.New(slog.DiscardHandler))
	enginetest.Background(t, seen.Run)
	client := e.Client(t)
	run := func(name containernames.Name, said labels.Set) string {
		made, err := client.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"serve"}, Labels: said.Encode(), NetworkDisabled: true},
			&container.HostConfig{NetworkMode: "none"}, nil, nil, name.String())
		must(t, err)
		must(t, client.ContainerStart(t.Context(), made.ID, container.StartOptions{}))
		return made.ID
	}
	for i := range pods {
		name := fmt.Sprint("pod", i)
		pod := run(containernames.Name{Container: containernames.Pod, Pod: name, Namespace: "ns", UID: name}, labels.Set{
			Kind: labels.Sandbox, Config: fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"ns","uid":%q}}`, name, name),
		})
		run(containernames.Name{Container: "c", Pod: name, Namespace: "ns", UID: name}, labels.Set{Kind: labels.Container, SandboxID: pod, Config: `{"metadata":{"name":"c"}}`})
	}
	s := New(docker, seen, slog.New(slog.DiscardHandler))
	enginetest.Until(t, "not all run", func() bool {
		list, inside, err := s.pods(t.Context(), nil)
		ready := 0
		for _, p := range list {
			if p.Running && len(inside[p.ID()]) == 1 {
				ready++
			}
		}
		return err == nil && ready == pods
	})
	own, err := cgroup.OfProcess(os.Getpid())
	must(t, err)
	list, inside, err := s.pods(t.Context(), nil)
	must(t, err)
	for _, p := range list {
		s.groups[first{p.ID(), p.Pid}] = own // this process stands for all
		for _, c := range inside[p.ID()] {
			s.groups[first{c.ID(), c.Pid}] = own
		}
	}
	return s
}

// Counting open files takes from no pod its other metrics.
func TestOpenFilesBlankNoOtherMetrics(t *testing.T) {
	defer func(was time.Duration) { openedBudget = was }(openedBudget)
	openedBudget = -time.Second // it is used up
	s := scraped(t, 3)
	all, err := s.sample(t.Context())
	must(t, err)
	if memory := counted(all, "container_memory_usage_bytes"); fmt.Sprint(memory) != "[1 1 1]" {
		if len(all) == 3 {
			t.Skip("this machine does not tell what processes use")
		}
		t.Errorf("%d pods, samples of memory %v", len(all), memory)
	}
	if files := counted(all, "container_file_descriptors"); fmt.Sprint(files) != "[0 0 0]" {
		t.Errorf("open files %v, though there was no time to count any", files)
	}
	openedBudget = time.Minute
	all, err = s.sample(t.Context())
	must(t, err)
	if files := counted(all, "container_file_descriptors"); fmt.Sprint(files) != "[1 1 1]" {
		t.Errorf("open files %v", files)
	}
	// Neither is what has been written, which is measured for the first time here.
	if written := counted(all, "container_fs_usage_bytes"); fmt.Sprint(written) != "[1 1 1]" {
		t.Errorf("written %v", written)
	}
}

// ranOut is a context whose time is over once it has been looked at a few times.
type ranOut struct {
	context.Context
	left *atomic.Int64
}

func (r ranOut) Err() error {
	if r.left.Add(-1) < 0 {
		return context.DeadlineExceeded
	}
	return nil
}

// Who collects samples is told of the pods that could be read in time.
func TestScrapeThatRanOutOfTimeTellsWhatItHas(t *testing.T) {
	s := scraped(t, 5)
	for _, looks := range []int64{0, 6} {
		ctx := ranOut{t.Context(), new(atomic.Int64)}
		ctx.left.Store(looks)
		all, err := s.sample(ctx)
		if err != nil || len(all) >= 5 {
			t.Errorf("%d pods, %v", len(all), err)
		}
	}
}

// A panic while one is read leaves out that one, and ends neither the call nor the daemon.
func TestPanicWhileReadingLeavesOutThatOne(t *testing.T) {
	got := among(slog.New(slog.DiscardHandler), []int{1, 2, 3}, func(n int) *int {
		if n == 2 {
			panic("boom")
		}
		return &n
	})
	if len(got) != 2 || *got[0] != 1 || *got[1] != 3 {
		t.Errorf("got %v", got)
	}
}
