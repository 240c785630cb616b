package pullprogress

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/docker/pkg/jsonmessage"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// message returns a message about a layer.
func message(id, status string, current, total int64) jsonmessage.JSONMessage {
	return jsonmessage.JSONMessage{ID: id, Status: status, Progress: &jsonmessage.JSONProgress{Current: current, Total: total}}
}

// A lockedBuffer is written to by the timers of pulls.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func TestLongPullsAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		tracker := New(nil, slog.New(slog.NewTextHandler(&log, nil)))
		_, short := tracker.Join(t.Context(), "short", "r.test/short:1")
		ctx, long := tracker.Join(WithPod(t.Context(), "ns", "web"), "long", "r.test/a:1")
		time.Sleep(9 * time.Second)
		short.Leave(Success)
		attempt := FromContext(ctx).Begin("mirror.test/a:1")
		attempt.Update(message("a", "Pulling fs layer", 0, 0))
		attempt.Update(message("b", "Pulling fs layer", 0, 0))
		attempt.Update(message("a", "Downloading", 5<<20, 10<<20))
		time.Sleep(2 * time.Second)
		attempt.Update(message("a", "Downloading", 6<<20, 10<<20))
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines after 11s, want 1:\n%s", n, &log)
		}
		for _, want := range []string{
			`level=INFO msg="image pull in progress" image=r.test/a:1 source=mirror.test/a:1 pod=web namespace=ns state=downloading `,
			" bytes=5242880 total-bytes=10485760 total-is-minimum=true layers-done=0 layers=2 bytes-per-second=5242880 elapsed=10s",
		} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("no %q in %s", want, &log)
			}
		}
		time.Sleep(10 * time.Second)
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%d lines after 21s, want 2:\n%s", n, &log)
		}
		long.Leave(Success)
		time.Sleep(time.Minute)
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("an ended pull is logged:\n%s", &log)
		}
	})
}

func TestRateIsThatOfTheLastSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := FromContext(t.Context())
		attempt := p.Begin("r.test/a:1")
		current := int64(0)
		download := func(seconds int, perSecond int64) {
			for range seconds * 10 {
				time.Sleep(100 * time.Millisecond)
				current += perSecond / 10
				attempt.Update(message("a", "Downloading", current, 1<<40))
			}
		}
		for _, tt := range []struct {
			seconds         int
			perSecond, want int64
		}{
			{60, 1000, 1000},
			{11, 5000, 5000},
			{11, 0, 0},
		} {
			download(tt.seconds, tt.perSecond)
			if got := p.Status().BytesPerSecond; got < tt.want*9/10 || got > tt.want*11/10 {
				t.Errorf("%d bytes per second, want %d", got, tt.want)
			}
		}
		download(5, 1000)
		time.Sleep(20 * time.Second) // without a message
		if got := p.Status().BytesPerSecond; got != 0 {
			t.Errorf("%d bytes per second of a pull that stands still", got)
		}
		if n := len(p.samples); n > 20 {
			t.Errorf("%d samples are kept", n)
		}
	})
}

