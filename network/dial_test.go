package network

import (
	"errors"
	"net"
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
