package network

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

// Dial connects to a TCP port on the loopback of the pod id, whose pause process is
// pid: in the network namespace that is bound for the pod or, where none is, in that
// of the process, if it is one of the sandbox's cgroup. It is never that of this
// process.
func (n *CNI) Dial(ctx context.Context, id string, pid, port int) (net.Conn, error) {
	netns := n.NetNS(id, pid)
	if netns != NetNSOfProcess(pid) {
		return Dial(ctx, netns, port)
	}
	f, err := openNetNS(id, pid)
	if err != nil {
		return nil, fmt.Errorf("network namespace of pod %s: %w", id, err)
	}
	defer f.Close()
	return Dial(ctx, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), port)
}

// openNetNS opens the network namespace of the process pid, which must be one of
// the sandbox id. The number is from a list that may be seconds old, and by now it
// may be that of any process of the node.
func openNetNS(id string, pid int) (*os.File, error) {
	over := func(err error) error {
		return fmt.Errorf("the process %d has ended: %w: %w", pid, err, errdefs.ErrFailedPrecondition)
	}
	handle, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, over(err)
	}
	defer unix.Close(handle)
	f, err := os.Open(NetNSOfProcess(pid))
	if err != nil {
		return nil, over(err)
	}
	cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil {
		// If it is still there, all that was read by its number is its own.
		err = unix.PidfdSendSignal(handle, 0, nil, 0)
	}
	if err != nil {
		return nil, errors.Join(over(err), f.Close())
	}
	if id == "" || !strings.Contains(string(cgroup), id) {
		return nil, errors.Join(fmt.Errorf("process %d is not in the cgroup of the sandbox: %w", pid, errdefs.ErrFailedPrecondition), f.Close())
	}
	return f, nil
}

// Dial connects to a TCP port on the loopback of the network namespace at the
// path netns, IPv4 first, then IPv6. With netns "" it is that of this process, and
// only then.
func Dial(ctx context.Context, netns string, port int) (conn net.Conn, err error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("port %d: %w", port, errdefs.ErrInvalidArgument)
	}
	if netns == "" {
		return dialLoopback(ctx, port)
	}
	err = ns.WithNetNSPath(netns, func(own ns.NetNS) error {
		if err := isOther(own); err != nil {
			return err
		}
		conn, err = dialLoopback(ctx, port)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in network namespace %s: %w", netns, err)
	}
	return conn, nil
}

// isOther returns nil if this thread is in another network namespace than own.
func isOther(own ns.NetNS) error {
	ours, err := stat(fmt.Sprintf("/proc/thread-self/fd/%d", own.Fd()))
	if err != nil {
		return err
	}
	entered, err := stat("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	if entered == ours {
		return fmt.Errorf("it is the node's own, not a pod's: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// dialLoopback stays on its thread: literal addresses need no resolver, and
// one at a time no race between families, whose goroutines would be in another
// network namespace.
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