// Sequences of messages of dockerd 20.10 and of 28.5 with the containerd image store.
func TestStatusCountsLayersAndBytes(t *testing.T) {
	const mib = 1 << 20
	for name, tt := range map[string]struct {
		messages []jsonmessage.JSONMessage
		want     Status
		text     string
	}{
		"no message": {nil, Status{State: Waiting}, "no layer is known after 0s"},
		"manifest only": {
			[]jsonmessage.JSONMessage{{ID: "1", Status: "Pulling from a"}},
			Status{State: Waiting}, "no layer is known after 0s",
		},
		"sizes of waiting layers are unknown": {
			[]jsonmessage.JSONMessage{
				{ID: "1", Status: "Pulling from a"}, message("a", "Already exists", 0, 0), message("b", "Pulling fs layer", 0, 0),
				message("c", "Pulling fs layer", 0, 0), message("c", "Waiting", 0, 0), message("b", "Downloading", 12*mib, 80*mib),
			},
			Status{State: Downloading, Bytes: 12 * mib, TotalBytes: 80 * mib, TotalIsMinimum: true, LayersDone: 1, Layers: 3},
			"1 of 3 layers, 12 of at least 80 MiB after 0s",
		},
		"unpacking": {
			[]jsonmessage.JSONMessage{
				message("a", "Pulling fs layer", 0, 0), message("b", "Pulling fs layer", 0, 0), message("a", "Downloading", 7*mib, 8*mib),
				message("a", "Verifying Checksum", 0, 0), message("a", "Download complete", 0, 0), message("a", "Extracting", 1, 8*mib),
				message("b", "Downloading", 2*mib, 2*mib), message("b", "Download complete", 0, 0),
			},
			Status{State: Unpacking, Bytes: 10 * mib, TotalBytes: 10 * mib, Layers: 2}, "0 of 2 layers, 10 of 10 MiB after 0s",
		},
		"unpacking, in seconds": {
			[]jsonmessage.JSONMessage{
				message("a", "Pulling fs layer", 0, 0), message("a", "Downloading", 7*mib, 8*mib), message("a", "Download complete", 0, 0), message("a", "Extracting", 31, 0),
			},
			Status{State: Unpacking, Bytes: 8 * mib, TotalBytes: 8 * mib, Layers: 1}, "0 of 1 layers, 8.0 of 8.0 MiB after 0s",
		},
		"complete": {
			[]jsonmessage.JSONMessage{message("a", "Pulling fs layer", 0, 0), message("a", "Downloading", 700, 2048), message("a", "Pull complete", 0, 0)},
			Status{State: Finishing, Bytes: 2048, TotalBytes: 2048, LayersDone: 1, Layers: 1}, "1 of 1 layers, 2.0 of 2.0 KiB after 0s",
		},
		"a configuration is no layer": {
			[]jsonmessage.JSONMessage{message("c", "Downloading", 1024, 1024), message("a", "Pulling fs layer", 0, 0), message("a", "Downloading", 1024, 3072)},
			Status{State: Downloading, Bytes: 2048, TotalBytes: 4096, Layers: 1}, "0 of 1 layers, 2.0 of 4.0 KiB after 0s",
		},
		"resumed, with the size of the rest": {
			[]jsonmessage.JSONMessage{
				message("a", "Pulling fs layer", 0, 0), message("a", "Downloading", 60*mib, 100*mib), message("a", "Retrying in 5 seconds", 0, 0), message("a", "Downloading", 10*mib, 40*mib),
			},
			Status{State: Downloading, Bytes: 70 * mib, TotalBytes: 100 * mib, Layers: 1}, "0 of 1 layers, 70 of 100 MiB after 0s",
		},
		"no byte yet": {
			[]jsonmessage.JSONMessage{message("a", "Pulling fs layer", 0, 0)},
			Status{State: Downloading, TotalIsMinimum: true, Layers: 1}, "0 of 1 layers, size unknown after 0s",
		},
		"nothing to download": {
			[]jsonmessage.JSONMessage{message("a", "Already exists", 0, 0)},
			Status{State: Finishing, LayersDone: 1, Layers: 1}, "1 of 1 layers, 0 bytes after 0s",
		},
		"without Content-Length": {
			[]jsonmessage.JSONMessage{message("a", "Pulling fs layer", 0, 0), message("a", "Downloading", 3*mib, 0)},
			Status{State: Downloading, Bytes: 3 * mib, TotalBytes: 3 * mib, TotalIsMinimum: true, Layers: 1}, "0 of 1 layers, 3.0 of at least 3.0 MiB after 0s",
		},
		"large": {
			[]jsonmessage.JSONMessage{message("a", "Pulling fs layer", 0, 0), message("a", "Downloading", 3<<29, 40<<30)},
			Status{State: Downloading, Bytes: 3 << 29, TotalBytes: 40 << 30, Layers: 1}, "0 of 1 layers, 1.5 of 40 GiB after 0s",
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, p := New(nil, slog.New(slog.DiscardHandler)).Join(t.Context(), "a", "r.test/a:1")
			attempt := FromContext(ctx).Begin("r.test/a:1")
			for _, m := range tt.messages {
				attempt.Update(m)
			}
			got := p.Status()
			if text := got.String(); text != tt.text {
				t.Errorf("%s: %q, want %q", name, text, tt.text)
			}
			tt.want.Image, tt.want.Attempt, tt.want.Callers, tt.want.Pods, tt.want.Started = "r.test/a:1", 1, 1, []Pod{}, got.Started
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
			p.Leave(Success)
		})
	}
}

// Registries decide about sizes and the number of layers.
func TestHostileMessagesAreBounded(t *testing.T) {
	p := FromContext(t.Context())
	attempt := p.Begin("r.test/a:1")
	for i := range 3000 {
		id := fmt.Sprint(i)
		attempt.Update(message(id+strings.Repeat("x", 1000), strings.Repeat("s", 1000), 0, 0))
		attempt.Update(message(id, "Downloading", -1<<63, -5))
		attempt.Update(message(id, "Downloading", 1<<62, 1<<63-1))
		attempt.Update(message(id, "Pulling fs layer", 0, 0))
	}
	s := p.Status()
	if s.Layers > maxBlobs || len(attempt.layers.blobs) > maxBlobs || s.Bytes < 0 || s.TotalBytes < 0 || s.BytesPerSecond < 0 {
		t.Errorf("%d blobs, %+v", len(attempt.layers.blobs), s)
	}
	for id, b := range attempt.layers.blobs {
		if len(id) > maxID || len(b.last.status) > maxStatus {
			t.Fatalf("%d bytes of an ID and %d of a status are kept", len(id), len(b.last.status))
		}
	}
	// A layer that is not followed may be the one that makes progress.
	if changed, _ := attempt.Update(message("another", "Downloading", 1, 2)); !changed {
		t.Error("a message about a layer that is not followed changes nothing: the pull would stall")
	}
}

