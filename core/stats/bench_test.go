package stats

import (
	"os"
	"testing"

	"berth/core/cgroup"
)

// BenchmarkReading reads what the kubelet is told of one running container, of
// this process's own cgroup.
func BenchmarkReading(b *testing.B) {
	g, err := cgroup.OfProcess(os.Getpid())
	if err != nil {
		b.Skip(err)
	}
	s := New(nil, nil, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.cpu(g, "id"); err != nil {
			b.Skip(err)
		}
		if _, _, err := memory(g); err != nil {
			b.Skip(err)
		}
		if _, err := io(g); err != nil {
			b.Fatal(err)
		}
	}
}
