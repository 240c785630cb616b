package live

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// testFaultsOfEndpoints breaks one request to Docker at a time: the retries succeed, and nothing is left.
func testFaultsOfEndpoints(t *testing.T) {
	tr := newTrial(t, false, "--runtime-request-timeout", "4s")
	tr.ch.callTimeout = 5 * time.Second
	count := 0
	one := func(what string, steps int, faults ...*fault) {
		t.Helper()
		count++
		tr.proxy.inject(faults...)
		hits := tr.proxy.hit()
		begin := time.Now()
		tr.ch.setFaulty(true)
		done := make(chan struct{})
		go func() {
			defer close(done)
			tr.ch.runPod(fmt.Sprintf("fault-%d", count), steps)
		}()
		select {
		case <-done:
		case <-time.After(15 * time.Second):
		}
		tr.proxy.lift()
		tr.ch.setFaulty(false)
		<-done
		if tr.proxy.hit() == hits {
			t.Errorf("%s: no request had the fault", what)
		}
		tr.check(t, what)
		t.Logf("%s: %v", what, time.Since(begin).Round(time.Millisecond))
	}
	kinds := []fault{
		{kind: faultHang, after: true}, {kind: faultCut, after: true}, {kind: faultStatus, code: 500, after: true}, {kind: faultStatus, code: 409},
		{kind: faultStatus, code: 404}, {kind: faultStatus, code: 502}, {kind: faultTruncate}, {kind: faultEmpty},
	}
	few := []fault{{kind: faultHang}, {kind: faultCut}, {kind: faultStatus, code: 500}, {kind: faultTruncate}}
	for _, e := range []struct {
		name, method string
		path         *regexp.Regexp
		skip, steps  int
		kinds        []fault
	}{
		{"create of a sandbox", http.MethodPost, endpoint(`/containers/create`), 0, 1, kinds},
		{"start of a sandbox", http.MethodPost, endpoint(`/containers/[^/]+/start`), 0, 1, kinds},
		{"create of a container", http.MethodPost, endpoint(`/containers/create`), 1, 1, kinds},
		{"start of a container", http.MethodPost, endpoint(`/containers/[^/]+/start`), 1, 1, kinds},
		{"kill", http.MethodPost, endpoint(`/containers/[^/]+/kill`), 0, 1, kinds[:5]},
		{"stop", http.MethodPost, endpoint(`/containers/[^/]+/stop`), 0, 1, kinds[:5]},
		{"wait", http.MethodPost, endpoint(`/containers/[^/]+/wait`), 0, 1, kinds[:5]},
		{"removal", http.MethodDelete, endpoint(`/containers/[^/]+`), 0, 1, kinds[:5]},
		{"create of an exec", http.MethodPost, endpoint(`/containers/[^/]+/exec`), 0, 3, few},
		{"start of an exec", http.MethodPost, endpoint(`/exec/[^/]+/start`), 0, 3, few},
		{"inspect of an exec", http.MethodGet, endpoint(`/exec/[^/]+/json`), 0, 3, few},
	} {
		for _, kind := range e.kinds {
			kind.method, kind.path, kind.skip, kind.times = e.method, e.path, e.skip, 1
			one(fmt.Sprintf("%s, %v", e.name, &kind), e.steps, &kind)
		}
	}
	// Inspects and lists that fail for a while.
	for _, kind := range append(few, fault{kind: faultEmpty}) {
		kind.method, kind.times = http.MethodGet, 3
		inspect, list := kind, kind
		inspect.path, list.path = endpoint(`/containers/[0-9a-f]{64}/json`), endpoint(`/containers/json`)
		one(fmt.Sprintf("inspect, %v", &inspect), 3, &inspect)
		closed := &fault{method: http.MethodGet, path: endpoint(`/events`), kind: eventsClosed, wait: 100 * time.Millisecond, times: 2}
		one(fmt.Sprintf("list, %v", &list), 1, &list, closed) // a list is read when events were lost
		images := kind
		images.path = endpoint(`/images/json`)
		one(fmt.Sprintf("list of images, %v", &images), 1, &images, closed)
	}
	tr.finish(t)
	t.Logf("%d faults", count)
}

// hit returns how many requests had a fault.
func (p *proxy) hit() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hits
}