func TestRequestsShareAPull(t *testing.T) {
	reg := prometheus.NewRegistry()
	tracker := New(reg, slog.New(slog.DiscardHandler))
	ctx, first := tracker.Join(WithPod(t.Context(), "ns", "one"), "a", "r.test/a:1")
	_, second := tracker.Join(WithPod(t.Context(), "ns", "two"), "a", "r.test/a:1")
	_, other := tracker.Join(t.Context(), "b", "r.test/b:1")
	stale := FromContext(ctx).Begin("mirror.test/a:1")
	stale.Update(message("a", "Pulling fs layer", 0, 0))
	stale.Update(message("a", "Downloading", 100, 1000))
	attempt := FromContext(ctx).Begin("r.test/a:1")
	attempt.Update(message("b", "Downloading", 1000, 1000))
	stale.Update(message("a", "Pull complete", 0, 0)) // by a mirror that was given up
	list := tracker.List()
	if len(list.Pulls) != 2 || list.Omitted != 0 {
		t.Fatalf("%+v, want two pulls", list)
	}
	got := list.Pulls[0]
	if got.Callers != 2 || got.Attempt != 2 || got.Source != "" || got.Layers != 0 || got.Bytes != 1000 {
		t.Errorf("%+v, want the second attempt for two callers", got)
	}
	if diff := cmp.Diff([]Pod{{"ns", "one"}, {"ns", "two"}}, got.Pods); diff != "" {
		t.Errorf("pods (-want +got):\n%s", diff)
	}
	running := func() string {
		n, err := testutil.GatherAndCount(reg, "berthd_image_pulls_running")
		families, gatherErr := reg.Gather()
		if err != nil || gatherErr != nil || n != 1 {
			t.Fatal(n, err, gatherErr)
		}
		for _, f := range families {
			if f.GetName() == "berthd_image_pulls_running" {
				return fmt.Sprint(f.GetMetric()[0].GetGauge().GetValue())
			}
		}
		return ""
	}
	if got := running(); got != "2" {
		t.Errorf("%s pulls run, want 2", got)
	}
	second.Leave(Success)
	first.Leave(Canceled) // its deadline has passed a moment later
	other.Leave(Stalled)
	if got := running(); got != "0" || len(tracker.List().Pulls) != 0 {
		t.Errorf("%s pulls run, want none", got)
	}
	// 100 + 1000 by the attempts, and 900 that the end of a layer implies.
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`# HELP berthd_image_pull_bytes_total Bytes of layers that ended pulls have downloaded, by result of the pull.
# TYPE berthd_image_pull_bytes_total counter
berthd_image_pull_bytes_total{result="canceled"} 0
berthd_image_pull_bytes_total{result="error"} 0
berthd_image_pull_bytes_total{result="stalled"} 0
berthd_image_pull_bytes_total{result="success"} 2000
`), "berthd_image_pull_bytes_total"); err != nil {
		t.Error(err)
	}
	for result, want := range map[Result]uint64{Success: 1, Stalled: 1, Canceled: 0, Failure: 0} {
		if got := histogramCount(t, reg, result); got != want {
			t.Errorf("%d pulls have ended with %s, want %d", got, result, want)
		}
	}
}

// histogramCount returns how many pulls have ended with the result.
func histogramCount(t *testing.T, reg *prometheus.Registry, result Result) uint64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "berthd_image_pull_seconds" && m.GetLabel()[0].GetValue() == string(result) {
				return m.GetHistogram().GetSampleCount()
			}
		}
	}
	t.Fatalf("no series of %s", result)
	return 0
}

func TestResponseIsBounded(t *testing.T) {
	tracker := New(nil, slog.New(slog.DiscardHandler))
	const n = maxListed + 7
	for i := range n {
		for j := range 2 * maxPods {
			name := strings.Repeat("p", 2*maxName)
			ctx := WithPod(t.Context(), name, fmt.Sprint(j)+name)
			_, p := tracker.Join(ctx, fmt.Sprint(i), strings.Repeat("i", 8*maxName))
			t.Cleanup(func() { p.Leave(Canceled) })
		}
	}
	response := httptest.NewRecorder()
	tracker.ServeHTTP(response, httptest.NewRequestWithContext(context.WithoutCancel(t.Context()), "GET", Path, nil))
	var list List
	if err := json.Unmarshal(response.Body.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Pulls) != maxListed || list.Omitted != n-maxListed {
		t.Errorf("%d pulls, %d omitted", len(list.Pulls), list.Omitted)
	}
	if s := list.Pulls[0]; len(s.Image) != maxName || len(s.Pods) != maxPods || s.Callers != 2*maxPods {
		t.Errorf("%d bytes of a name, %d pods, %d callers", len(s.Image), len(s.Pods), s.Callers)
	}
	if size := response.Body.Len(); size > MaxResponse {
		t.Errorf("%d bytes, more than MaxResponse", size)
	}
}
