package stats

import (
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
