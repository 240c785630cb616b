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

	"berth/network/netns"
)

// loopbackNetwork is the network that cri-dockerd attached every pod to besides the
// configured one. Its plugin has nothing to undo.
const loopbackNetwork = "cni-loopback"

// Addresses returns the addresses of the pod id, in the order of the CNI result, and
// whether the pod is attached, no matter by which daemon.
func (n *CNI) Addresses(id string) (addrs []netip.Addr, attached bool) {
	n.mu.Lock()
	addrs, ok := n.addresses[id]
	n.mu.Unlock()
	if ok {
		return slices.Clone(addrs), true
	}
	for _, name := range n.cachedNetworks(id) {
		if name == loopbackNetwork {
			continue
		}
		// libcni converts the result to the requested version, independent of the version of the network.
		result, err := n.lib.GetNetworkListCachedResult(
			&libcni.NetworkConfigList{Name: name, CNIVersion: version.Current()},
			&libcni.RuntimeConf{ContainerID: id, IfName: ifName})
		if err != nil || result == nil {
			continue // the file is incomplete after a power loss, and so the pod is gone
		}
		found, err := podAddresses(result)
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

// Attached returns the sorted IDs of all pods that berth or cri-dockerd has attached and
// that have not been detached. Attachments of other runtimes, which may use the same cache
// directory, are not among them.
func (n *CNI) Attached() []string {
	all, err := n.lib.GetCachedAttachments("")
	if err != nil {
		n.log.Warn("libcni's cache cannot be read", slog.String("dir", n.cacheDir), slog.Any("err", err))
		return nil
	}
	var ids []string
	for _, a := range all {
		if a.IfName == ifName && a.Network != loopbackNetwork && isOwn(a) {
			ids = append(ids, a.ContainerID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// isOwn reports whether an attachment was made by berth, with this or another NetNSDir, or
// by cri-dockerd, which used /proc/PID/ns/net. Other runtimes use other file names.
func isOwn(a *libcni.NetworkAttachment) bool {
	return filepath.Base(a.NetNS) == netns.FileName(a.ContainerID) || strings.HasPrefix(a.NetNS, "/proc/")
}

// cachedAttachments returns the attachments of the pod id in libcni's cache.
func (n *CNI) cachedAttachments(id string) ([]*libcni.NetworkAttachment, error) {
	all, err := n.lib.GetCachedAttachments(id)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(a *libcni.NetworkAttachment) bool {
		return a.IfName != ifName || a.Network == loopbackNetwork
	}), nil
}

// cachedNetworks returns the networks for which libcni's cache has a file of the pod id,
// readable or not.
func (n *CNI) cachedNetworks(id string) (networks []string) {
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

// deleteCache deletes the files of the pod id from libcni's cache.
func (n *CNI) deleteCache(id string) error {
	var errs []error
	for _, name := range n.cachedNetworks(id) {
		err := os.Remove(filepath.Join(n.cacheDir, "results", name+"-"+id+"-"+ifName))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
