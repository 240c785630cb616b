package network

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/plugins/pkg/ns"
)

// Dial connects to a TCP port on the loopback of the network namespace at the
// path netns, IPv4 first, then IPv6. With netns "" it is that of this process.
func Dial(ctx context.Context, netns string, port int) (conn net.Conn, err error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("port %d: %w", port, errdefs.ErrInvalidArgument)
	}
	if netns == "" {
		return dialLoopback(ctx, port)
	}
	err = ns.WithNetNSPath(netns, func(ns.NetNS) error {
		conn, err = dialLoopback(ctx, port)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in network namespace %s: %w", netns, err)
	}
	return conn, nil
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
