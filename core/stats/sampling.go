package stats

import (
	"context"
	"maps"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/core/panics"
	"berth/core/stats/cgroupstats"
)

const (
	// sampleInterval is how often CPU time is sampled in the background.
	sampleInterval = 10 * time.Second
	// minRateWindow is the shortest time over which a rate is computed.
	minRateWindow = time.Second
)

// A cpuRate is the rate of a counter of CPU time.
type cpuRate struct {
	at        time.Time
	count     uint64 // nanoseconds of CPU time at that time
	nanoCores uint64 // nanoseconds of CPU time per second
	known     bool   // whether nanoCores is valid
}

// podSumKey is the key in Service.rates for the sum of a pod without a cgroup of its own.
func podSumKey(sandboxID string) string { return sandboxID + "/sum" }

// updateRate records that key has used count nanoseconds of CPU time, and returns the rate
// in nanocores, nil if there is none yet.
func (s *Service) updateRate(key string, at time.Time, count uint64) *runtimeapi.UInt64Value {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.rates[key]
	switch elapsed := at.Sub(r.at); {
	case !ok, count < r.count: // the first sample, or the container was restarted
		r = cpuRate{at: at, count: count}
	case elapsed >= minRateWindow:
		r = cpuRate{at: at, count: count, nanoCores: uint64(float64(count-r.count) / elapsed.Seconds()), known: true}
	}
	s.rates[key] = r
	if !r.known {
		return nil
	}
	return uint64Value(r.nanoCores)
}

// RunSampling samples the CPU time of pods and containers until ctx ends, so that there are
// rates for the first request already. It is separate from Run: measuring disk usage would
// delay the samples.
func (s *Service) RunSampling(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		if list, containersOf, err := s.pods(ctx, &runtimeapi.PodSandboxFilter{State: readyFilter}); err == nil {
			s.sample(list, containersOf)
		}
		s.prune(ctx)
		timer.Reset(sampleInterval)
	}
}

// sample samples all containers in containersOf and the pods in list.
func (s *Service) sample(list []*cache.Sandbox, containersOf map[string][]*cache.Container) {
	sums := map[string]uint64{} // by sandbox ID
	for id, containers := range containersOf {
		for _, c := range containers {
			sums[id] += s.sampleCPU(c.ID(), c.Pid, false)
		}
	}
	for _, pod := range list {
		own := hasOwnCgroup(pod)
		sums[pod.ID()] += s.sampleCPU(pod.ID(), pod.Pid, own)
		if !own {
			s.updateRate(podSumKey(pod.ID()), time.Now(), sums[pod.ID()])
		}
	}
}

// sampleCPU records and returns the CPU time of the cgroup of the process pid, or with
// parent of the cgroup above it; 0 if it does not exist any more.
func (s *Service) sampleCPU(id string, pid int, parent bool) (used uint64) {
	_ = panics.Try(s.log, func() error { // Try logs a panic; the other samples are taken
		g, err := s.group(id, pid)
		if err != nil {
			return err
		}
		if parent {
			g = g.Parent()
		}
		at := time.Now()
		if used, err = cgroupstats.CPUTime(g); err == nil {
			s.updateRate(id, at, used)
		}
		return err
	})
	return used
}

// prune drops what is kept for containers, sandboxes and processes that do not exist any
// more.
func (s *Service) prune(ctx context.Context) {
	containers, err := s.cache.Containers(ctx, nil)
	if err != nil {
		return
	}
	pods, err := s.cache.Sandboxes(ctx, nil)
	if err != nil {
		return
	}
	ids, procs := map[string]bool{}, map[procKey]bool{}
	for _, c := range containers {
		ids[c.ID()], procs[procKey{c.ID(), c.Pid}] = true, true
	}
	for _, p := range pods {
		ids[p.ID()], ids[podSumKey(p.ID())], procs[procKey{p.ID(), p.Pid}] = true, true, true
	}
	s.fds.Prune(func(id string) bool { return ids[id] })
	s.readings.prune(procs)
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.rates, func(id string, _ cpuRate) bool { return !ids[id] })
	maps.DeleteFunc(s.groups, func(key procKey, _ cgroup.Group) bool { return !procs[key] })
}
