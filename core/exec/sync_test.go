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

// Most tests wait for an Engine that hangs, or for time to pass.
func TestMain(m *testing.M) { testmain.M{M: m}.Run() }

type nothing struct{}

func (nothing) Addresses(string) ([]netip.Addr, bool)  { return nil, true }
func (nothing) InNetNS(string, int) bool               { return true }
func (nothing) Keep(context.Context, *cache.Container) {}
func (nothing) Drop(string)                            {}

// newRoom returns the room, its Engine and a container that runs there, and in it
// the last of first if there is one.
func newRoom(t *testing.T, first ...enginetest.Program) (*exec.Service, *enginetest.Engine, *client.Client, string) {
	t.Helper()
	e := enginetest.New(t)
	for _, program := range first {
		e.Program("serve", program)
	}
	e.AddImage(enginetest.Image{}, "server")
	docker := e.Connect(t)
	log := slog.New(slog.DiscardHandler)
	seen := cache.New(cache.Config{Network: nothing{}, Logs: nothing{}}, docker, log)
	enginetest.Background(t, seen.Run)
	c := e.Client(t)
	said := labels.Set{Kind: labels.Container, SandboxID: "pod", Config: `{"metadata":{"name":"c"}}`}
	made, err := c.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"serve"}, Labels: said.Encode()}, &container.HostConfig{Init: new(bool)}, nil, nil, "k8s_c_web_ns_u_0")
	if err == nil {
		err = c.ContainerStart(t.Context(), made.ID, container.StartOptions{})
	}
	if err == nil {
		_, err = seen.Refresh(t.Context(), made.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	return exec.New(docker, seen, nil, log), e, c, made.ID
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

func TestSync(t *testing.T) {
	t.Parallel()
	room, e, _, id := newRoom(t)
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
	out, errs, code, err := room.Sync(t.Context(), id, []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, time.Minute)
	if string(out) != "out\n" || string(errs) != "err\n" || code != 3 || err != nil {
		t.Errorf("%q, %q, %d, %v", out, errs, code, err)
	}
	out, _, code, err = room.Sync(t.Context(), id, []string{"flood"}, time.Minute)
	if len(out) != 16<<20-64<<10 || code != 0 || err != nil {
		t.Errorf("%d bytes of too many, %d, %v", len(out), code, err)
	}
	out, _, code, err = room.Sync(t.Context(), id, []string{"missing"}, time.Minute)
	if err != nil || code != 126 && code != 127 || !strings.Contains(string(out), "executable file not found") {
		t.Errorf("a command that is not there: %q, %d, %v; want the reason and 126 or 127", out, code, err)
	}
	if _, _, _, err := room.Sync(t.Context(), id, nil, 0); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no command: %v, want InvalidArgument", err)
	}
	if _, _, _, err := room.Sync(t.Context(), "nothing", []string{"true"}, 0); !errdefs.IsNotFound(err) {
		t.Errorf("no container: %v, want NotFound", err)
	}
}

func TestSyncRunsOutOfTime(t *testing.T) {
	room, e, _, id := newRoom(t)
	began := time.Now()
	_, _, _, err := room.Sync(t.Context(), id, []string{"sleep", "1000"}, time.Second) // of which its start is a part
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v, want DeadlineExceeded at once", err, time.Since(began))
	}
	ctx, hangUp := context.WithCancel(t.Context())
	e.On("GET /exec/{id}/json", hangUp)
	time.AfterFunc(300*time.Millisecond, hangUp)
	if _, _, _, err := room.Sync(ctx, id, []string{"sleep", "1000"}, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("hung up: %v, want Canceled", err)
	}
}

// A Docker that hangs is not a command that runs out of time: the kubelet would take
// that for a failed probe.
func TestSyncIsUnavailableWhenDockerHangs(t *testing.T) {
	// Not parallel to other tests, because it counts goroutines of the whole process.
	syncs := map[string]func() error{}
	for _, route := range []string{"POST /containers/{id}/exec", "POST /exec/{id}/start", "GET /exec/{id}/json"} {
		room, e, _, id := newRoom(t)
		defer e.Hang(route)()
		syncs[route] = func() error {
			_, _, _, err := room.Sync(t.Context(), id, []string{"sleep", "1000"}, 300*time.Millisecond)
			return err
		}
	}
	before := stacks("net/http.ReadResponse")
	var all sync.WaitGroup
	for route, do := range syncs {
		all.Go(func() {
			begun := time.Now()
			if err := do(); !errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 8*time.Second {
				t.Errorf("%s: %v after %v, want Unavailable soon after 300 ms", route, err, time.Since(begun))
			}
		})
	}
	all.Wait()
	enginetest.Until(t, "a goroutine waits for an answer of Docker", func() bool { return stacks("net/http.ReadResponse") <= before })
}

