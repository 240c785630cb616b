package live

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// networkReady returns whether the condition NetworkReady holds, and its message.
func (n *node) networkReady() (bool, string) {
	n.t.Helper()
	r, err := n.runtime.Status(n.t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, c := range r.GetStatus().GetConditions() {
		if c.GetType() == runtimeapi.NetworkReady {
			return c.GetStatus(), c.GetMessage()
		}
	}
	return false, "no condition"
}

// addressIn returns the address of a pod, which must be in the subnet.
func (n *node) addressIn(pod, subnet string) string {
	n.t.Helper()
	r, err := n.runtime.PodSandboxStatus(n.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil {
		n.t.Fatal(err)
	}
	ip := r.GetStatus().GetNetwork().GetIp()
	if addr, err := netip.ParseAddr(ip); err != nil || !netip.MustParsePrefix(subnet).Contains(addr) {
		n.t.Fatalf("address %q, want one in %s", ip, subnet)
	}
	return ip
}

// TestNodeNeedsNoCNIFile has the built-in template: pods get addresses of the pod CIDR and reach each other, the
// CIDR of the kubelet replaces the option and outlives berthd, and the file of a cluster's network replaces ours.
func TestNodeNeedsNoCNIFile(t *testing.T) {
	n := prepareNode(t, "--cni-conf-template", "bridge", "--pod-cidr", "10.89.0.0/24")
	if err := os.RemoveAll(n.path("net.d")); err != nil {
		t.Fatal(err)
	}
	leases := "/var/lib/cni/networks/berth" // of host-local, without a dataDir
	if _, err := os.Stat(leases); err == nil {
		t.Skip(leases + " is in use")
	}
	t.Cleanup(func() {
		os.RemoveAll(leases)
		exec.Command("ip", "link", "del", "berth0").Run()
	})
	n.start()
	file := n.path("net.d", "99-berth.conflist")
	first, _ := n.begin(n.pod("first"), shell("c", "sleep 1000"))
	n.addressIn(first, "10.89.0.0/24")
	n.remove(first)

	_, err := n.runtime.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.90.0.0/24,fd90::/64"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.until(10*time.Second, "the file does not follow the pod CIDR", func() bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(text), "10.90.0.0/24") && strings.Contains(string(text), "fd90::/64")
	})
	n.until(10*time.Second, "not ready", func() bool { ready, _ := n.networkReady(); return ready })
	time.Sleep(time.Second) // until the file was read
	server, _ := n.begin(n.pod("server"), shell("c", "while :; do echo hello | nc -l -p 8080; done"))
	ip := n.addressIn(server, "10.90.0.0/24")
	n.kill()
	n.start()
	clientPod, client := n.begin(n.pod("client"), shell("c", "sleep 1000"))
	n.addressIn(clientPod, "10.90.0.0/24")
	n.until(10*time.Second, "pods do not reach each other", func() bool {
		r, err := n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: client, Cmd: []string{"sh", "-c", "nc -w 2 " + ip + " 8080 </dev/null"}, Timeout: 20})
		return err == nil && strings.Contains(string(r.GetStdout()), "hello")
	})

	if err := os.WriteFile(n.path("net.d", "10-cluster.conflist"), []byte(`{"cniVersion": "1.0.0", "name": "cluster", "plugins": [{"type": "no-such-plugin"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	n.until(10*time.Second, "the made file stays beside that of the cluster", func() bool { _, err := os.Stat(file); return err != nil })
	n.until(10*time.Second, "the missing plugin is not named", func() bool {
		ready, message := n.networkReady()
		return !ready && strings.Contains(message, `there is no plugin "no-such-plugin"`)
	})
	n.remove(server)
	n.remove(clientPod)
	if left, _ := filepath.Glob(filepath.Join(leases, "*.*.*.*")); len(left) > 0 {
		t.Errorf("addresses are left: %v", left)
	}
	n.clean()
}

// TestDefaultNetworkByName has two networks, and pods on the second; a pod is detached although its network is gone.
func TestDefaultNetworkByName(t *testing.T) {
	n := prepareNode(t, "--cni-default-network", "second")
	second := func(name string) string {
		return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "plugins": [{"type": "bridge", "bridge": "live1", "isGateway": true,
			"ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.91.0.0/24"}]]}}]}`, name, n.path("ipam"))
	}
	write := func(name string) {
		if err := os.WriteFile(n.path("net.d", "20-second.conflist"), []byte(second(name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("second")
	t.Cleanup(func() { exec.Command("ip", "link", "del", "live1").Run() })
	n.start()
	pod, _ := n.begin(n.pod("named"), shell("c", "sleep 1000"))
	n.addressIn(pod, "10.91.0.0/24")
	write("renamed")
	n.until(10*time.Second, "the networks that there are are not named", func() bool {
		ready, message := n.networkReady()
		return !ready && strings.Contains(message, `no CNI network "second" (cni-default-network), there are: "live" of `) && strings.Contains(message, `"renamed" of `)
	})
	n.remove(pod)
	if left, _ := filepath.Glob(n.path("ipam", "second", "10.*")); len(left) > 0 {
		t.Errorf("addresses are left: %v", left)
	}
	n.clean()
}
