package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A churn runs pods as a kubelet does: it lists before it creates, repeats what has failed, probes, rotates logs, and stops and
// removes until that succeeds. It records what berthd has answered, for the audit.
type churn struct {
	n           *node
	callTimeout time.Duration // how long one call may take
	pace        time.Duration // between the steps of a pod
	limit       time.Duration // how long one step may be tried, once faults are over
	ctx         context.Context
	// cancelsEarly has half of the calls cancelled after at most 300 ms while there are faults.
	cancelsEarly bool
	// dockerForgets allows Docker to lose what it has just started, see withoutForgotten.
	dockerForgets bool

	// mapped gives each pod a user namespace.
	mapped bool

	quiet sync.RWMutex // held for reading by each call, for writing by the audit

	mu       sync.Mutex // guards following
	pods     map[string]*churnPod
	done     int
	answers  map[string]int // calls by method and code
	problems []string
	calm     time.Time // when the last fault ended; zero while there are faults
}

// churnPod is a pod as a kubelet knows it.
type churnPod struct {
	config       *runtimeapi.PodSandboxConfig
	sandbox      string // was reported ready, and no stop was requested
	container    string // was reported running, and no stop was requested
	old          []string
	removed      bool
	containerLog string // pattern of the files of the last container
}

func newChurn(n *node, callTimeout time.Duration) *churn {
	ctx, cancel := context.WithCancel(context.Background())
	n.t.Cleanup(cancel)
	return &churn{n: n, ctx: ctx, callTimeout: callTimeout, limit: 90 * time.Second, pods: map[string]*churnPod{}, answers: map[string]int{}, calm: time.Now()}
}

// setFaulty records whether there are faults from now on.
func (ch *churn) setFaulty(yes bool) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.calm = time.Now()
	if yes {
		ch.calm = time.Time{}
	}
}

func (ch *churn) problem(format string, args ...any) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.problems = append(ch.problems, fmt.Sprintf(format, args...))
}

// faults returns the problems since its last call.
func (ch *churn) faults() []string {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	list := ch.problems
	ch.problems = nil
	return list
}

// call makes one CRI call with a deadline. It waits for an audit to end.
func (ch *churn) call(method string, do func(ctx context.Context) error) error {
	ch.quiet.RLock()
	defer ch.quiet.RUnlock()
	callTimeout := ch.callTimeout
	ch.mu.Lock()
	if ch.cancelsEarly && ch.calm.IsZero() && rand.N(2) == 0 {
		callTimeout = rand.N(300 * time.Millisecond)
	}
	ch.mu.Unlock()
	ctx, cancel := context.WithTimeout(ch.ctx, callTimeout)
	defer cancel()
	begin := time.Now()
	err := do(ctx)
	code := codeOf(err)
	ch.mu.Lock()
	ch.answers[method+" "+code.String()]++
	ch.mu.Unlock()
	if took := time.Since(begin); took > ch.callTimeout+3*time.Second {
		ch.problem("%s: returned %v after its deadline", method, took-ch.callTimeout)
	}
	return err
}

// until repeats do until it succeeds, as a kubelet syncs a pod.
func (ch *churn) until(what string, do func() error) bool {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		err := do()
		if err == nil {
			return true
		}
		ch.mu.Lock()
		late := !ch.calm.IsZero() && time.Since(ch.calm) > ch.limit
		ch.mu.Unlock()
		if late || ch.ctx.Err() != nil {
			ch.problem("%s still fails %v after the last fault: %v", what, ch.limit, err)
			return false
		}
		time.Sleep(pause)
	}
}

const churnScript = `i=0; trap 'echo "end $i"; exit 0' TERM
while [ $i -lt 200 ]; do echo "line $i"; i=$((i+1)); done
while :; do echo "line $i"; i=$((i+1)); sleep 0.2; done`

// runPod runs one pod, from its first sync to its last.
func (ch *churn) runPod(name string, steps int) {
	n := ch.n
	p := &churnPod{config: n.pod(name)}
	if ch.mapped {
		p.config = n.mappedPod(name)
	}
	p.config.Linux.CgroupParent = n.faultCgroup(name)
	ch.mu.Lock()
	ch.pods[name] = p
	ch.mu.Unlock()
	if err := os.MkdirAll(filepath.Join(p.config.GetLogDirectory(), "c"), 0o755); err != nil {
		ch.problem("%v", err)
		return
	}
	up := ch.until("syncing pod "+name, func() error {
		if err := ch.sandbox(p); err != nil {
			return err
		}
		return ch.container(p)
	})
	for i := 0; up && i < steps; i++ {
		ch.pauses()
		switch i % 4 {
		case 0, 2:
			ch.probe(p)
		case 1:
			ch.rotate(p)
		case 3:
			ch.statuses(p)
		}
	}
	ch.end(name, p)
}

