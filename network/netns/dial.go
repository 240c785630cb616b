package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// Dial connects to a TCP port on the loopback interface of the pod id. It uses the network
// namespace that is bound for the pod or, if there is none, that of its pause process pid,
// which must be in the cgroup of the sandbox. It never dials in the daemon's own namespace.
func (s *Store) Dial(ctx context.Context, id string, pid, port int) (net.Conn, error) {
	if path, bound := s.Path(id); bound {
		return Dial(ctx, path, port)
	}
	f, err := openOfSandbox(id, pid)
	if err != nil {
		return nil, fmt.Errorf("network namespace of pod %s: %w", id, err)
	}
	defer f.Close()
	return Dial(ctx, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), port)
}

// openOfSandbox opens the network namespace of the process pid, which must be in the cgroup
// of the sandbox id. The pid is from a cache that may be seconds old, so by now it may
// belong to any process of the node.
func openOfSandbox(id string, pid int) (*os.File, error) {
	processEnded := func(err error) error {
		return fmt.Errorf("process %d has ended: %w: %w", pid, err, errdefs.ErrFailedPrecondition)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, processEnded(err)
	}
	defer unix.Close(pidfd)
	f, err := os.Open(ProcessPath(pid))
	if err != nil {
		return nil, processEnded(err)
	}
	cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil {
		// If the process still exists, everything that was read by its pid is its own.
		err = unix.PidfdSendSignal(pidfd, 0, nil, 0)
	}
	if err != nil {
		return nil, errors.Join(processEnded(err), f.Close())
	}
	if id == "" || !strings.Contains(string(cgroup), id) {
		return nil, errors.Join(fmt.Errorf("process %d is not in the cgroup of the sandbox: %w", pid, errdefs.ErrFailedPrecondition), f.Close())
	}
	return f, nil
}

// Dial connects to a TCP port on the loopback interface in the network namespace at path,
// over IPv4 or else IPv6. An empty path is the daemon's own network namespace; a path that
// leads to that one is refused with an error of kind FailedPrecondition.
func Dial(ctx context.Context, path string, port int) (conn net.Conn, err error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("port %d: must be between 1 and 65535: %w", port, errdefs.ErrInvalidArgument)
	}
	if path == "" {
		return dialLoopback(ctx, port)
	}
	err = ns.WithNetNSPath(path, func(own ns.NetNS) error {
		if err := requireOtherNetNS(own); err != nil {
			return err
		}
		conn, err = dialLoopback(ctx, port)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in network namespace %s: %w", path, err)
	}
	return conn, nil
}

// requireOtherNetNS returns nil if this thread is in another network namespace than own.
func requireOtherNetNS(own ns.NetNS) error {
	ownNS, err := statIdentity(fmt.Sprintf("/proc/thread-self/fd/%d", own.Fd()))
	if err != nil {
		return err
	}
	entered, err := statIdentity("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	if entered == ownNS {
		return fmt.Errorf("it is the network namespace of the node, not of a pod: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// dialLoopback dials on the calling thread, the only one that is in the network namespace:
// literal addresses need no resolver, and dialling one address family after the other
// needs no goroutines.
func dialLoopback(ctx context.Context, port int) (net.Conn, error) {
	dialer := net.Dialer{FallbackDelay: -1}
	conn, err4 := dialer.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err4 == nil || ctx.Err() != nil {
		return conn, err4
	}
	conn, err6 := dialer.DialContext(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(port)))
	if err6 != nil {
		return nil, fmt.Errorf("%w; %w", err4, err6)
	}
	return conn, nil
}
