package doctor

import (
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// checkKernel checks the settings that networks of pods need.
func (c *checker) checkKernel() {
	const conf = "/etc/sysctl.d/99-kubernetes.conf"
	if c.sysctl("net/ipv4/ip_forward") == "1" {
		c.ok("ip_forward", "packets are forwarded")
	} else {
		c.fail("ip_forward", "net.ipv4.ip_forward is not 1: pods cannot reach other nodes",
			"put net.ipv4.ip_forward = 1 into "+conf+" and: sysctl --system")
	}
	const effect = ": with a bridge network, Services do not reach pods on their own node"
	switch c.sysctl("net/bridge/bridge-nf-call-iptables") {
	case "1":
		c.ok("br_netfilter", "packets on bridges go through iptables")
	case "":
		c.warn("br_netfilter", "the module br_netfilter is not loaded"+effect,
			"put br_netfilter into /etc/modules-load.d/kubernetes.conf and: modprobe br_netfilter")
	default:
		c.warn("br_netfilter", "net.bridge.bridge-nf-call-iptables is not 1"+effect,
			"put net.bridge.bridge-nf-call-iptables = 1 into "+conf+" and: sysctl --system")
	}
}

// sysctl returns a setting of the kernel, "" if there is none of that name.
func (c *checker) sysctl(name string) string {
	text, err := os.ReadFile(c.path("/proc/sys/" + name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// propagatedDirs are the directories whose mounts pods see come and go if they ask for
// mountPropagation: the node's root, and where the kubelet and CSI drivers mount volumes.
var propagatedDirs = []string{"/", "/var/lib/kubelet"}

// checkPropagation checks that the mounts of those directories are shared. systemd makes / shared
// at boot; on a node without systemd, or with Docker in a container or in unshare(1), it may be private.
func (c *checker) checkPropagation() {
	f, err := os.Open(c.path("/proc/self/mountinfo"))
	if err != nil {
		return // Root is another node's disk, where no processes are
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		c.warn("propagation", err.Error(), "")
		return
	}
	checked := map[*mountinfo.Info]bool{}
	for _, dir := range propagatedDirs {
		mount := mountOf(mounts, dir)
		if mount == nil || checked[mount] {
			continue
		}
		checked[mount] = true
		if !isShared(mount) {
			c.warn("propagation", "the mount "+mount.Mountpoint+" is not shared: pods with a volume of "+dir+" that has mountPropagation HostToContainer or Bidirectional, as those of CSI drivers and node-exporter, do not start",
				"mount --make-rshared "+mount.Mountpoint)
		}
	}
	if !c.has("propagation") {
		c.ok("propagation", "mounts of the node reach pods that ask for it")
	}
}

// mountOf returns the mount that dir is on, nil if there is none. Of several at one
// mount point the last one hides the others.
func mountOf(mounts []*mountinfo.Info, dir string) (found *mountinfo.Info) {
	for _, m := range mounts {
		contains := m.Mountpoint == dir || strings.HasPrefix(dir, strings.TrimSuffix(m.Mountpoint, "/")+"/")
		if contains && (found == nil || len(m.Mountpoint) >= len(found.Mountpoint)) {
			found = m
		}
	}
	return found
}

// isShared reports whether mounts below m propagate to its peers: proc_pid_mountinfo(5), optional field shared:N.
func isShared(m *mountinfo.Info) bool {
	for field := range strings.FieldsSeq(m.Optional) {
		if strings.HasPrefix(field, "shared:") {
			return true
		}
	}
	return false
}
