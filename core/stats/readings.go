package stats

import (
	"slices"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/core/stats/cgroupstats"
	"berth/core/stats/diskusage"
)

// readingTTL is how long a reading of a cgroup is used for further lists: the kubelet, its scraper and that of the
// exporter list the same containers, and one pass over their files is enough for those that come within the same
// second. The timestamps of statistics are those of the reading. A request for one container or pod always reads.
const readingTTL = time.Second

// A cgroupKey identifies a cgroup of which a reading is kept: that of a process, or its parent.
type cgroupKey struct {
	procKey
	parent bool
}

// A keptReading is the last reading of a cgroup, with the answers that were made of it. Its fields are replaced,
// never changed.
type keptReading struct {
	group     cgroup.Group // the parent of that of the process, if the key says so
	reading   *cgroupstats.Reading
	container *containerAnswer // nil before the first
	pod       *podAnswer       // nil before the first
}

// A containerAnswer are the statistics of a container, and what they were made of besides the reading.
type containerAnswer struct {
	container *cache.Container
	layer     *diskusage.Usage
	stats     *runtimeapi.ContainerStats
}

// A podAnswer are the statistics of a pod, and what they were made of besides the reading.
type podAnswer struct {
	pod   *cache.Sandbox
	stats *runtimeapi.PodSandboxStats
}

// readings keeps the last reading of each cgroup. The zero value has none.
type readings struct {
	mu   sync.Mutex // guards kept
	kept map[cgroupKey]keptReading
}

func (r *readings) get(key cgroupKey) keptReading {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept[key]
}

// update changes what is kept of the cgroup with the key.
func (r *readings) update(key cgroupKey, change func(*keptReading)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept == nil {
		r.kept = map[cgroupKey]keptReading{}
	}
	k := r.kept[key]
	change(&k)
	r.kept[key] = k
}

// prune drops the readings of processes that are not in keep.
func (r *readings) prune(keep map[procKey]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.kept {
		if !keep[key.procKey] {
			delete(r.kept, key)
		}
	}
}

// read returns a reading of a cgroup, which is no older than maxAge and has at least the given detail, and what
// was made of it. own is the cgroup of the process.
func (s *Service) read(key cgroupKey, own cgroup.Group, detail cgroupstats.Detail, maxAge time.Duration) (keptReading, error) {
	kept := s.readings.get(key)
	if kept.reading == nil { // so that a path is made once
		if kept.group = own; key.parent {
			kept.group = own.Parent()
		}
	}
	var read *cgroupstats.Reading
	var err error
	if kept.reading != nil && time.Since(kept.reading.At) < maxAge {
		read, err = kept.reading.Complete(kept.group, detail)
	} else {
		read, err = cgroupstats.Read(kept.group, detail)
	}
	if err != nil {
		return keptReading{}, err
	}
	if read == kept.reading {
		return kept, nil
	}
	kept = keptReading{group: kept.group, reading: read}
	s.readings.update(key, func(k *keptReading) { *k = kept })
	return kept, nil
}

// keepContainer keeps the statistics of a container for calls that use the same reading.
func (s *Service) keepContainer(key cgroupKey, reading *cgroupstats.Reading, answer *containerAnswer) {
	s.readings.update(key, func(k *keptReading) {
		if k.reading == reading {
			k.container = answer
		}
	})
}

// keepPod keeps the statistics of a pod for calls that use the same reading.
func (s *Service) keepPod(key cgroupKey, reading *cgroupstats.Reading, answer *podAnswer) {
	s.readings.update(key, func(k *keptReading) {
		if k.reading == reading {
			k.pod = answer
		}
	})
}

// of returns the kept statistics of a pod, nil if they were made of another pod or of other statistics of its
// containers.
func (a *podAnswer) of(pod *cache.Sandbox, containers []*runtimeapi.ContainerStats) *runtimeapi.PodSandboxStats {
	if a == nil || a.pod != pod || !slices.Equal(a.stats.GetLinux().GetContainers(), containers) {
		return nil
	}
	return a.stats
}
