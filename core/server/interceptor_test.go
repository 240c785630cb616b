package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

func TestErrorsBecomeGRPCCodes(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want codes.Code
	}{
		"nothing":              {nil, codes.OK},
		"not found":            {fmt.Errorf("x: %w", errdefs.ErrNotFound), codes.NotFound},
		"bad request":          {fmt.Errorf("x: %w", errdefs.ErrInvalidArgument), codes.InvalidArgument},
		"in the way":           {fmt.Errorf("x: %w", errdefs.ErrConflict), codes.FailedPrecondition},
		"a command too long":   {fmt.Errorf("x: %w", engine.ErrCommandTimeout), codes.DeadlineExceeded},
		"out of our own time":  {fmt.Errorf("x: %w", context.DeadlineExceeded), codes.Unavailable},
		"away and out of time": {fmt.Errorf("x: %w: %w", errdefs.ErrUnavailable, context.DeadlineExceeded), codes.Unavailable},
		"the Engine is away":   {fmt.Errorf("x: %w: %w", errdefs.ErrUnavailable, errors.New("y")), codes.Unavailable},
		"the Engine hung up":   {fmt.Errorf("x: %w", io.ErrUnexpectedEOF), codes.Unavailable},
		"a status of its own":  {status.Error(codes.ResourceExhausted, "x"), codes.ResourceExhausted},
		"nobody knows":         {errors.New("x"), codes.Unknown},
		"not found and some":   {errors.Join(errdefs.ErrNotFound, errors.New("x")), codes.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			got := toGRPCError(t.Context(), tt.err)
			if status.Code(got) != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestCallersDeadlineIsDeadlineExceeded(t *testing.T) {
	ctx, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	if got := toGRPCError(ctx, fmt.Errorf("x: %w", ctx.Err())); status.Code(got) != codes.DeadlineExceeded {
		t.Errorf("got %v", got)
	}
	if got := toGRPCError(ctx, errdefs.ErrUnavailable); status.Code(got) != codes.Unavailable {
		t.Errorf("got %v", got)
	}
}

// TestLongErrorsAreShortened: registries and images have a say in the text of errors, and the kubelet logs
// it with each retry.
func TestLongErrorsAreShortened(t *testing.T) {
	long := strings.Repeat("x", 1<<20) + " the cause"
	for _, err := range []error{errors.New(long), fmt.Errorf("%s: %w", long, errdefs.ErrNotFound)} {
		got := toGRPCError(t.Context(), err)
		if n := len(got.Error()); n > 5<<10 || !strings.Contains(got.Error(), "the cause") {
			t.Errorf("%d bytes: %.200s", n, got)
		}
	}
}

func TestEachCallIsLoggedOnceAndPanicsAreErrors(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	reg := prometheus.NewPedanticRegistry()
	calls := newCallDuration(reg)
	call := &grpc.UnaryServerInfo{FullMethod: "/runtime.v1.RuntimeService/ContainerStatus"}
	req := &runtimeapi.ContainerStatusRequest{ContainerId: "c1"}
	_, err := intercept(log, calls)(t.Context(), req, call, func(context.Context, any) (any, error) { return nil, errdefs.ErrNotFound })
	if status.Code(err) != codes.NotFound || strings.Count(out.String(), "\n") != 1 || !strings.Contains(out.String(), "container=c1") {
		t.Errorf("%v\n%s", err, &out)
	}
	_, err = intercept(log, calls)(t.Context(), req, call, func(context.Context, any) (any, error) { panic("a bug") })
	if status.Code(err) != codes.Internal {
		t.Errorf("a panic: %v, want Internal", err)
	}
	if n, err := testutil.GatherAndCount(reg, "berthd_call_duration_seconds"); err != nil || n != 2 {
		t.Errorf("%d series, %v; want one of each code", n, err)
	}
}

func TestLogLevels(t *testing.T) {
	for name, tt := range map[string]struct {
		method string
		code   codes.Code
		want   slog.Level
	}{
		"went well":                              {"ListContainers", codes.OK, slog.LevelDebug},
		"a log that Docker rotates":              {"ReopenContainerLog", codes.FailedPrecondition, slog.LevelDebug},
		"a log that could not be reopened":       {"ReopenContainerLog", codes.Unknown, slog.LevelError},
		"a container in a sandbox that is over":  {"CreateContainer", codes.FailedPrecondition, slog.LevelError},
		"a probe that has run out of its time":   {"ExecSync", codes.DeadlineExceeded, slog.LevelInfo},
		"anything while the Engine is not there": {"CreateContainer", codes.Unavailable, slog.LevelInfo},
	} {
		t.Run(name, func(t *testing.T) {
			if got := logLevel(tt.method, status.Error(tt.code, "x")); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestVersionIsSemantic(t *testing.T) {
	for in, want := range map[string]string{
		"20.10.24+dfsg1": "20.10.24+dfsg1", "29.0.0-rc.1": "29.0.0-rc.1", "26.1": "26.1", "28.5.2 (build x)": "28.5.2", "dev": "0.0.0",
	} {
		if got := version(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestChunksHoldAllRowsInOrder(t *testing.T) {
	row := func(size int) *runtimeapi.PodSandbox {
		return &runtimeapi.PodSandbox{Annotations: map[string]string{"large": strings.Repeat("x", size)}}
	}
	for _, c := range []struct {
		what  string
		bytes []int
		want  []int // rows of each piece
	}{
		{"nothing", nil, nil},
		{"small rows", slices.Repeat([]int{10}, 5000), []int{5000}},
		{"rows of 300 KiB", slices.Repeat([]int{300 << 10}, 7), []int{3, 3, 1}},
		{"one that is large by itself", []int{10, 5 << 20, 10}, []int{1, 1, 1}},
	} {
		t.Run(c.what, func(t *testing.T) {
			var list []*runtimeapi.PodSandbox
			for _, n := range c.bytes {
				list = append(list, row(n))
			}
			var got []int
			if err := sendChunks(list, func(part []*runtimeapi.PodSandbox) error { got = append(got, len(part)); return nil }); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("pieces of %v rows, want %v", got, c.want)
			}
		})
	}
}
