// Package stats is the room of what pods and containers use.
//
// It reads cgroup files and the counters of interfaces when it is asked, which
// is quick, and asks the Engine nothing. Only what is slow, how much a
// container has written to its root file system, is measured in the
// background. It is called by the front desk and knows who runs from the view.
package stats

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/core/engine"

	"berth/core/panics"
)

// A Service answers what is used. Run measures what is slow, and KeepRates looks at
// what rates are taken of.
type Service struct {
	docker *engine.Engine
	view   *cache.Cache
	log    *slog.Logger

	// walking is held, by an element in it, by a process that goes on with a measuring or drops one.
	walking chan struct{}

	mu        sync.Mutex // guards following
	groups    map[first]cgroup.Group
	rates     map[string]rate       // by container or sandbox ID
	written   map[string]*written   // by container ID
	measuring map[string]*measuring // by container ID
	layerDirs map[string]string     // by container ID, of those that the node's mount table tells
	sizes     map[first]*size
	opens     map[string]*open // by container ID
}

// first names the first process of a container or sandbox: the kernel gives
// numbers again.
type first struct {
	id  string
	pid int
}

// New returns a Service that has measured nothing yet.
func New(docker *engine.Engine, seen *cache.Cache, log *slog.Logger) *Service {
	return &Service{
		docker: docker, view: seen, log: log,
		groups: map[first]cgroup.Group{}, rates: map[string]rate{}, written: map[string]*written{}, measuring: map[string]*measuring{},
		layerDirs: map[string]string{}, sizes: map[first]*size{}, opens: map[string]*open{}, walking: make(chan struct{}, 1),
	}
}

// Container returns what the container id uses; of kind NotFound if there is
// none. One that does not run uses its writable layer only.
func (s *Service) Container(ctx context.Context, id string) (*runtimeapi.ContainerStats, error) {
	c, err := s.view.Container(ctx, id)
	if err != nil {
		return nil, err
	}
	used, err := s.container(c)
	if gone(err) {
		return s.atRest(c), nil
	}
	return used, err
}

// Containers returns what the running containers that match filter use; a nil
// filter matches all. Those that end meanwhile are left out.
func (s *Service) Containers(ctx context.Context, filter *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	list, err := s.view.Containers(ctx, &runtimeapi.ContainerFilter{
		Id: filter.GetId(), PodSandboxId: filter.GetPodSandboxId(), LabelSelector: filter.GetLabelSelector(),
		State: running,
	})
	if err != nil {
		return nil, err
	}
	return s.each(list), nil
}

// each returns what containers use, without those that have ended.
func (s *Service) each(list []*cache.Container) []*runtimeapi.ContainerStats {
	return among(s.log, list, func(c *cache.Container) *runtimeapi.ContainerStats {
		used, err := s.container(c)
		if err != nil && !gone(err) {
			s.log.Warn("what a container uses cannot be read, left out", slog.String("container", c.ID()), slog.Any("err", err))
		}
		if err != nil {
			return nil
		}
		return used
	})
}

// pods returns the pods that match filter, and the containers that run by sandbox.
func (s *Service) pods(ctx context.Context, filter *runtimeapi.PodSandboxFilter) (_ []*cache.Sandbox, inside map[string][]*cache.Container, _ error) {
	list, err := s.view.Sandboxes(ctx, filter)
	if err != nil {
		return nil, nil, err
	}
	all, err := s.view.Containers(ctx, &runtimeapi.ContainerFilter{State: running})
	if err != nil {
		return nil, nil, err
	}
	inside = map[string][]*cache.Container{}
	for _, c := range all {
		inside[c.Row.GetPodSandboxId()] = append(inside[c.Row.GetPodSandboxId()], c)
	}
	return list, inside, nil
}

var (
	ready   = &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	running = &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
)

// readers bounds how many pods or containers are read at a time: the node's
// processors are for the pods.
const readers = 2

// among returns what read returns for each of list, in their order and without
// nils. One for which it panics is left out.
func among[T, R any](log *slog.Logger, list []T, read func(T) *R) []*R {
	all := make([]*R, len(list))
	g := panics.NewGroup(log)
	g.SetLimit(readers)
	for i, one := range list {
		g.Go(func() error {
			all[i] = read(one)
			return nil
		})
	}
	_ = g.Wait() // the panics are in the log
	return slices.DeleteFunc(all, func(one *R) bool { return one == nil })
}

// Sandbox returns what the pod of the sandbox id uses; of kind NotFound if
// there is none.
func (s *Service) Sandbox(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	pod, err := s.view.Sandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	inside, err := s.view.Containers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: pod.ID(), State: running})
	if err != nil {
		return nil, err
	}
	used, err := s.sandbox(pod, inside)
	if gone(err) {
		return &runtimeapi.PodSandboxStats{Attributes: podAttributes(pod), Linux: &runtimeapi.LinuxPodSandboxStats{}}, nil
	}
	return used, err
}

// Sandboxes returns what the pods that run and match filter use; a nil filter
// matches all. Those that end meanwhile are left out.
func (s *Service) Sandboxes(ctx context.Context, filter *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	list, inside, err := s.pods(ctx, &runtimeapi.PodSandboxFilter{Id: filter.GetId(), LabelSelector: filter.GetLabelSelector(), State: ready})
	if err != nil {
		return nil, err
	}
	return among(s.log, list, func(pod *cache.Sandbox) *runtimeapi.PodSandboxStats {
		used, err := s.sandbox(pod, inside[pod.ID()])
		if err != nil && !gone(err) {
			s.log.Warn("what a pod uses cannot be read, left out", slog.String("sandbox", pod.ID()), slog.Any("err", err))
		}
		if err != nil {
			return nil
		}
		return used
	}), nil
}

// gone reports whether err says that a process or its cgroup is no more.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENODEV)
}

// group returns the cgroup of the process pid, the first of the container or
// sandbox id.
func (s *Service) group(id string, pid int) (cgroup.Group, error) {
	key := first{id, pid}
	if pid == 0 {
		return cgroup.Group{}, fs.ErrNotExist
	}
	s.mu.Lock()
	g, ok := s.groups[key]
	s.mu.Unlock()
	if ok {
		return g, nil
	}
	g, err := cgroup.Of(pid, id)
	if err != nil {
		return g, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups[key] = g
	return g, nil
}

// A rate is how fast a counter of CPU time grows.
type rate struct {
	at    time.Time
	count uint64 // nanoseconds, at that time
	speed uint64 // nanoseconds a second
	known bool
}

// rateWindow is the shortest time that a rate is taken over.
const rateWindow = time.Second

// speed takes note of count, the CPU time that id has used, and returns how
// fast it grows, nil if that is not known yet.
func (s *Service) speed(id string, at time.Time, count uint64) *runtimeapi.UInt64Value {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.rates[id]
	switch elapsed := at.Sub(r.at); {
	case !ok, count < r.count: // the first look, or the container was started again
		r = rate{at: at, count: count}
	case elapsed >= rateWindow:
		r = rate{at: at, count: count, speed: uint64(float64(count-r.count) / elapsed.Seconds()), known: true}
	}
	s.rates[id] = r
	if !r.known {
		return nil
	}
	return &runtimeapi.UInt64Value{Value: r.speed}
}
