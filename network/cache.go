package network

import (
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
)

// loopback is the network that cri-dockerd attached every pod to beside the
// real one. Its plugin has nothing to take back.
const loopback = "cni-loopback"

// Addresses returns the addresses of the pod id, in the order the plugins gave
// them, and whether it is attached. It does not matter who attached it.
func (n *CNI) Addresses(id string) (addrs []netip.Addr, attached bool) {
	n.mu.Lock()
	addrs, ok := n.known[id]
	n.mu.Unlock()
	if ok {
		return slices.Clone(addrs), true
	}
	for _, name := range n.cached(id) {
		if name == loopback {
			continue
		}
		// Asked for in this form, the result is converted to what we read,
		// whatever version the network is of.
		result, err := n.lib.GetNetworkListCachedResult(
			&libcni.NetworkConfigList{Name: name, CNIVersion: version.Current()},
			&libcni.RuntimeConf{ContainerID: id, IfName: ifName})
		if err != nil || result == nil {
			continue // torn by a power loss, which no pod survives
		}
		found, err := addresses(result)
		if err != nil {
			continue
		}
		attached = true
		if addrs = found; len(addrs) > 0 {
			break
		}
	}
	return addrs, attached
}

// Attached returns the ids of all pods that we, or cri-dockerd, have attached
// and nobody has detached. Attachments that other runtimes on the node keep in
// the same cache are not among them.
func (n *CNI) Attached() []string {
	all, err := n.lib.GetCachedAttachments("")
	if err != nil {
		n.log.Warn("libcni's cache cannot be read", slog.String("dir", n.cacheDir), slog.Any("err", err))
		return nil
	}
	var ids []string
	for _, a := range all {
		if a.IfName == ifName && a.Network != loopback && n.ours(a) {
			ids = append(ids, a.ContainerID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// ours reports whether a was made by us, now or with another NetNSDir, or by
// cri-dockerd, which used the paths of processes. Others have names of theirs.
func (n *CNI) ours(a *libcni.NetworkAttachment) bool {
	return filepath.Base(a.NetNS) == prefix+a.ContainerID || strings.HasPrefix(a.NetNS, "/proc/")
}

// remembered returns what libcni remembers of attaching the pod id.
func (n *CNI) remembered(id string) ([]*libcni.NetworkAttachment, error) {
	all, err := n.lib.GetCachedAttachments(id)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(a *libcni.NetworkAttachment) bool {
		return a.IfName != ifName || a.Network == loopback
	}), nil
}

// cached returns the networks of which libcni has a file, readable or not, for
// the pod id.
func (n *CNI) cached(id string) (networks []string) {
	entries, err := os.ReadDir(filepath.Join(n.cacheDir, "results"))
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), "-"+id+"-"+ifName); ok {
			networks = append(networks, name)
		}
	}
	return networks
}

// uncache removes what libcni has of the pod id.
func (n *CNI) uncache(id string) error {
	var errs []error
	for _, name := range n.cached(id) {
		err := os.Remove(filepath.Join(n.cacheDir, "results", name+"-"+id+"-"+ifName))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
