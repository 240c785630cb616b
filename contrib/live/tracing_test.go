package live

import (
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/tracing/tracingtest"
)

// A tracedRequest is a request to Docker with a trace context.
type tracedRequest struct{ name, parent string }

func (p *proxy) recordTrace(r *http.Request) {
	if header := r.Header.Get("Traceparent"); header != "" {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.traced = append(p.traced, tracedRequest{r.Method + " " + r.URL.Path, header})
	}
}

// TestOneTraceFromKubeletToDocker: the plugins and the requests to Docker are in the trace of the caller. If
// OTEL_EXPORTER_OTLP_ENDPOINT is set, which live.sh passes on to dockerd, the collector listens there,
// and the spans of dockerd must be in the trace too:
//
//	OTEL_EXPORTER_OTLP_PROTOCOL=grpc OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:14317 ENGINE=forky contrib/e2e/live.sh
func TestOneTraceFromKubeletToDocker(t *testing.T) {
	const trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	ofEngine, engineExports := strings.CutPrefix(os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT"), "http://")
	address := "127.0.0.1:0"
	if engineExports {
		address = ofEngine
	}
	collector := tracingtest.New(t, address)
	n := newNode(t, "--tracing-endpoint", collector.Endpoint)
	if engineExports {
		// dockerd was started before the collector: gRPC's back-off has it wait for up to two minutes before it
		// connects, and it loses the spans until then.
		collector.Wait(t, 3*time.Minute, func(spans []tracingtest.Span) bool {
			if _, err := n.docker.Info(t.Context()); err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(spans, func(s tracingtest.Span) bool { return s.Service == "dockerd" })
		})
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+trace+"-"+caller+"-01")
	pod := n.pod("traced")
	id, err := n.run(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	created, err := n.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: shell("web", "echo hello; exec sleep 1000"), SandboxConfig: pod})
	if err != nil {
		t.Fatal(err)
	}
	c := created.GetContainerId()
	if _, err := n.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"true"}, Timeout: 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"runtime.v1.RuntimeService/RunPodSandbox", "CNI ADD bridge", "CNI ADD portmap", "open container log",
		"POST /exec/{id}/start", "CNI DEL bridge", "runtime.v1.RuntimeService/StopPodSandbox",
	}
	byID := map[string]tracingtest.Span{}
	collector.Wait(t, 30*time.Second, func(spans []tracingtest.Span) bool {
		names, dockerd := map[string]bool{}, 0
		for _, s := range spans {
			byID[s.ID] = s
			if s.TraceID == trace && s.Service == "berthd" {
				names[s.Name] = true
			} else if s.TraceID == trace && s.Service == "dockerd" {
				dockerd++
			}
		}
		missing := slices.DeleteFunc(slices.Clone(want), func(name string) bool { return names[name] })
		return len(missing) == 0 && (!engineExports || dockerd > 0)
	})
	services := map[string]int{}
	for _, s := range byID {
		if s.TraceID != trace { // dockerd and its containerd trace other requests too
			continue
		}
		services[s.Service]++
		if s.Service == "dockerd" && s.Kind == tracepb.Span_SPAN_KIND_SERVER && byID[s.Parent].Service != "berthd" {
			t.Errorf("the span %s of dockerd has a parent that is not berthd's: %s", s.Name, s.Parent)
		}
	}
	t.Logf("spans in the trace by service: %v", services)
	n.proxy.mu.Lock()
	requests := slices.Clone(n.proxy.traced)
	n.proxy.mu.Unlock()
	calls := map[string]int{}
	for _, r := range requests {
		fields := strings.Split(r.parent, "-")
		if len(fields) != 4 || fields[1] != trace || byID[fields[2]].Kind != tracepb.Span_SPAN_KIND_CLIENT {
			t.Errorf("Docker got the trace context %s with %s, which is no span of the request", r.parent, r.name)
		}
		calls[r.name[strings.LastIndex(r.name, "/")+1:]]++
	}
	t.Logf("requests with the trace context: %v", calls)
	for _, call := range []string{"create", "start", "exec"} {
		if calls[call] == 0 {
			t.Errorf("no request %s has the trace context, only %q", call, slices.Sorted(maps.Keys(calls)))
		}
	}
	n.until(5*time.Second, "no trace ID in the log", func() bool { return strings.Contains(n.log.String(), "trace_id="+trace) })
	n.remove(id)
	n.clean()
}
