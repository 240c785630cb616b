package live

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"berth/network"
)

// BenchmarkRunPodSandbox measures setting up a pod, beside what the same takes
// in bare calls: create and start a pause container with --network none, and
// have the same plugins attach it. The two take turns, so that what else the
// machine does hits both; the ratio is what to look at.
func BenchmarkRunPodSandbox(b *testing.B) {
	n := newNode(b)
	// The pause image is there from the first pod on.
	id, err := n.run(b.Context(), n.pod("warm"))
	if err != nil {
		b.Fatal(err)
	}
	n.remove(id)
	pods := network.New(network.Config{
		ConfDir: n.path("net.d"), BinDirs: []string{*cniBin}, CacheDir: n.path("floor-cache"), RunDir: n.path("run"),
	}, slog.New(slog.DiscardHandler))
	var ours, floor time.Duration
	for i := 0; b.Loop(); i++ {
		begin := time.Now()
		id, err := n.run(b.Context(), n.pod(fmt.Sprintf("bench-%d", i)))
		if err != nil {
			b.Fatal(err)
		}
		ours += time.Since(begin)
		n.remove(id)
		floor += n.bare(b, pods, i)
	}
	b.ReportMetric(float64(ours.Milliseconds())/float64(b.N), "berth-ms")
	b.ReportMetric(float64(floor.Milliseconds())/float64(b.N), "bare-ms")
	b.ReportMetric(float64(ours)/float64(floor), "ratio")
	n.clean()
}

// bare sets up a pod in bare calls, takes it down and returns what the first
// took.
func (n *node) bare(b *testing.B, pods *network.CNI, i int) time.Duration {
	b.Helper()
	ctx := context.Background()
	begin := time.Now()
	made, err := n.docker.ContainerCreate(ctx, &container.Config{Image: "berth.local/pause:1"},
		&container.HostConfig{NetworkMode: "none"}, nil, nil, fmt.Sprintf("bare-%d", i))
	if err != nil {
		b.Fatal(err)
	}
	if err := n.docker.ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil {
		b.Fatal(err)
	}
	seen, err := n.docker.ContainerInspect(ctx, made.ID)
	if err != nil {
		b.Fatal(err)
	}
	plan, err := pods.Plan(network.Pod{ID: made.ID, Name: "bare", Namespace: "live", UID: "u"})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := pods.Bind(made.ID, seen.State.Pid); err != nil {
		b.Fatal(err)
	}
	if _, err := pods.Attach(ctx, plan); err != nil {
		b.Fatal(err)
	}
	took := time.Since(begin)
	if err := pods.Detach(ctx, &plan, made.ID); err != nil {
		b.Fatal(err)
	}
	if err := n.docker.ContainerRemove(ctx, made.ID, container.RemoveOptions{Force: true}); err != nil {
		b.Fatal(err)
	}
	return took
}