func (ch *churn) pauses() {
	if ch.pace > 0 {
		time.Sleep(ch.pace/2 + rand.N(ch.pace))
	}
}

// sandbox creates the sandbox of a pod unless there is one.
func (ch *churn) sandbox(p *churnPod) error {
	var list []*runtimeapi.PodSandbox
	if err := ch.call("ListPodSandbox", func(ctx context.Context) error {
		r, err := ch.n.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": p.config.GetMetadata().GetName()}}})
		list = r.GetItems()
		return err
	}); err != nil {
		return err
	}
	ready, attempt := "", uint32(0)
	for _, s := range list {
		attempt = max(attempt, s.GetMetadata().GetAttempt()+1)
		if s.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			if ready != "" {
				ch.problem("pod %s has two ready sandboxes: %s and %s", p.config.GetMetadata().GetName(), ready, s.GetId())
			}
			ready = s.GetId()
		} else if err := ch.call("RemovePodSandbox", func(ctx context.Context) error { // a kubelet does that later
			_, err := ch.n.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.GetId()})
			return err
		}); err != nil {
			return err
		}
	}
	if p.sandbox != "" && p.sandbox != ready && !ch.dockerForgets {
		ch.problem("pod %s: sandbox %s was reported ready, listed is %q", p.config.GetMetadata().GetName(), p.sandbox, ready)
	}
	if ready == "" {
		p.config.Metadata.Attempt = attempt
		if err := ch.call("RunPodSandbox", func(ctx context.Context) (err error) {
			ready, err = ch.n.run(ctx, p.config)
			return err
		}); err != nil {
			return err
		}
	}
	ch.mu.Lock()
	p.sandbox = ready
	ch.mu.Unlock()
	return nil
}

// container creates and starts the container of a pod unless one runs.
func (ch *churn) container(p *churnPod) error {
	var list []*runtimeapi.Container
	if err := ch.call("ListContainers", func(ctx context.Context) error {
		r, err := ch.n.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.sandbox}})
		list = r.GetContainers()
		return err
	}); err != nil {
		return err
	}
	attempt, id := uint32(0), ""
	for _, c := range list {
		attempt = max(attempt, c.GetMetadata().GetAttempt()+1)
		if c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING { // or two, if the response of a start was lost and another container was created
			id = c.GetId()
			p.containerLog = fmt.Sprintf("c/%d.log", c.GetMetadata().GetAttempt())
		}
	}
	if id == "" {
		config := shell("c", churnScript)
		if ch.mapped {
			config = mappedShell("c", churnScript)
		}
		config.Metadata.Attempt = attempt
		config.LogPath = fmt.Sprintf("c/%d.log", attempt)
		if err := ch.call("CreateContainer", func(ctx context.Context) error {
			r, err := ch.n.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandbox, Config: config, SandboxConfig: p.config})
			id = r.GetContainerId()
			return err
		}); err != nil {
			return err
		}
		if err := ch.call("StartContainer", func(ctx context.Context) error {
			_, err := ch.n.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			return err
		}); err != nil {
			return err
		}
		p.containerLog = config.GetLogPath()
	}
	ch.mu.Lock()
	p.container = id
	ch.mu.Unlock()
	return nil
}

// probe runs a command as a liveness probe. DeadlineExceeded is only for a command that ran too long: the kubelet kills the
// container for it.
func (ch *churn) probe(p *churnPod) {
	const timeout = 10
	var r *runtimeapi.ExecSyncResponse
	ctx, cancel := context.WithTimeout(ch.ctx, ch.callTimeout+timeout*time.Second)
	defer cancel()
	ch.quiet.RLock()
	defer ch.quiet.RUnlock()
	r, err := ch.n.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"echo", "well"}, Timeout: timeout})
	code := codeOf(err)
	ch.mu.Lock()
	ch.answers["ExecSync "+code.String()]++
	calm := !ch.dockerForgets && !ch.calm.IsZero() && time.Since(ch.calm) > 20*time.Second
	ch.mu.Unlock()
	switch {
	case code == codes.DeadlineExceeded:
		ch.problem("a probe whose command ends at once is DeadlineExceeded, for which a kubelet kills the container: %v", err)
	case err == nil && r.GetExitCode() == 126 && strings.HasPrefix(string(r.GetStdout()), "GetResourcePath: BaseFS of container"):
		// Docker 20.10 that was killed while it started a container can never run a command in it. The probe must
		// fail, so that the kubelet replaces the container.
	case err == nil && (r.GetExitCode() != 0 || string(r.GetStdout()) != "well\n"):
		ch.problem("a probe that succeeds: exit code %d, stdout %q, stderr %q", r.GetExitCode(), r.GetStdout(), r.GetStderr())
	case err != nil && calm:
		ch.problem("a probe without a fault: %v", err)
	}
}

