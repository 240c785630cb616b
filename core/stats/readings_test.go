package stats

import (
	"math"
	"testing"
	"time"

	"berth/core/stats/diskusage"
)

// ago has all readings be older, without the answers that were made of them: those stay as they are.
func (r *readings) ago(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, k := range r.kept {
		k.reading.At = k.reading.At.Add(-d)
		r.kept[key] = k
	}
}

func TestListsWithinASecondShareOneReading(t *testing.T) {
	s := newServiceInCgroups(t, 2)
	containers, err := s.Containers(t.Context(), nil)
	must(t, err)
	if len(containers) != 2 {
		t.Fatalf("%d containers, want 2", len(containers))
	}
	again, err := s.Containers(t.Context(), nil)
	must(t, err)
	metrics, err := s.scrapeAll(t.Context())
	must(t, err)
	if len(again) != 2 || again[0] != containers[0] || again[1] != containers[1] {
		t.Errorf("%v, want the statistics of the list before: %v", again, containers)
	}
	at := containers[0].GetCpu().GetTimestamp()
	after, err := s.Containers(t.Context(), nil)
	must(t, err)
	pods, err := s.Sandboxes(t.Context(), nil)
	must(t, err)
	for _, p := range pods {
		if got := p.GetLinux().GetContainers(); len(pods) != 2 || len(got) != 1 || got[0].GetCpu().GetTimestamp() != at && got[0].GetCpu().GetTimestamp() != containers[1].GetCpu().GetTimestamp() {
			t.Errorf("a list of pods has not the reading of the list of containers: %v", got)
		}
	}
	if got := after[0].GetCpu().GetTimestamp(); len(metrics) != 2 || got != at {
		t.Errorf("a scrape of %d pods has read at %d what was read at %d", len(metrics), got, at)
	}
	// Of a request for one container the caller expects what is now.
	one, err := s.Container(t.Context(), containers[0].GetAttributes().GetId())
	must(t, err)
	if got := one.GetCpu().GetTimestamp(); got <= at {
		t.Errorf("a request for one container has the reading of a list: %d", got)
	}
	s.readings.ago(readingTTL)
	after, err = s.Containers(t.Context(), nil)
	must(t, err)
	for i := range after {
		if got := after[i].GetCpu().GetTimestamp(); got <= at {
			t.Errorf("a list more than a second later has the reading of the one before: %d", got)
		}
	}
}

// What an answer is made of besides the reading is always that of now.
func TestKeptStatisticsAreOfTheSameContainer(t *testing.T) {
	s := newServiceInCgroups(t, 1)
	list, containersOf, err := s.pods(t.Context(), nil)
	must(t, err)
	pod, c := list[0], containersOf[list[0].ID()][0]
	first, err := s.containerStats(c, math.MaxInt64)
	must(t, err)
	if same, err := s.containerStats(c, math.MaxInt64); err != nil || same != first {
		t.Errorf("%v, %v; want the kept statistics", same, err)
	}
	changed := *c
	if other, err := s.containerStats(&changed, math.MaxInt64); err != nil || other == first {
		t.Errorf("a container that was inspected again has the kept statistics: %v", err)
	}
	key := cgroupKey{procKey: procKey{c.ID(), c.Pid}}
	s.readings.update(key, func(k *keptReading) {
		kept := *k.container
		kept.container, kept.layer = c, &diskusage.Usage{Bytes: 1}
		k.container = &kept
	})
	if other, err := s.containerStats(c, math.MaxInt64); err != nil || other.GetWritableLayer() != nil {
		t.Errorf("the disk usage is not the last one: %v, %v", other, err)
	}

	whole, err := s.podStats(pod, containersOf[pod.ID()], math.MaxInt64)
	must(t, err)
	if same, err := s.podStats(pod, containersOf[pod.ID()], math.MaxInt64); err != nil || same != whole {
		t.Errorf("%v, %v; want the kept statistics", same, err)
	}
	if alone, err := s.podStats(pod, nil, math.MaxInt64); err != nil || len(alone.GetLinux().GetContainers()) != 0 {
		t.Errorf("a container that has ended is in the statistics of its pod: %v, %v", alone, err)
	}
	renamed := *pod
	if other, err := s.podStats(&renamed, containersOf[pod.ID()], math.MaxInt64); err != nil || other == whole {
		t.Errorf("a pod that was inspected again has the kept statistics: %v", err)
	}
	s.readings.prune(map[procKey]bool{})
	if n := len(s.readings.kept); n != 0 {
		t.Errorf("%d readings are kept of processes that do not exist", n)
	}
}