// A command that Docker has not begun when its time is up has not run too long.
func TestSyncIsUnavailableWhenAShimHangs(t *testing.T) {
	room, e, _, id := newRoom(t)
	k := &killer{e: e}
	e.PID = k.pid
	room.OnSignal(k.signal)
	goOn := e.HangShims()
	defer goOn()
	begun := time.Now()
	_, _, _, err := room.Sync(t.Context(), id, []string{"sleep", "1000"}, 300*time.Millisecond)
	if !errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 8*time.Second {
		t.Errorf("%v after %v, want Unavailable soon after 300 ms", err, time.Since(begun))
	}
	goOn()
	enginetest.Until(t, "a command that was begun too late is not killed", func() bool { return slices.Contains(k.signals(), unix.SIGKILL) })
}

// The command's own end counts, not that of a child that has its output.
func TestSyncReturnsWhenTheCommandHasEnded(t *testing.T) {
	for name, timeout := range map[string]time.Duration{"no timeout": 0, "just enough": 500 * time.Millisecond, "long": time.Minute} {
		t.Run(name, func(t *testing.T) {
			room, e, _, id := newRoom(t)
			e.Program("daemonize", func(p *enginetest.Process) int {
				p.KeepOutput()
				_, _ = p.Stdout.Write([]byte("started"))
				return 7
			})
			begun := time.Now()
			out, _, code, err := room.Sync(t.Context(), id, []string{"daemonize"}, timeout)
			if string(out) != "started" || code != 7 || err != nil || time.Since(begun) > 5*time.Second {
				t.Errorf("%q, %d, %v after %v; want 7 at once", out, code, err, time.Since(begun))
			}
		})
	}
}

// With a PID namespace that the pod shares, Docker 20.10 forgets the execs of a
// container that ends and leaves their streams open.
func TestExecEndsWithItsContainer(t *testing.T) {
	t.Parallel()
	room, e, _, id := newRoom(t)
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
	begun := time.Now()
	if _, _, _, err := room.Sync(t.Context(), id, []string{"stays"}, 0); err == nil || time.Since(begun) > 8*time.Second {
		t.Errorf("%v after %v, want an error soon", err, time.Since(begun))
	}
	for name, dial := range map[string]func(*testing.T, string, bool, bool) caller{"SPDY": bySPDY, "WebSocket": byWebSocket} {
		told, err := serve(t, room).Exec(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"stays"}, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, told.GetUrl(), false, false)
		defer c.conn.Close()
		if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		forget()
		if err := c.conn.SetReadDeadline(time.Now().Add(enginetest.Patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the exec goes on", name)
		}
	}
}

// A command may close its output and go on.
func TestSyncWaitsForACommandWithoutOutput(t *testing.T) {
	t.Parallel()
	room, e, _, id := newRoom(t)
	e.Program("quiet", func(p *enginetest.Process) int {
		p.CloseOutput()
		select {
		case <-p.Context().Done():
		case <-time.After(7 * time.Second): // longer than Docker may take to answer
		}
		return 9
	})
	if _, _, code, err := room.Sync(t.Context(), id, []string{"quiet"}, time.Minute); code != 9 || err != nil {
		t.Errorf("%d, %v; want 9", code, err)
	}
}

// However much all of them print, they get their turn, and what is said little of is
// not held up.
func TestSyncSharesMemory(t *testing.T) {
	room, e, _, id := newRoom(t)
	room.LimitMemory(4 << 20)
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
			out, _, code, err := room.Sync(t.Context(), id, []string{"flood"}, time.Minute)
			if len(out) != 8<<20 || code != 0 || err != nil {
				t.Errorf("%d bytes, %d, %v", len(out), code, err)
			}
		})
	}
	for range 20 {
		if out, _, _, err := room.Sync(t.Context(), id, []string{"sh", "-c", "echo out"}, time.Minute); string(out) != "out\n" || err != nil {
			t.Errorf("%q, %v", out, err)
		}
	}
	all.Wait()
	if !room.MemoryIsFree(4 << 20) {
		t.Error("memory is taken of the limit when all have ended")
	}
}

func TestSyncInWhatEnds(t *testing.T) {
	t.Parallel()
	room, e, _, id := newRoom(t)
	onceRunning(t, e, func() { e.Die(id, 0) })
	if _, _, code, err := room.Sync(t.Context(), id, []string{"sleep", "1000"}, time.Minute); code != 137 || err != nil {
		t.Errorf("exit code %d, %v; want 137", code, err)
	}
	enginetest.Until(t, "it is not seen to end", func() bool {
		_, _, _, err := room.Sync(t.Context(), id, []string{"true"}, 0)
		return errdefs.IsFailedPrecondition(err)
	})
}

func TestSyncWhileTheEngineGoes(t *testing.T) {
	t.Parallel()
	room, e, _, id := newRoom(t)
	onceRunning(t, e, e.Stop)
	began := time.Now()
	if _, _, _, err := room.Sync(t.Context(), id, []string{"sleep", "1000"}, time.Minute); err == nil || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %v, want an error at once", err, time.Since(began))
	}
}
