package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestWatchdogReportsOnlyWhileTheCheckSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hung atomic.Bool
		var pings atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		w := &watchdog{
			timeout: time.Minute, log: slog.New(slog.DiscardHandler),
			check: func(ctx context.Context) error {
				if hung.Load() {
					<-ctx.Done()
				}
				return ctx.Err()
			},
			notify: func(string) { pings.Add(1) },
		}
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		time.Sleep(time.Minute - time.Second)
		synctest.Wait()
		if got := pings.Load(); got != watchdogPings {
			t.Errorf("%d reports within the timeout, want %d", got, watchdogPings)
		}
		hung.Store(true)
		before := pings.Load()
		time.Sleep(10 * time.Minute)
		if got := pings.Load(); got != before {
			t.Errorf("%d reports of a daemon that hangs", got-before)
		}
		hung.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if pings.Load() == before {
			t.Error("no report of a daemon that has recovered")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWatchdogIsOfThisProcessOnly(t *testing.T) {
	for pid, want := range map[string]time.Duration{"": time.Second, fmt.Sprint(os.Getpid()): time.Second, "1": 0} {
		t.Setenv("WATCHDOG_USEC", "1000000")
		t.Setenv("WATCHDOG_PID", pid)
		if pid == "" {
			os.Unsetenv("WATCHDOG_PID")
		}
		if got := newWatchdog(nil, nil, slog.New(slog.DiscardHandler)).timeout; got != want {
			t.Errorf("WATCHDOG_PID=%s: %v, want %v", pid, got, want)
		}
	}
	os.Unsetenv("WATCHDOG_USEC")
	if err := newWatchdog(nil, nil, slog.New(slog.DiscardHandler)).Run(t.Context()); err != nil {
		t.Error(err)
	}
}

// A listServer serves ListPodSandbox with a function.
type listServer struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	list func(context.Context) error
}

func (s listServer) ListPodSandbox(ctx context.Context, _ *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{}, s.list(ctx)
}

func TestCheckCRIFailsOnlyIfTheServerHangs(t *testing.T) {
	dir, err := os.MkdirTemp("", "watchdog") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, c := range map[string]struct {
		list  func(context.Context) error
		fails bool
	}{
		"ok":           {func(context.Context) error { return nil }, false},
		"docker-away":  {func(context.Context) error { return status.Error(codes.Unavailable, "docker") }, false},
		"hung":         {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, true},
		"not-accepted": {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("unix", filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			limit := 10 * time.Second
			if c.fails {
				limit = 200 * time.Millisecond
			}
			if c.list != nil {
				srv := grpc.NewServer()
				runtimeapi.RegisterRuntimeServiceServer(srv, listServer{list: c.list})
				go func() { _ = srv.Serve(l) }()
				defer srv.Stop()
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			if err := checkCRI(ctx, l.Addr()); (err != nil) != c.fails {
				t.Errorf("%v, want an error: %v", err, c.fails)
			}
		})
	}
}
