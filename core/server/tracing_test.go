package server_test

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/daemon"
	"berth/core/engine/enginetest"
	"berth/core/tracing/tracingtest"
)

const callerTrace, callerSpan = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

// fromCaller returns a context of a call that its caller traces; flags are 01 if it is sampled.
func fromCaller(ctx context.Context, flags string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+callerTrace+"-"+callerSpan+"-"+flags)
}

func hasSpan(spans []tracingtest.Span, name string) bool {
	return slices.ContainsFunc(spans, func(s tracingtest.Span) bool { return s.Name == name })
}

func TestTraceOfCallerIsContinuedToDocker(t *testing.T) {
	t.Parallel()
	collector := tracingtest.New(t, "127.0.0.1:0")
	h := prepareDaemon(t)
	h.tracing = daemon.Tracing{Endpoint: collector.Endpoint}
	h.start()
	ctx := fromCaller(t.Context(), "01")
	const secret = "hunter2"
	_, err := h.images.PullImage(ctx, &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: busybox}, Auth: &runtimeapi.AuthConfig{Username: "u", Password: secret},
	})
	t.Logf("pull: %v", err)
	pod, c := h.pod("traced"), command("c", "sleep", "1000")
	c.Envs = []*runtimeapi.KeyValue{{Key: "TOKEN", Value: []byte(secret)}}
	ran, err := h.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	h.must(err)
	created, err := h.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: ran.GetPodSandboxId(), Config: c, SandboxConfig: pod})
	h.must(err)
	id := created.GetContainerId()
	_, err = h.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	h.must(err)
	_, err = h.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", secret}, Timeout: 10})
	t.Logf("exec: %v", err)
	_, err = h.runtime.Version(t.Context(), &runtimeapi.VersionRequest{}) // not traced by its caller
	h.must(err)
	spans := stopTraced(t, h, collector, "ExecSync")

	byID := map[string]tracingtest.Span{}
	for _, s := range spans {
		byID[s.ID] = s
		if s.TraceID != callerTrace || s.Service != "berthd" {
			t.Errorf("span %s of %s is in trace %s", s.Name, s.Service, s.TraceID)
		}
		if strings.Contains(s.Text, secret) {
			t.Errorf("a secret is in the span %s", s.Text)
		}
	}
	for _, s := range spans {
		if s.Parent == callerSpan != (s.Kind == tracepb.Span_SPAN_KIND_SERVER) {
			t.Errorf("span %s has the parent %s", s.Name, s.Parent)
		}
		if _, ok := byID[s.Parent]; !ok && s.Parent != callerSpan {
			t.Errorf("the parent of span %s is missing", s.Name)
		}
	}
	for _, name := range []string{
		"runtime.v1.RuntimeService/RunPodSandbox", "runtime.v1.RuntimeService/CreateContainer", "runtime.v1.ImageService/PullImage",
		"pull image", "open container log", "POST /exec/{id}/start",
	} {
		if !hasSpan(spans, name) {
			t.Errorf("no span %s", name)
		}
	}
	for _, s := range spans {
		if s.Name == "runtime.v1.RuntimeService/RunPodSandbox" && (s.Attributes["k8s.pod.name"] != "traced" ||
			s.Attributes["k8s.namespace.name"] != "default" || s.Attributes["sandbox.id"] != ran.GetPodSandboxId()) {
			t.Errorf("attributes %v", s.Attributes)
		}
		if s.Name == "runtime.v1.RuntimeService/CreateContainer" && (s.Attributes["container.id"] != id ||
			s.Attributes["container.image.name"] != busybox || s.Attributes["k8s.container.name"] != "c") {
			t.Errorf("attributes %v", s.Attributes)
		}
	}
	routes := map[string]bool{}
	for _, r := range h.engine.TracedRequests() {
		routes[r.Route] = true
		fields := strings.Split(r.TraceParent, "-")
		if len(fields) != 4 || fields[1] != callerTrace || byID[fields[2]].Kind != tracepb.Span_SPAN_KIND_CLIENT {
			t.Errorf("Docker got the trace context %s with %s, which is no span of the request", r.TraceParent, r.Route)
		}
	}
	for _, want := range []string{"POST /images/create", "POST /containers/create", "POST /containers/{id}/start", "POST /containers/{id}/exec", "POST /exec/{id}/start"} {
		if !routes[want] {
			t.Errorf("Docker got no trace context with %s", want)
		}
	}
}

