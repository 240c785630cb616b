package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inOwnNamespaces runs the test again in mount and network namespaces of its
// own, which take with them whatever it leaves behind. It reports whether this
// is that run.
func inOwnNamespaces(t *testing.T) bool {
	t.Helper()
	const key = "BERTH_TEST_NAMESPACES"
	if os.Getenv(key) == t.Name() {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), key+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, syscall.EPERM):
		t.Skip("may not make namespaces")
	case err != nil:
		t.Fatalf("in namespaces of its own: %v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("in namespaces of its own:\n%s", out)
	}
	t.Logf("in namespaces of its own:\n%s", out)
	return false
}

// pause runs a process in a network namespace of its own with lo up, as a
// sandbox has it.
func pause(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "3600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(cmd) })
	err := ns.WithNetNSPath(NetNSOfProcess(cmd.Process.Pid), func(ns.NetNS) error { return loUp() })
	if err != nil {
		t.Fatal(err)
	}
	return cmd
}

func loUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// listen answers "hello" on addr in the network namespace of the process pid
// and returns the port.
func listen(t *testing.T, pid int, addr string) int {
	t.Helper()
	var l net.Listener
	err := ns.WithNetNSPath(NetNSOfProcess(pid), func(ns.NetNS) (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// withBridge returns a CNI with the CNI project's bridge and host-local, dual stack.
func withBridge(t *testing.T) (n *CNI, d *node, leases func() []string) {
	t.Helper()
	var dirs []string
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"} {
		if _, err := find("bridge", []string{dir}); err == nil {
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) == 0 {
		t.Skip("needs the plugins bridge and host-local")
	}
	d = newNode(t)
	d.cfg.BinDirs = dirs
	ipam := filepath.Join(d.dir, "ipam")
	d.conf("10-berthtest.conflist", fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "berthtest", "plugins": [{
		"type": "bridge", "bridge": "berthtest0", "isGateway": true, "capabilities": {"ipRanges": true},
		"ipam": {"type": "host-local", "dataDir": %q}}, {"type": "portmap", "capabilities": {"portMappings": true}}]}`, ipam))
	d.cfg.PodCIDR = "10.87.0.0/24,fd87::/64"
	return d.new(), d, func() []string {
		entries, err := os.ReadDir(filepath.Join(ipam, "berthtest"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		var all []string
		for _, e := range entries {
			if _, err := netip.ParseAddr(e.Name()); err == nil {
				all = append(all, e.Name())
			}
		}
		return all
	}
}

func TestRealPlugins(t *testing.T) {
	t.Parallel()
	if !inOwnNamespaces(t) {
		return
	}
	if err := loUp(); err != nil {
		t.Fatal(err)
	}
	n, d, leases := withBridge(t)
	if err := n.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	id, pod := "aaaa", pause(t)
	path, err := n.Bind(id, pod.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := n.Plan(Pod{ID: id, Name: "web-0", Namespace: "default", UID: "u-1"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := n.Attach(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("10.87.0.2"), netip.MustParseAddr("fd87::2")}
	if diff := cmp.Diff(want, got, addrs); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if again, attached := d.new().Addresses(id); !attached || cmp.Diff(want, again, addrs) != "" {
		t.Errorf("a later daemon sees %v, attached %v", again, attached)
	}
	if got := leases(); !slices.Equal(got, []string{"10.87.0.2", "fd87::2"}) {
		t.Errorf("leases: got %q", got)
	}

	// The node reaches the pod, and we what listens on its loopback only.
	port := listen(t, pod.Process.Pid, "10.87.0.2:0")
	conn, err := net.Dial("tcp", fmt.Sprintf("10.87.0.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		port := listen(t, pod.Process.Pid, addr)
		conn, err := Dial(t.Context(), n.NetNS(id, pod.Process.Pid), port)
		if err != nil {
			t.Fatal(err)
		}
		if said, err := io.ReadAll(conn); err != nil || string(said) != "hello" {
			t.Errorf("%s says %q, %v", addr, said, err)
		}
		conn.Close()
		if _, err := Dial(t.Context(), "", port); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("from our own namespace: got %v, want that it was refused", err)
		}
	}
	if _, err := Dial(t.Context(), path, 1); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens: got %v, want that it was refused", err)
	}

	// The namespace outlives its process, and Detach works in it.
	end(pod)
	if !bound(path) {
		t.Error("the network namespace went with the process")
	}
	if err := n.Detach(t.Context(), nil, id); err != nil {
		t.Fatal(err)
	}
	if got := leases(); len(got) > 0 {
		t.Errorf("still leased: %q", got)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", path, err)
	}
	for range 2 {
		if err := n.Detach(t.Context(), &plan, id); err != nil {
			t.Errorf("again: %v", err)
		}
	}
}

// Whatever dies or is lost between ADD and DEL, the address comes back.
func TestRealLeaseIsReleased(t *testing.T) {
	t.Parallel()
	if !inOwnNamespaces(t) {
		return
	}
	for name, lose := range map[string]func(t *testing.T, n *CNI, d *node){
		"nothing":           func(*testing.T, *CNI, *node) {},
		"libcni's cache":    func(t *testing.T, _ *CNI, d *node) { remove(t, d.cfg.CacheDir) },
		"the configuration": func(t *testing.T, n *CNI, d *node) { remove(t, d.cfg.ConfDir); n.reload() },
		"both": func(t *testing.T, n *CNI, d *node) {
			remove(t, d.cfg.CacheDir)
			remove(t, d.cfg.ConfDir)
			n.reload()
		},
		"the bind, as by a reboot": func(t *testing.T, n *CNI, _ *node) {
			if err := n.unbind("bbbb"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, d, leases := withBridge(t)
			pod := pause(t)
			if _, err := n.Bind("bbbb", pod.Process.Pid); err != nil {
				t.Fatal(err)
			}
			plan, err := n.Plan(Pod{ID: "bbbb"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := n.Attach(t.Context(), plan); err != nil {
				t.Fatal(err)
			}
			lose(t, n, d)
			if len(leases()) != 2 {
				t.Fatalf("leases before: %q", leases())
			}
			if err := n.Detach(t.Context(), &plan, "bbbb"); err != nil {
				t.Fatal(err)
			}
			if got := leases(); len(got) > 0 {
				t.Errorf("still leased: %q", got)
			}
		})
	}
}

func TestRealHostPort(t *testing.T) {
	t.Parallel()
	if !inOwnNamespaces(t) {
		return
	}
	if out, err := exec.Command("iptables", "-t", "nat", "-L").CombinedOutput(); err != nil {
		t.Skipf("needs iptables: %v: %s", err, out)
	}
	if err := loUp(); err != nil {
		t.Fatal(err)
	}
	n, _, _ := withBridge(t)
	pod := pause(t)
	if _, err := n.Bind("ffff", pod.Process.Pid); err != nil {
		t.Fatal(err)
	}
	plan, err := n.Plan(Pod{ID: "ffff", Ports: []PortMapping{{HostPort: 18080, ContainerPort: 8080, Protocol: "TCP"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Attach(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	listen(t, pod.Process.Pid, "10.87.0.2:8080")
	dial := func() error {
		conn, err := net.Dial("tcp4", "10.87.0.1:18080")
		if err != nil {
			return err
		}
		defer conn.Close()
		said, err := io.ReadAll(conn)
		if err == nil && string(said) != "hello" {
			err = fmt.Errorf("it says %q", said)
		}
		return err
	}
	if err := dial(); err != nil {
		t.Error(err)
	}
	if err := n.Detach(t.Context(), nil, "ffff"); err != nil {
		t.Fatal(err)
	}
	if err := dial(); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after Detach: got %v, want that it was refused", err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func TestBind(t *testing.T) {
	t.Parallel()
	if !inOwnNamespaces(t) {
		return
	}
	cccc := strings.Repeat("c", 64)
	d := newNode(t)
	n := d.new()
	first, second := pause(t), pause(t)
	path, err := n.Bind(cccc, first.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := n.Bind(cccc, first.Process.Pid); err != nil || again != path {
		t.Errorf("again: got %s, %v, want %s", again, err, path)
	}
	if got := mounts(t, path); got != 1 {
		t.Errorf("got %d mounts, want 1", got)
	}
	same := func(n *CNI, cmd *exec.Cmd, want bool) {
		t.Helper()
		if got := n.InNetNS(cccc, cmd.Process.Pid); got != want {
			t.Errorf("same: got %v, want %v", got, want)
		}
	}
	same(n, first, true)
	same(n, second, false)

	// Another daemon in the same directory: nothing is made twice.
	next := d.new()
	same(next, first, true)
	if got, want := next.Bound(), []string{cccc}; !slices.Equal(got, want) {
		t.Errorf("bound: got %q, want %q", got, want)
	}
	if got, want := next.NetNS(cccc, 1), path; got != want {
		t.Errorf("netns: got %s, want %s", got, want)
	}
	if _, err := next.Bind(cccc, second.Process.Pid); err != nil {
		t.Fatal(err)
	}
	same(next, first, false)
	same(next, second, true)
	if got := mounts(t, path); got != 1 {
		t.Errorf("got %d mounts, want 1", got)
	}
	if got := mounts(t, filepath.Dir(path)); got != 1 {
		t.Errorf("got %d mounts on the directory, want 1", got)
	}

	end(second)
	same(next, second, false)
	if _, err := next.Bind("dddd", second.Process.Pid); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of a process that has ended: got %v, want an error of kind FailedPrecondition", err)
	}
	if _, err := next.Bind("dddd", os.Getpid()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of our own namespace: got %v, want an error of kind FailedPrecondition", err)
	}
	if err := next.Forget(t.Context(), cccc); err != nil {
		t.Fatal(err)
	}
	if got := next.Bound(); len(got) > 0 {
		t.Errorf("still bound: %q", got)
	}
}

// Where everything below is shared already, as with systemd, no mount is added.
func TestBindWhereMountsAreShared(t *testing.T) {
	t.Parallel()
	if !inOwnNamespaces(t) {
		return
	}
	d := newNode(t)
	if err := unix.Mount("tmpfs", d.cfg.RunDir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(d.cfg.RunDir, unix.MNT_DETACH) })
	if err := unix.Mount("", d.cfg.RunDir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	d.cfg.NetNSDir = filepath.Join(d.cfg.RunDir, "elsewhere")
	n := d.new()
	path, err := n.Bind("eeee", pause(t).Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := path, filepath.Join(d.cfg.RunDir, "elsewhere", "berth-eeee"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := mounts(t, d.cfg.NetNSDir); got != 0 {
		t.Errorf("got %d mounts on the directory, want none", got)
	}
	if got := mounts(t, path); got != 1 {
		t.Errorf("got %d mounts, want 1", got)
	}
	if err := n.Forget(context.Background(), "eeee"); err != nil {
		t.Fatal(err)
	}
	if got := mounts(t, path); got != 0 {
		t.Errorf("after Forget: got %d mounts, want none", got)
	}
}

// A pod whose namespace an earlier version has bound elsewhere keeps it, and
// nothing of it stays. What others have in the directory is theirs.
func TestBindWhereItWasBefore(t *testing.T) {
	t.Parallel()
	if !inOwnNamespaces(t) {
		return
	}
	d := newNode(t)
	id, pod, next := strings.Repeat("e", 64), pause(t), pause(t)
	old, err := d.new().Bind(id, pod.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	d.cfg.NetNSDir = filepath.Join(d.dir, "elsewhere")
	t.Cleanup(func() { _ = unix.Unmount(d.cfg.NetNSDir, unix.MNT_DETACH) })
	n := d.new()
	if got, want := n.Bound(), []string{id}; !slices.Equal(got, want) {
		t.Errorf("bound: got %q, want %q", got, want)
	}
	if path, err := n.Bind(id, pod.Process.Pid); err != nil || path != old || n.NetNS(id, 1) != old {
		t.Errorf("bound again at %s, %v, netns %s; want %s", path, err, n.NetNS(id, 1), old)
	}
	if !n.InNetNS(id, pod.Process.Pid) || n.InNetNS(id, next.Process.Pid) {
		t.Error("its process is taken for another")
	}
	// Another namespace is bound at the new place.
	path, err := n.Bind(id, next.Process.Pid)
	if want := filepath.Join(d.cfg.NetNSDir, prefix+id); err != nil || path != want {
		t.Errorf("another is bound at %s, %v; want %s", path, err, want)
	}
	if bound(old) || !n.InNetNS(id, next.Process.Pid) || len(n.Bound()) != 1 {
		t.Errorf("bound are %q", n.Bound())
	}
	for _, name := range []string{"berth-test", "berth-" + strings.Repeat("E", 64), "cni-1"} {
		if err := os.WriteFile(filepath.Join(d.cfg.NetNSDir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Detach(t.Context(), nil, id); err != nil {
		t.Fatal(err)
	}
	if got := n.Bound(); len(got) > 0 {
		t.Errorf("still bound: %q", got)
	}
	if bound(path) || len(d.handles()) > 0 {
		t.Errorf("left: %s %q", path, d.handles())
	}
}

// mounts returns how many mounts there are on path.
func mounts(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == path {
			count++
		}
	}
	return count
}
