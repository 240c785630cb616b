package network

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
)

func TestDialOwnNamespace(t *testing.T) {
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
				t.Errorf("nobody listens: got %v, want that it was refused", err)
			}
		})
	}
}

func TestDialNoPort(t *testing.T) {
	for _, port := range []int{-1, 0, 65536} {
		if _, err := Dial(t.Context(), "", port); !errdefs.IsInvalidArgument(err) {
			t.Errorf("port %d: got %v, want an error of kind InvalidArgument", port, err)
		}
	}
}

func TestDialNoNamespace(t *testing.T) {
	if _, err := Dial(t.Context(), "/proc/self/no-such-thing", 80); err == nil {
		t.Error("got nil, want an error")
	}
}

// A process number that a list still has may be that of a process of the node.
func TestDialRefusesTheNodesOwnNamespace(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	if conn, err := Dial(t.Context(), NetNSOfProcess(os.Getpid()), port); err == nil {
		conn.Close()
		t.Error("the node's own loopback was dialled by path")
	}
	n := New(Config{NetNSDir: t.TempDir()}, slog.New(slog.DiscardHandler))
	id := strings.Repeat("a", 64)
	if conn, err := n.Dial(t.Context(), id, os.Getpid(), port); err == nil {
		conn.Close()
		t.Error("the node's own loopback was dialled by process")
	} else if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "cgroup") {
		t.Errorf("%v, want FailedPrecondition that names the cgroup", err)
	}
}

// A namespace that is another one is not dialled either, if its process is not one
// of the sandbox.
func TestDialRefusesAProcessOfAnotherCgroup(t *testing.T) {
	t.Parallel()
	if !inOwnNamespaces(t) {
		return
	}
	pod := pause(t)
	n := New(Config{NetNSDir: t.TempDir()}, slog.New(slog.DiscardHandler))
	if _, err := n.Dial(t.Context(), strings.Repeat("a", 64), pod.Process.Pid, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a process of no sandbox: %v, want FailedPrecondition", err)
	}
	// One that is of it is: nobody listens there.
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pod.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, id, _ := strings.Cut(strings.TrimSpace(string(text)), ":/")
	if id == "" {
		t.Skip("all processes are in the root cgroup")
	}
	if _, err := n.Dial(t.Context(), id, pod.Process.Pid, 1); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the sandbox's process: %v, want that it was refused", err)
	}
	if err := pod.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = pod.Wait()
	if _, err := n.Dial(t.Context(), id, pod.Process.Pid, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a process that has ended: %v, want FailedPrecondition", err)
	}
}
