package stats

import (
	"context"
	"fmt"
	"os"
	"testing"

	"berth/core/cgroup"
	"berth/core/stats/cgroupstats"
)

// BenchmarkContainerStats reads and encodes the statistics of one running container, of
// this process's own cgroup.
func BenchmarkContainerStats(b *testing.B) {
	g, err := cgroup.ForPID(os.Getpid())
	if err != nil {
		b.Skip(err)
	}
	s := New(nil, nil, nil)
	b.ReportAllocs()
	for b.Loop() {
		r, err := cgroupstats.Read(g, cgroupstats.Usage)
		if err != nil {
			b.Skip(err)
		}
		s.cpuUsage(r, "id")
		memoryUsage(r)
		swapUsage(r)
		ioUsage(r)
	}
}

// BenchmarkList makes the calls for the statistics of 50 pods with a container each, within a second of the last
// reading and after it.
func BenchmarkList(b *testing.B) {
	s := newServiceInCgroups(b, 50)
	for _, call := range []struct {
		name string
		list func(context.Context) (int, error)
	}{
		{"containers", func(ctx context.Context) (int, error) { list, err := s.Containers(ctx, nil); return len(list), err }},
		{"pods", func(ctx context.Context) (int, error) { list, err := s.Sandboxes(ctx, nil); return len(list), err }},
		{"metrics", func(ctx context.Context) (int, error) { list, err := s.Metrics(ctx); return len(list), err }},
	} {
		for _, read := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/read=%v", call.name, read), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if read {
						s.readings.expire()
					}
					if n, err := call.list(b.Context()); err != nil || n != 50 {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}

// expire has all readings be too old.
func (r *readings) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, k := range r.kept {
		old := *k.reading
		old.At = old.At.Add(-readingTTL)
		k.reading = &old
		r.kept[key] = k
	}
}
