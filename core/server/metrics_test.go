package server_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
)

// TestCallsAreMeasured reads metrics as the kubelet does: it knows descriptors and
// drops what does not fit them.
func TestCallsAreMeasured(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	h.engine.PID = enginetest.InCgroups(t)
	ctx := t.Context()
	order := command("c", "sleep", "1000")
	order.Image.UserSpecifiedImage = busybox
	podID, id, err := h.runPod(h.pod("p"), order)
	h.must(err)

	known, err := h.runtime.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	h.must(err)
	keys := map[string][]string{}
	for _, d := range known.GetDescriptors() {
		if d.GetHelp() == "" || len(d.GetLabelKeys()) < 5 || keys[d.GetName()] != nil {
			t.Errorf("descriptor %v", d)
		}
		keys[d.GetName()] = d.GetLabelKeys()
	}
	list, err := h.runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	h.must(err)
	if len(list.GetPodMetrics()) != 1 {
		t.Fatalf("metrics of %d pods, want 1", len(list.GetPodMetrics()))
	}
	got := list.GetPodMetrics()[0]
	if got.GetPodSandboxId() != podID || len(got.GetContainerMetrics()) != 1 || got.GetContainerMetrics()[0].GetContainerId() != id {
		t.Fatalf("metrics of %s and %d containers", got.GetPodSandboxId(), len(got.GetContainerMetrics()))
	}
	label := func(m *runtimeapi.Metric, key string) string {
		for i, k := range keys[m.GetName()] {
			if k == key {
				return m.GetLabelValues()[i]
			}
		}
		return ""
	}
	seen := map[string]bool{}
	for _, m := range append(got.GetMetrics(), got.GetContainerMetrics()[0].GetMetrics()...) {
		if keys[m.GetName()] == nil || len(keys[m.GetName()]) != len(m.GetLabelValues()) {
			t.Errorf("%v does not fit %v", m, keys[m.GetName()])
			continue
		}
		seen[m.GetName()] = true
		if label(m, "namespace") != "default" || label(m, "pod") != "p" || label(m, "id") == "" {
			t.Errorf("labels of %v", m)
		}
	}
	for _, m := range got.GetContainerMetrics()[0].GetMetrics() {
		if label(m, "container") != "c" || label(m, "image") != busybox {
			t.Errorf("labels of %v", m)
		}
	}
	for _, name := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_processes", "container_start_time_seconds"} {
		if !seen[name] {
			t.Errorf("no %s", name)
		}
	}

	stream, err := h.runtime.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	h.must(err)
	part, err := stream.Recv()
	if err != nil || len(part.GetPodSandboxMetrics()) != 1 {
		t.Errorf("stream: %v, %v", part, err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the end of the stream: %v", err)
	}

	// Prometheus is told the same, and what else there is to know.
	families, err := h.registry.Gather()
	h.must(err)
	exported := map[string]int{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			exported[f.GetName()]++
			if !strings.HasPrefix(f.GetName(), "container_") {
				continue
			}
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName())
			}
			want := slices.Sorted(slices.Values(keys[f.GetName()]))
			if !slices.Equal(labels, want) {
				t.Errorf("%s has the labels %v, its descriptor %v", f.GetName(), labels, want)
			}
		}
	}
	for _, m := range append(got.GetMetrics(), got.GetContainerMetrics()[0].GetMetrics()...) {
		if exported[m.GetName()] == 0 {
			t.Errorf("%s is not exported", m.GetName())
		}
	}
	for _, name := range []string{"berthd_call_duration_seconds", "berthd_engine_call_duration_seconds", "berthd_cache_lag_seconds", "berthd_log_lag_seconds", "berthd_engine_up"} {
		if exported[name] == 0 {
			t.Errorf("%s is not exported", name)
		}
	}

	// One that has ended is left out, and so is its pod.
	_, err = h.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
	h.must(err)
	list, err = h.runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(list.GetPodMetrics()) != 1 || len(list.GetPodMetrics()[0].GetContainerMetrics()) != 0 {
		t.Errorf("without its container: %v, %v", list, err)
	}
	_, err = h.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID})
	h.must(err)
	list, err = h.runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(list.GetPodMetrics()) != 0 {
		t.Errorf("without a pod: %v, %v", list, err)
	}
}
