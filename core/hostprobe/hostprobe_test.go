package hostprobe

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestKernelAtLeast(t *testing.T) {
	for release, want := range map[string]bool{"5.12.0": true, "5.4.0-1": false, "6.1": true, "4.19": false, "odd": false} {
		if got := KernelAtLeast(release, 5, 12); got != want {
			t.Errorf("%s: %v", release, got)
		}
	}
}

// A connect to a Unix socket whose backlog is full blocks.
func TestPeerPIDTimesOutOnAFullBacklog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for range 3 {
		conn, err := net.DialTimeout("unix", path, 100*time.Millisecond)
		if err == nil {
			defer conn.Close()
		}
	}
	if _, err := PeerPID(path); err == nil {
		t.Error("got a process, want an error: the backlog is full")
	}
	if took := time.Since(begin); took > 10*localDialTimeout {
		t.Errorf("it took %v", took)
	}
}