// rotate rotates the log as the kubelet does.
func (ch *churn) rotate(p *churnPod) {
	log := filepath.Join(p.config.GetLogDirectory(), p.containerLog)
	old := fmt.Sprintf("%s.%d", log, time.Now().UnixNano())
	if err := os.Rename(log, old); err != nil {
		return // there is no log yet
	}
	if err := ch.call("ReopenContainerLog", func(ctx context.Context) error {
		_, err := ch.n.runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: p.container})
		return err
	}); err != nil {
		if _, missing := os.Lstat(log); missing != nil {
			_ = os.Rename(old, log)
		}
	}
}

// statuses expects the statuses of what was reported to run.
func (ch *churn) statuses(p *churnPod) {
	_ = ch.call("PodSandboxStatus", func(ctx context.Context) error {
		r, err := ch.n.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.sandbox})
		if err == nil && !ch.dockerForgets && (r.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || r.GetStatus().GetNetwork().GetIp() == "") || codeOf(err) == codes.NotFound {
			ch.problem("sandbox %s was reported ready: %v, %v", p.sandbox, r.GetStatus(), err)
		}
		return err
	})
	_ = ch.call("ContainerStatus", func(ctx context.Context) error {
		r, err := ch.n.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.container})
		if err == nil && !ch.dockerForgets && r.GetStatus().GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || codeOf(err) == codes.NotFound {
			ch.problem("container %s was reported running: %v, %v", p.container, r.GetStatus(), err)
		}
		return err
	})
}

// end stops and removes everything of a pod, and reads its last log.
func (ch *churn) end(name string, p *churnPod) {
	ch.mu.Lock()
	c := p.container
	p.container, p.sandbox = "", "" // unknown from here on
	ch.mu.Unlock()
	code := int32(-1)
	if c != "" {
		ch.until("stopping the container of "+name, func() error {
			return ch.call("StopContainer", func(ctx context.Context) error {
				_, err := ch.n.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 3})
				return err
			})
		})
		ch.until("the status of a container that was stopped", func() error {
			return ch.call("ContainerStatus", func(ctx context.Context) error {
				r, err := ch.n.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c})
				if err == nil && r.GetStatus().GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
					ch.problem("container %s was reported stopped: %v", c, r.GetStatus())
				}
				code = r.GetStatus().GetExitCode()
				return err
			})
		})
	}
	var kept map[string]bool
	if c != "" && ch.dockerForgets {
		kept = ch.dockerLog(c)
	}
	var all []*runtimeapi.PodSandbox
	ch.until("listing the sandboxes of "+name, func() error {
		return ch.call("ListPodSandbox", func(ctx context.Context) error {
			r, err := ch.n.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": name}}})
			all = r.GetItems()
			return err
		})
	})
	for _, s := range all {
		ch.until("stopping sandbox "+s.GetId(), func() error {
			return ch.call("StopPodSandbox", func(ctx context.Context) error {
				_, err := ch.n.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.GetId()})
				return err
			})
		})
		ch.until("removing sandbox "+s.GetId(), func() error {
			return ch.call("RemovePodSandbox", func(ctx context.Context) error {
				_, err := ch.n.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.GetId()})
				return err
			})
		})
	}
	if c != "" {
		ch.complete(name, filepath.Join(p.config.GetLogDirectory(), p.containerLog), code, kept)
	}
	_ = os.RemoveAll(p.config.GetLogDirectory())
	ch.mu.Lock()
	p.removed = true
	for _, s := range all {
		p.old = append(p.old, s.GetId())
	}
	ch.done++
	ch.mu.Unlock()
}

// dockerLog returns the lines of Docker's own log of a container. A Docker that is killed loses what it has read from a container
// and not written.
func (ch *churn) dockerLog(id string) map[string]bool {
	found := map[string]bool{}
	ch.until("reading Docker's log of container "+id, func() error {
		ctx, cancel := context.WithTimeout(ch.ctx, ch.callTimeout)
		defer cancel()
		body, err := ch.n.docker.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true})
		if err != nil {
			return err
		}
		defer body.Close()
		var all bytes.Buffer
		_, err = stdcopy.StdCopy(&all, io.Discard, body)
		for line := range strings.Lines(all.String()) {
			found[line] = true
		}
		return err
	})
	return found
}

