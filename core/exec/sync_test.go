package exec_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine/enginetest"
	"berth/core/exec"
	"berth/core/labels"
	"berth/core/testmain"
)

// TestMain runs more tests in parallel: most wait for an Engine that hangs, or for timeouts.
func TestMain(m *testing.M) { testmain.M{M: m}.Run() }

type fakeNetworkAndLogs struct{}

func (fakeNetworkAndLogs) Addresses(string) ([]netip.Addr, bool, error) { return nil, true, nil }
func (fakeNetworkAndLogs) InNetNS(string, int) bool                     { return true }
func (fakeNetworkAndLogs) Observe(context.Context, *cache.Container)    {}
func (fakeNetworkAndLogs) Discard(string)                               {}

// newService returns a Service, its Engine, a client of that, and the ID of a running
// container, whose command is the last of programs if there is one.
func newService(t *testing.T, programs ...enginetest.Program) (*exec.Service, *enginetest.Engine, *client.Client, string) {
	t.Helper()
	e := enginetest.New(t)
	for _, program := range programs {
		e.Program("serve", program)
	}
	e.AddImage(enginetest.Image{}, "server")
	docker := e.Connect(t)
	log := slog.New(slog.DiscardHandler)
	containers := cache.New(cache.Config{Network: fakeNetworkAndLogs{}, Logs: fakeNetworkAndLogs{}}, docker, log)
	enginetest.Background(t, containers.Run)
	c := e.Client(t)
	set := labels.Set{Kind: labels.Container, SandboxID: "pod", Config: `{"metadata":{"name":"c"}}`}
	created, err := c.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"serve"}, Labels: set.Encode()}, &container.HostConfig{Init: new(bool)}, nil, nil, "k8s_c_web_ns_u_0")
	if err == nil {
		err = c.ContainerStart(t.Context(), created.ID, container.StartOptions{})
	}
	if err == nil {
		_, err = containers.Refresh(t.Context(), created.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	return exec.New(docker, containers, nil, log), e, c, created.ID
}

// onceRunning calls do, in the background, as soon as e runs an exec.
func onceRunning(t *testing.T, e *enginetest.Engine, do func()) {
	t.Helper()
	go func() {
		for t.Context().Err() == nil {
			if running(e) {
				do()
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
}

func TestSyncReturnsOutputAndExitCode(t *testing.T) {
	t.Parallel()
	service, e, _, id := newService(t)
	big := bytes.Repeat([]byte("x"), 1<<20)
	e.Program("flood", func(p *enginetest.Process) int {
		for range 20 {
			if _, err := p.Stdout.Write(big); err != nil {
				return 1
			}
		}
		_, _ = p.Stderr.Write([]byte("done"))
		return 0
	})
	out, errs, code, err := service.ExecSync(t.Context(), id, []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, time.Minute)
	if string(out) != "out\n" || string(errs) != "err\n" || code != 3 || err != nil {
		t.Errorf("%q, %q, %d, %v", out, errs, code, err)
	}
	out, _, code, err = service.ExecSync(t.Context(), id, []string{"flood"}, time.Minute)
	if len(out) != 16<<20-64<<10 || code != 0 || err != nil {
		t.Errorf("%d bytes of too many, %d, %v", len(out), code, err)
	}
	out, _, code, err = service.ExecSync(t.Context(), id, []string{"missing"}, time.Minute)
	if err != nil || code != 126 && code != 127 || !strings.Contains(string(out), "executable file not found") {
		t.Errorf("a command that is not there: %q, %d, %v; want the reason and 126 or 127", out, code, err)
	}
	if _, _, _, err := service.ExecSync(t.Context(), id, nil, 0); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no command: %v, want InvalidArgument", err)
	}
	if _, _, _, err := service.ExecSync(t.Context(), "nothing", []string{"true"}, 0); !errdefs.IsNotFound(err) {
		t.Errorf("no container: %v, want NotFound", err)
	}
}

func TestSyncReturnsAtTimeoutOrCancellation(t *testing.T) {
	t.Parallel()
	service, e, _, id := newService(t)
	start := time.Now()
	_, _, _, err := service.ExecSync(t.Context(), id, []string{"sleep", "1000"}, time.Second)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v, want DeadlineExceeded at once", err, time.Since(start))
	}
	ctx, cancel := context.WithCancel(t.Context())
	e.On("GET /exec/{id}/json", cancel)
	time.AfterFunc(300*time.Millisecond, cancel)
	if _, _, _, err := service.ExecSync(ctx, id, []string{"sleep", "1000"}, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v, want Canceled", err)
	}
}

// The kubelet takes a command that times out for a failed probe, so a Docker that hangs must
// be a different error.
func TestSyncIsUnavailableWhenDockerHangs(t *testing.T) {
	// Not parallel to other tests, because it counts goroutines of the whole process.
	syncs := map[string]func() error{}
	for _, route := range []string{"POST /containers/{id}/exec", "POST /exec/{id}/start", "GET /exec/{id}/json"} {
		service, e, _, id := newService(t)
		defer e.Hang(route)()
		syncs[route] = func() error {
			_, _, _, err := service.ExecSync(t.Context(), id, []string{"sleep", "1000"}, 300*time.Millisecond)
			return err
		}
	}
	before := stacks("net/http.ReadResponse")
	var all sync.WaitGroup
	for route, do := range syncs {
		all.Go(func() {
			start := time.Now()
			if err := do(); !errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 8*time.Second {
				t.Errorf("%s: %v after %v, want Unavailable soon after 300 ms", route, err, time.Since(start))
			}
		})
	}
	all.Wait()
	enginetest.Until(t, "a goroutine still waits for Docker", func() bool { return stacks("net/http.ReadResponse") <= before })
}

// A command that Docker has not started by its timeout has not run too long.
func TestSyncIsUnavailableWhenShimHangs(t *testing.T) {
	t.Parallel()
	service, e, _, id := newService(t)
	signals := &fakeSignals{e: e}
	e.PID = signals.pid
	service.SetSignal(signals.signal)
	resume := e.HangShims()
	defer resume()
	start := time.Now()
	_, _, _, err := service.ExecSync(t.Context(), id, []string{"sleep", "1000"}, 300*time.Millisecond)
	if !errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 8*time.Second {
		t.Errorf("%v after %v, want Unavailable soon after 300 ms", err, time.Since(start))
	}
	resume()
	enginetest.Until(t, "a command that was started too late is not killed", func() bool { return slices.Contains(signals.signals(), unix.SIGKILL) })
}

// A command that has ended in time has not run too long, whatever a Docker says that was restarted or stopped meanwhile.
func TestSyncIsUnavailableWhenDockerDoesNotNoticeTheEnd(t *testing.T) {
	t.Parallel()
	service, _, _, id := newService(t)
	service.SetSignal(func(string, int, unix.Signal) error { return exec.ErrProcessEnded })
	_, _, _, err := service.ExecSync(t.Context(), id, []string{"sleep", "1000"}, 300*time.Millisecond)
	if !errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want Unavailable", err)
	}
}

// A child may keep the output open after the command has ended.
func TestSyncReturnsWhenCommandHasEnded(t *testing.T) {
	t.Parallel()
	for name, timeout := range map[string]time.Duration{"no timeout": 0, "just enough": 500 * time.Millisecond, "long": time.Minute} {
		t.Run(name, func(t *testing.T) {
			service, e, _, id := newService(t)
			e.Program("daemonize", func(p *enginetest.Process) int {
				p.KeepOutput()
				_, _ = p.Stdout.Write([]byte("started"))
				return 7
			})
			start := time.Now()
			out, _, code, err := service.ExecSync(t.Context(), id, []string{"daemonize"}, timeout)
			if string(out) != "started" || code != 7 || err != nil || time.Since(start) > 5*time.Second {
				t.Errorf("%q, %d, %v after %v; want 7 at once", out, code, err, time.Since(start))
			}
		})
	}
}

// With a PID namespace that the pod shares, Docker 20.10 forgets the execs of a
// container that ends and leaves their streams open.
func TestExecEndsWithContainer(t *testing.T) {
	t.Parallel()
	service, e, _, id := newService(t)
	e.Program("stays", func(p *enginetest.Process) int {
		p.KeepOutput()
		_, _ = p.Stdout.Write([]byte("begun\n"))
		<-p.Context().Done()
		return 0
	})
	forget := func() {
		for _, s := range e.Execs() {
			e.ForgetExec(s.ID)
		}
	}
	onceRunning(t, e, forget)
	start := time.Now()
	if _, _, _, err := service.ExecSync(t.Context(), id, []string{"stays"}, 0); err == nil || time.Since(start) > 8*time.Second {
		t.Errorf("%v after %v, want an error soon", err, time.Since(start))
	}
	for name, dial := range map[string]func(*testing.T, string, bool, bool) streamClient{"SPDY": dialSPDY, "WebSocket": dialWebSocket} {
		response, err := serve(t, service).Exec(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"stays"}, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, response.GetUrl(), false, false)
		defer c.conn.Close()
		if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		forget()
		if err := c.conn.SetReadDeadline(time.Now().Add(enginetest.WaitTimeout)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the exec does not end", name)
		}
	}
}

