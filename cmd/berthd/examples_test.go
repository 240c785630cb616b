package main

import (
	"bufio"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cmd/berthd/internal/config"
	"berth/core/engine/enginetest"
)

// exportedMetrics returns the names of all metrics of a daemon with a running pod.
func exportedMetrics(t *testing.T) map[string]bool {
	t.Helper()
	dir, err := os.MkdirTemp("", "examples") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	docker := enginetest.New(t)
	docker.PID = enginetest.InCgroups(t)
	docker.AddImage(enginetest.Image{}, "busybox:1")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Config{
		DockerEndpoint: docker.Host, PauseImage: "berth.local/pause:1", NetworkPlugin: config.NoCNI, RootDir: filepath.Join(dir, "root"), RunDir: filepath.Join(dir, "run"),
		PullProgress: time.Second, ContainerLogs: "cri", StreamingAddr: "127.0.0.1:0", MetricsAddr: free.Addr().String(),
	}
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "cri.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	d, err := newDaemon(cfg, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	go func() { done <- d.Run(ctx, l) }()
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	cri := runtimeapi.NewRuntimeServiceClient(conn)
	pod := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "ns", Uid: "u"}, LogDirectory: filepath.Join(dir, "logs")}
	var sandbox *runtimeapi.RunPodSandboxResponse
	for limit := time.Now().Add(waitTimeout); ; time.Sleep(20 * time.Millisecond) {
		if sandbox, err = cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod}, grpc.WaitForReady(true)); err == nil {
			break
		}
		if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
	created, err := cri.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox.GetPodSandboxId(), SandboxConfig: pod, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "busybox:1"}, Command: []string{"sleep", "1000"}, LogPath: "c.log",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cri.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: created.GetContainerId()}); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + cfg.MetricsAddr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	names := map[string]bool{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if name := metricName.FindString(lines.Text()); name != "" {
			names[name] = true
		}
	}
	return names
}

// metricName matches the name of a metric, in a line of /metrics and in an expression: nothing else in the
// expressions of the examples begins with these prefixes.
var metricName = regexp.MustCompile(`\b(?:berthd|container|go|process)_[a-zA-Z0-9_]+`)

func TestExamplesUseExportedMetrics(t *testing.T) {
	t.Parallel()
	names := exportedMetrics(t)
	for file, read := range map[string]func(*testing.T, []byte) []string{
		"grafana-dashboard.json": dashboardExpressions,
		"prometheus-rules.yaml":  ruleExpressions,
	} {
		text, err := os.ReadFile(filepath.Join("..", "..", "contrib", "examples", file))
		if err != nil {
			t.Fatal(err)
		}
		expressions := read(t, text)
		if len(expressions) < 10 {
			t.Errorf("%s: %d expressions, want at least 10", file, len(expressions))
		}
		for _, expr := range expressions {
			used := metricName.FindAllString(expr, -1)
			if len(used) == 0 && !strings.HasPrefix(expr, "up{") {
				t.Errorf("%s: no metric in %s", file, expr)
			}
			for _, name := range used {
				if !names[name] {
					t.Errorf("%s uses %s, which is not exported: %s", file, name, expr)
				}
			}
			for _, pair := range []string{"()", "{}", "[]"} {
				if strings.Count(expr, pair[:1]) != strings.Count(expr, pair[1:]) {
					t.Errorf("%s: %s do not match in %s", file, pair, expr)
				}
			}
		}
	}
}

// dashboardExpressions returns the expressions of all panels and variables.
func dashboardExpressions(t *testing.T, text []byte) (expressions []string) {
	t.Helper()
	var board struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct {
				Query json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] || p.Title == "" || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %d %q has no targets, no title, or the ID of another", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			expressions = append(expressions, target.Expr)
		}
	}
	for _, v := range board.Templating.List {
		if strings.Contains(string(v.Query), "label_values") {
			expressions = append(expressions, string(v.Query))
		}
	}
	return expressions
}

// ruleExpressions returns the expressions of all alerts.
func ruleExpressions(t *testing.T, text []byte) (expressions []string) {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("alert %+v: a name, severity, summary or description is missing", r)
			}
			expressions = append(expressions, r.Expr)
		}
	}
	return expressions
}
