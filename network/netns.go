package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// path is our own handle on the network namespace of the pod id.
func (n *CNI) path(id string) string {
	return filepath.Join(n.cfg.RunDir, "netns", id)
}

// Bind keeps a handle on the network namespace that the process pid lives in,
// so that it outlives the process, and returns its path.
func (n *CNI) Bind(id string, pid int) (string, error) {
	path := n.path(id)
	if err := n.mountpoint(filepath.Dir(path)); err != nil {
		return "", fmt.Errorf("netns: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return "", fmt.Errorf("netns: %w", err)
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	if err := unix.Mount(OfProcess(pid), path, "", unix.MS_BIND, ""); err != nil {
		return "", errors.Join(fmt.Errorf("netns of process %d: bind to %s: %w", pid, path, err), os.Remove(path))
	}
	return path, nil
}

// mountpoint makes dir a shared mount point, as ip-netns(8) does with its own,
// so that what is bound in it is seen, and gone, in every mount namespace.
func (n *CNI) mountpoint(dir string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", dir, "", unix.MS_SHARED, "")
	if err == nil || !errors.Is(err, unix.EINVAL) {
		return err
	}
	// EINVAL: no mount point yet.
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", dir, "", unix.MS_SHARED, "")
}

// bound reports whether a network namespace is bound to path, rather than only
// a file left where one was.
func bound(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// unbind lets go of the handle on the network namespace of the pod id.
func (n *CNI) unbind(id string) error {
	path := n.path(id)
	for bound(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Bound returns the IDs of all pods whose network namespaces have a handle.
func (n *CNI) Bound() []string {
	entries, err := os.ReadDir(n.path(""))
	if err != nil {
		return nil
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

// Same reports whether the process pid lives in the network namespace that the
// pod id was attached in. Of a pod without a handle, which cri-dockerd has
// attached, that is taken for granted.
func (n *CNI) Same(id string, pid int) bool {
	path := n.path(id)
	if !bound(path) {
		return true
	}
	var ours, its unix.Stat_t
	return unix.Stat(path, &ours) == nil &&
		unix.Stat(OfProcess(pid), &its) == nil &&
		ours.Ino == its.Ino && ours.Dev == its.Dev
}

// NetNS returns a path of the network namespace of the pod id, in which the
// process pid lives.
func (n *CNI) NetNS(id string, pid int) string {
	if path := n.path(id); bound(path) {
		return path
	}
	return OfProcess(pid)
}

// OfProcess is the path of the network namespace that the process pid lives in.
func OfProcess(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/ns/net" }

// Dial connects to a port on the loopback of a network namespace, IPv4 first,
// then IPv6; netns "" is that of this process.
func Dial(ctx context.Context, netns string, port int) (net.Conn, error) {
	if netns == "" {
		return dialLoopback(ctx, port)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// The thread is never unlocked and so ends with this goroutine: nobody
		// else can find itself in the pod's namespace.
		runtime.LockOSThread()
		conn, err := dialIn(ctx, netns, port)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func dialIn(ctx context.Context, netns string, port int) (net.Conn, error) {
	f, err := os.Open(netns)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter %s: %w", netns, err)
	}
	return dialLoopback(ctx, port)
}

// dialLoopback uses plain addresses, one after the other: a name, or both at
// once, would take the dial to other threads.
func dialLoopback(ctx context.Context, port int) (net.Conn, error) {
	dialer := net.Dialer{FallbackDelay: -1}
	conn, err4 := dialer.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err4 == nil {
		return conn, nil
	}
	conn, err6 := dialer.DialContext(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(port)))
	if err6 == nil {
		return conn, nil
	}
	return nil, err4
}