// complete reads the log of a container with its rotated files: each line must be there once. kept are the lines that Docker has,
// if others may be missing.
func (ch *churn) complete(name, log string, code int32, kept map[string]bool) {
	files, _ := filepath.Glob(log + ".*")
	slices.Sort(files)
	next, lost, ended := 0, 0, false
	isLost := func(format string) bool { return kept != nil && !kept[fmt.Sprintf(format, next)] }
	for _, file := range append(files, log) {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		for line := range strings.Lines(string(text)) {
			_, rest, _ := strings.Cut(line, " stdout F ")
			var number int
			if _, err := fmt.Sscanf(rest, "line %d", &number); err == nil {
				for ; next < number && isLost("line %d\n"); next++ {
					lost++
				}
			}
			switch {
			case ended:
				ch.problem("log of %s: %q after its end; the files are\n%s", name, line, ends(append(files, log)))
			case rest == fmt.Sprintf("line %d\n", next):
				next++
				continue
			case rest == fmt.Sprintf("end %d\n", next), rest == fmt.Sprintf("end %d\n", next-1): // the signal came before i was counted up
				ended = true
				continue
			default:
				ch.problem("log of %s, %s: %q, want line %d", name, filepath.Base(file), line, next)
			}
			return
		}
	}
	if lost > 0 {
		ch.n.t.Logf("Docker has lost %d lines of container %s", lost, name)
	}
	if code == 0 && !ended && isLost("end %d\n") {
		ch.n.t.Logf("Docker has lost the last line of container %s", name)
	} else if code == 0 && !ended {
		ch.problem("log of %s: the end is missing after line %d", name, next-1)
	}
}

// ends returns the first and the last lines of each file.
func ends(files []string) string {
	var b strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		lines := slices.Collect(strings.Lines(string(text)))
		fmt.Fprintf(&b, "%s: %d lines, %v\n", filepath.Base(file), len(lines), err)
		for i, line := range lines {
			if i < 2 || i >= len(lines)-3 || strings.Contains(line, " end ") || i > 0 && strings.Contains(lines[i-1], " end ") {
				fmt.Fprintf(&b, "\t%d: %q\n", i, line)
			}
		}
	}
	return b.String()
}

// run runs pods with so many workers for d, and returns when all are removed.
func (ch *churn) run(workers int, d time.Duration, steps int) {
	end := time.Now().Add(d)
	stop := ch.others()
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := 0; time.Now().Before(end) && ch.ctx.Err() == nil; i++ {
				ch.runPod(fmt.Sprintf("churn-%d-%d", w, i), steps)
			}
		})
	}
	all.Wait()
	stop()
}

// others makes the calls that a kubelet makes all the time: lists, stats, events, metrics, status.
func (ch *churn) others() (stop func()) {
	end := make(chan struct{})
	var all sync.WaitGroup
	every := func(d time.Duration, do func()) {
		all.Go(func() {
			for {
				select {
				case <-end:
					return
				case <-time.After(d):
					do()
				}
			}
		})
	}
	r := func() runtimeapi.RuntimeServiceClient { return ch.n.runtime }
	every(time.Second, func() {
		_ = ch.call("ListPodSandbox", func(ctx context.Context) error {
			_, err := r().ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return err
		})
		_ = ch.call("ListContainers", func(ctx context.Context) error {
			_, err := r().ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return err
		})
	})
	every(3*time.Second, func() {
		_ = ch.call("ListPodSandboxStats", func(ctx context.Context) error {
			_, err := r().ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		})
		_ = ch.call("ListContainerStats", func(ctx context.Context) error {
			_, err := r().ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return err
		})
		_ = ch.call("ListPodSandboxMetrics", func(ctx context.Context) error {
			_, err := r().ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
			return err
		})
		_, _ = ch.n.scrape()
	})
	every(5*time.Second, func() {
		_ = ch.call("Status", func(ctx context.Context) error {
			_, err := r().Status(ctx, &runtimeapi.StatusRequest{})
			return err
		})
	})
	events, cancel := context.WithCancel(ch.ctx)
	every(200*time.Millisecond, func() {
		stream, err := r().GetContainerEvents(events, &runtimeapi.GetEventsRequest{})
		for err == nil {
			_, err = stream.Recv()
		}
	})
	return func() { close(end); cancel(); all.Wait() }
}

// scrape reads the daemon's metrics.
func (n *node) scrape() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.metrics+"/metrics", nil)
	if err != nil {
		return "", err
	}
	req.Close = true // it must not be counted
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// summary is how often each call was answered how.
func (ch *churn) summary() string {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(ch.answers)) {
		parts = append(parts, fmt.Sprintf("%s %d", key, ch.answers[key]))
	}
	return fmt.Sprintf("%d pods; %s", ch.done, strings.Join(parts, ", "))
}