// testRandomFaults gives some of the requests a fault, under churn.
func testRandomFaults(t *testing.T) {
	tr := newTrial(t, false, "--runtime-request-timeout", "5s")
	tr.ch.callTimeout = 8 * time.Second
	tr.under(t, 5, 25*time.Second, func(time.Time) {
		tr.proxy.inject(randomFaults(0.03)...)
		time.Sleep(5 * time.Second)
		tr.proxy.lift()
	})
	t.Logf("%d faults", tr.proxy.hit())
}

// randomFaults returns all kinds of faults at all endpoints that pods need, each with a chance.
func randomFaults(chance float64) (list []*fault) {
	for _, kind := range []fault{
		{kind: faultHang, wait: 3 * time.Second}, {kind: faultHang, after: true, wait: 3 * time.Second}, {kind: faultDelay, wait: time.Second}, {kind: faultCut}, {kind: faultCut, after: true},
		{kind: faultStatus, code: 500}, {kind: faultStatus, code: 500, after: true}, {kind: faultTruncate},
	} {
		kind.path, kind.chance = endpoint(`/(?:containers|exec)/.*(?:create|start|stop|kill|json|exec)`), chance/8
		list = append(list, &kind)
		removal := kind
		removal.path, removal.method = endpoint(`/containers/[^/]+`), http.MethodDelete
		list = append(list, &removal)
	}
	return list
}

// testFaultsOfEvents runs pods while events are lost, repeated, late or damaged.
func testFaultsOfEvents(t *testing.T) {
	for _, f := range []*fault{
		{kind: eventsDrop}, {kind: eventsDouble}, {kind: eventsReorder}, {kind: eventsLate, wait: 3 * time.Second}, {kind: eventsClosed, wait: time.Second},
		{kind: eventsGarbage},
	} {
		t.Run(f.String(), func(t *testing.T) {
			f.path = endpoint("/events")
			tr := prepareTrial(t, false)
			tr.proxy.inject(f) // from the first connection on
			tr.begin(t)
			tr.under(t, 3, 8*time.Second, func(time.Time) { time.Sleep(time.Second) })
		})
	}
}

// testSlowDocker delays each call of Docker.
func testSlowDocker(t *testing.T) {
	tr := newTrial(t, false)
	tr.ch.callTimeout = time.Minute
	tr.proxy.inject(&fault{path: endpoint("/.*"), kind: faultDelay, wait: 700 * time.Millisecond})
	tr.under(t, 3, 15*time.Second, func(time.Time) { time.Sleep(time.Second) })
}

// testNoProbeTimesOutWhileDockerHangs shows that probes are Unavailable: a kubelet kills a container whose liveness probe is
// DeadlineExceeded.
func testNoProbeTimesOutWhileDockerHangs(t *testing.T) {
	probe := func(t *testing.T, tr *trial, c string, limit time.Duration) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		_, err := tr.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"true"}, Timeout: 2})
		if took := time.Since(begin); codeOf(err) != codes.Unavailable || took > limit {
			t.Errorf("%v after %v, want Unavailable within %v", err, took, limit)
		}
	}
	for _, where := range []struct {
		name string
		f    *fault
	}{
		{"create", &fault{path: endpoint("/containers/[^/]+/exec"), kind: faultHang}},
		{"start", &fault{path: endpoint("/exec/[^/]+/start"), kind: faultHang}},
		{"inspect", &fault{path: endpoint("/exec/[^/]+/json"), kind: faultHang}},
		{"everything", &fault{path: endpoint("/.*"), kind: faultHang}},
	} {
		t.Run(where.name+" hangs", func(t *testing.T) {
			tr := newTrial(t, false, "--runtime-request-timeout", "10s")
			_, c, err := tr.whole(tr.pod("probed"))
			if err != nil {
				t.Fatal(err)
			}
			tr.proxy.inject(where.f)
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() { probe(t, tr, c, 20*time.Second) })
			}
			all.Wait()
			tr.proxy.lift()
			tr.until(20*time.Second, "no probe succeeds after Docker answers again", func() bool {
				_, err := tr.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"true"}, Timeout: 2})
				return err == nil
			})
			tr.removeAll()
			tr.finish(t)
		})
	}
	t.Run("shim is stopped", func(t *testing.T) {
		tr := newTrial(t, false, "--runtime-request-timeout", "10s")
		_, c, err := tr.whole(tr.pod("probed"))
		if err != nil {
			t.Fatal(err)
		}
		pid := tr.shim(c)
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		resume := sync.OnceFunc(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
		defer resume()
		for range 3 {
			probe(t, tr, c, 10*time.Second)
		}
		resume()
		tr.removeAll()
		tr.finish(t)
	})
}