// stopTraced stops the daemon and returns all spans. It waits for that of the last traced call
// first: the end of the daemon waits for a second only.
func stopTraced(t *testing.T, h *testDaemon, collector *tracingtest.Collector, last string) []tracingtest.Span {
	t.Helper()
	collector.Wait(t, enginetest.WaitTimeout, func(spans []tracingtest.Span) bool {
		return hasSpan(spans, "runtime.v1.RuntimeService/"+last)
	})
	h.stop()
	return collector.Spans()
}

func TestCallThatCallerHasNotSampledIsNotTraced(t *testing.T) {
	t.Parallel()
	collector := tracingtest.New(t, "127.0.0.1:0")
	h := prepareDaemon(t)
	h.tracing = daemon.Tracing{Endpoint: collector.Endpoint, SamplesPerMillion: 1_000_000}
	log := &lines{}
	h.log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h.start()
	_, err := h.runtime.ListContainers(fromCaller(t.Context(), "00"), &runtimeapi.ListContainersRequest{})
	h.must(err)
	_, err = h.runtime.Version(t.Context(), &runtimeapi.VersionRequest{})
	h.must(err)
	spans := stopTraced(t, h, collector, "Version")
	if hasSpan(spans, "runtime.v1.RuntimeService/ListContainers") || !hasSpan(spans, "runtime.v1.RuntimeService/Version") {
		t.Errorf("spans %v, want one of Version and none of ListContainers", spans)
	}
	if !log.has("call=ListContainers", "trace_id="+callerTrace) || !log.has("call=Version", "trace_id=") {
		t.Errorf("the log has no trace IDs:\n%s", log)
	}
}

func TestWithoutTracingNothingIsSentToDocker(t *testing.T) {
	t.Parallel()
	h := prepareDaemon(t)
	log := &lines{}
	h.log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h.start()
	_, err := h.runtime.RunPodSandbox(fromCaller(t.Context(), "01"), &runtimeapi.RunPodSandboxRequest{Config: h.pod("p")})
	h.must(err)
	_, err = h.runtime.Version(metadata.AppendToOutgoingContext(t.Context(), "traceparent", "garbage"), &runtimeapi.VersionRequest{})
	h.must(err)
	if got := h.engine.TracedRequests(); len(got) > 0 {
		t.Errorf("Docker got %v", got)
	}
	if !log.has("call=RunPodSandbox", "trace_id="+callerTrace) || log.has("call=Version", "trace_id") {
		t.Errorf("the log has not the caller's trace ID:\n%s", log)
	}
}

// A collector that cannot be reached, hangs or is another kind of server does not delay calls, and delays the end of the daemon briefly.
func TestCollectorDelaysNothing(t *testing.T) {
	t.Parallel()
	hanging, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hanging.Close() })
	for name, tt := range map[string]struct {
		endpoint string
		calls    int
	}{
		"away":         {"127.0.0.1:1", 10},
		"hangs":        {hanging.Addr().String(), 3000}, // more than the queue holds
		"no such host": {"collector.invalid:4317", 10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := prepareDaemon(t)
			h.tracing = daemon.Tracing{Endpoint: tt.endpoint, SamplesPerMillion: 1_000_000}
			h.start()
			for range tt.calls {
				if _, err := h.runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
					t.Fatal(err)
				}
			}
			start := time.Now()
			h.stop()
			if took := time.Since(start); took > enginetest.WaitTimeout {
				t.Errorf("the end took %v", took)
			}
			families, err := h.registry.Gather()
			h.must(err)
			dropped := 0.0
			for _, f := range families {
				if f.GetName() == "berthd_trace_spans_total" {
					for _, m := range f.GetMetric() {
						dropped += m.GetCounter().GetValue()
					}
				}
			}
			if dropped == 0 {
				t.Error("no span is counted as dropped")
			}
		})
	}
}

// lines is a log that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// has reports whether one line contains all texts.
func (l *lines) has(texts ...string) bool {
	return slices.ContainsFunc(strings.Split(l.String(), "\n"), func(line string) bool {
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) })
	})
}
