package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"berth/network/cniconf"
	"berth/network/netns"
	"berth/network/networktest"
)

// listen answers "hello" on addr in the network namespace of the process pid
// and returns the port.
func listen(t *testing.T, pid int, addr string) int {
	t.Helper()
	var l net.Listener
	err := ns.WithNetNSPath(netns.ProcessPath(pid), func(ns.NetNS) (err error) {
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
		if _, err := cniconf.FindPlugin("bridge", []string{dir}); err == nil {
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

func TestRealPluginsAttachAndDetach(t *testing.T) {
	t.Parallel()
	if !networktest.InOwnNamespaces(t) {
		return
	}
	if err := networktest.LoopbackUp(); err != nil {
		t.Fatal(err)
	}
	n, d, leases := withBridge(t)
	if err := n.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	id, pod := "aaaa", networktest.StartPause(t)
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
	if diff := cmp.Diff(want, got, equalAddrs); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if again, attached, err := d.new().Addresses(id); err != nil || !attached || cmp.Diff(want, again, equalAddrs) != "" {
		t.Errorf("a later daemon sees %v, attached %v", again, attached)
	}
	if got := leases(); !slices.Equal(got, []string{"10.87.0.2", "fd87::2"}) {
		t.Errorf("leases: got %q", got)
	}

	// The node reaches the pod, and Dial what listens only on its loopback interface.
	port := listen(t, pod.Process.Pid, "10.87.0.2:0")
	conn, err := net.Dial("tcp", fmt.Sprintf("10.87.0.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		port := listen(t, pod.Process.Pid, addr)
		conn, err := netns.Dial(t.Context(), n.NetNS(id, pod.Process.Pid), port)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(conn); err != nil || string(text) != "hello" {
			t.Errorf("%s answers %q, %v", addr, text, err)
		}
		conn.Close()
		if _, err := netns.Dial(t.Context(), "", port); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("from the own namespace: got %v, want ECONNREFUSED", err)
		}
	}
	if _, err := netns.Dial(t.Context(), path, 1); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nothing listens: got %v, want ECONNREFUSED", err)
	}

	// The namespace outlives its process, and Detach works in it.
	networktest.Kill(pod)
	if !netns.IsNetNS(path) {
		t.Error("the network namespace has ended with the process")
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

// Whatever state is lost between ADD and DEL, the address is released.
func TestRealLeaseIsReleasedAfterStateLoss(t *testing.T) {
	t.Parallel()
	if !networktest.InOwnNamespaces(t) {
		return
	}
	for name, lose := range map[string]func(t *testing.T, n *CNI, d *node){
		"nothing":           func(*testing.T, *CNI, *node) {},
		"libcni's cache":    func(t *testing.T, _ *CNI, d *node) { remove(t, d.cfg.CacheDir) },
		"the configuration": func(t *testing.T, n *CNI, d *node) { remove(t, d.cfg.ConfDir); n.conf.Reload() },
		"both": func(t *testing.T, n *CNI, d *node) {
			remove(t, d.cfg.CacheDir)
			remove(t, d.cfg.ConfDir)
			n.conf.Reload()
		},
		"the bind mount, as by a reboot": func(t *testing.T, n *CNI, _ *node) {
			if err := n.netns.Unbind("bbbb"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, d, leases := withBridge(t)
			pod := networktest.StartPause(t)
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

func TestRealHostPortIsForwarded(t *testing.T) {
	t.Parallel()
	if !networktest.InOwnNamespaces(t) {
		return
	}
	if out, err := exec.Command("iptables", "-t", "nat", "-L").CombinedOutput(); err != nil {
		t.Skipf("needs iptables: %v: %s", err, out)
	}
	if err := networktest.LoopbackUp(); err != nil {
		t.Fatal(err)
	}
	n, _, _ := withBridge(t)
	pod := networktest.StartPause(t)
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
		text, err := io.ReadAll(conn)
		if err == nil && string(text) != "hello" {
			err = fmt.Errorf("it answers %q", text)
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
		t.Errorf("after Detach: got %v, want ECONNREFUSED", err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}
