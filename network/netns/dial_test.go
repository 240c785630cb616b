package netns

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/network/networktest"
)

func TestDialEmptyPathIsOwnNamespace(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(addr, func(t *testing.T) {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Skipf("needs %s: %v", addr, err)
			}
			port := l.Addr().(*net.TCPAddr).Port
			conn, err := Dial(t.Context(), "", port)
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			l.Close()
			if _, err := Dial(t.Context(), "", port); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("nothing listens: got %v, want ECONNREFUSED", err)
			}
		})
	}
}

func TestDialRefusesInvalidPorts(t *testing.T) {
	for _, port := range []int{-1, 0, 65536} {
		if _, err := Dial(t.Context(), "", port); !errdefs.IsInvalidArgument(err) {
			t.Errorf("port %d: got %v, want an error of kind InvalidArgument", port, err)
		}
	}
}

func TestDialFailsWithoutNamespace(t *testing.T) {
	if _, err := Dial(t.Context(), "/proc/self/no-such-thing", 80); err == nil {
		t.Error("got nil, want an error")
	}
}

// A pid from the cache may have been reused by a process of the node.
func TestDialRefusesNamespaceOfNode(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	if conn, err := Dial(t.Context(), ProcessPath(os.Getpid()), port); err == nil {
		conn.Close()
		t.Error("the node's loopback was dialled by path")
	}
	s := New(Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	id := strings.Repeat("a", 64)
	if conn, err := s.Dial(t.Context(), id, os.Getpid(), port); err == nil {
		conn.Close()
		t.Error("the node's loopback was dialled by pid")
	} else if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "cgroup") {
		t.Errorf("%v, want FailedPrecondition that names the cgroup", err)
	}
}

// The namespace of a process that is not in the cgroup of the sandbox is not dialled, even if
// it is not that of the node.
func TestDialRefusesProcessOutsideSandboxCgroup(t *testing.T) {
	t.Parallel()
	if !networktest.InOwnNamespaces(t) {
		return
	}
	pod := networktest.StartPause(t)
	s := New(Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if _, err := s.Dial(t.Context(), strings.Repeat("a", 64), pod.Process.Pid, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a process outside the cgroup: %v, want FailedPrecondition", err)
	}
	// A process in the cgroup is accepted; nothing listens on the port.
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pod.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, id, _ := strings.Cut(strings.TrimSpace(string(text)), ":/")
	if id == "" {
		t.Skip("all processes are in the root cgroup")
	}
	if _, err := s.Dial(t.Context(), id, pod.Process.Pid, 1); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a process in the cgroup: %v, want ECONNREFUSED", err)
	}
	networktest.Kill(pod)
	if _, err := s.Dial(t.Context(), id, pod.Process.Pid, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a process that has ended: %v, want FailedPrecondition", err)
	}
}