// A command may close its output and go on.
func TestSyncWaitsForCommandThatHasClosedItsOutput(t *testing.T) {
	t.Parallel()
	service, e, _, id := newService(t)
	e.Program("quiet", func(p *enginetest.Process) int {
		p.CloseOutput()
		select {
		case <-p.Context().Done():
		case <-time.After(7 * time.Second): // longer than inspectTimeout
		}
		return 9
	})
	if _, _, code, err := service.ExecSync(t.Context(), id, []string{"quiet"}, time.Minute); code != 9 || err != nil {
		t.Errorf("%d, %v; want 9", code, err)
	}
}

// Commands that print much wait for each other; those that print little do not wait.
func TestSyncSharesMemory(t *testing.T) {
	service, e, _, id := newService(t)
	service.LimitMemory(4 << 20)
	e.Program("flood", func(p *enginetest.Process) int {
		for range 256 {
			if _, err := p.Stdout.Write(make([]byte, 32<<10)); err != nil {
				return 1
			}
		}
		return 0
	})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			out, _, code, err := service.ExecSync(t.Context(), id, []string{"flood"}, time.Minute)
			if len(out) != 8<<20 || code != 0 || err != nil {
				t.Errorf("%d bytes, %d, %v", len(out), code, err)
			}
		})
	}
	for range 20 {
		if out, _, _, err := service.ExecSync(t.Context(), id, []string{"sh", "-c", "echo out"}, time.Minute); string(out) != "out\n" || err != nil {
			t.Errorf("%q, %v", out, err)
		}
	}
	all.Wait()
	if !service.MemoryIsFree(4 << 20) {
		t.Error("memory was not released when all had ended")
	}
}

func TestSyncReturns137WhenContainerEnds(t *testing.T) {
	t.Parallel()
	service, e, _, id := newService(t)
	onceRunning(t, e, func() { e.Die(id, 0) })
	if _, _, code, err := service.ExecSync(t.Context(), id, []string{"sleep", "1000"}, time.Minute); code != 137 || err != nil {
		t.Errorf("exit code %d, %v; want 137", code, err)
	}
	enginetest.Until(t, "the container is not seen to end", func() bool {
		_, _, _, err := service.ExecSync(t.Context(), id, []string{"true"}, 0)
		return errdefs.IsFailedPrecondition(err)
	})
}

func TestSyncFailsWhenEngineStops(t *testing.T) {
	t.Parallel()
	service, e, _, id := newService(t)
	onceRunning(t, e, e.Stop)
	start := time.Now()
	if _, _, _, err := service.ExecSync(t.Context(), id, []string{"sleep", "1000"}, time.Minute); err == nil || time.Since(start) > 10*time.Second {
		t.Errorf("%v after %v, want an error at once", err, time.Since(start))
	}
}
