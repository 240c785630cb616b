package exec_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"berth/core/engine/enginetest"
	"berth/core/exec"
	"berth/core/journal"
	"berth/core/labels"
	"berth/core/view"
)

type nothing struct{}

func (nothing) Addresses(string) ([]netip.Addr, bool) { return nil, true }
func (nothing) Same(string, int) bool                 { return true }
func (nothing) Keep(context.Context, *view.Container) {}
func (nothing) Drop(string)                           {}

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
	notes, err := journal.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	shelf := func(name string) *journal.Shelf {
		s, err := notes.Shelf(name)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	log := slog.New(slog.DiscardHandler)
	seen := view.New(view.Config{Network: nothing{}, Failures: shelf("failures"), Updates: shelf("updates"), Logs: nothing{}}, docker, log)
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

func TestSync(t *testing.T) {
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
	_, _, _, err = room.Sync(t.Context(), id, []string{"missing"}, time.Minute)
	if !errdefs.IsUnknown(err) || !strings.Contains(err.Error(), "executable file not found") {
		t.Errorf("a command that is not there: %v, want Unknown with the reason", err)
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
	_, _, _, err := room.Sync(t.Context(), id, []string{"sleep", "1000"}, 300*time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v, want DeadlineExceeded at once", err, time.Since(began))
	}
	ctx, hangUp := context.WithCancel(t.Context())
	e.On("GET /exec/{id}/json", hangUp)
	time.AfterFunc(300*time.Millisecond, hangUp)
	if _, _, _, err := room.Sync(ctx, id, []string{"sleep", "1000"}, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("hung up: %v, want Canceled", err)
	}
	// Also if the Engine never answers.
	release := e.Hang("POST /containers/{id}/exec")
	defer release()
	if _, _, _, err := room.Sync(t.Context(), id, []string{"true"}, 300*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v, want DeadlineExceeded", err)
	}
}

func TestSyncInWhatEnds(t *testing.T) {
	room, e, _, id := newRoom(t)
	time.AfterFunc(200*time.Millisecond, func() { e.Die(id, 0) })
	if _, _, code, err := room.Sync(t.Context(), id, []string{"sleep", "1000"}, time.Minute); code != 137 || err != nil {
		t.Errorf("exit code %d, %v; want 137", code, err)
	}
	enginetest.Until(t, "it is not seen to end", func() bool {
		_, _, _, err := room.Sync(t.Context(), id, []string{"true"}, 0)
		return errdefs.IsFailedPrecondition(err)
	})
}

func TestSyncWhileTheEngineGoes(t *testing.T) {
	room, e, _, id := newRoom(t)
	time.AfterFunc(200*time.Millisecond, e.Stop)
	began := time.Now()
	if _, _, _, err := room.Sync(t.Context(), id, []string{"sleep", "1000"}, time.Minute); err == nil || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %v, want an error at once", err, time.Since(began))
	}
}
