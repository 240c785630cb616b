package network

import (
	"errors"
	"fmt"
	"io/fs"
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
// whether the pod is attached, no matter by which daemon. An error says that this cannot be read now.
func (n *CNI) Addresses(id string) (addrs []netip.Addr, attached bool, err error) {
	n.mu.Lock()
	addrs, ok := n.addresses[id]
	n.mu.Unlock()
	if ok {
		return slices.Clone(addrs), true, nil
	}
	networks, err := n.cachedNetworks(id)
	if err != nil {
		return nil, false, fmt.Errorf("libcni's cache: %w", err)
	}
	for _, name := range networks {
		if name == loopbackNetwork {
			continue
		}
		if err := n.checkCacheReadable(name, id); err != nil {
			return nil, false, err
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
	return addrs, attached, nil
}

// checkCacheReadable returns an error if the file of the pod id in libcni's cache cannot be read now, which libcni does not tell
// from a file that is not there.
func (n *CNI) checkCacheReadable(network, id string) error {
	file, err := os.Open(n.cacheFile(network, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("libcni's cache: %w", err)
	}
	return file.Close()
}

// cacheFile is where libcni keeps the attachment of the pod id to a network.
func (n *CNI) cacheFile(network, id string) string {
	return filepath.Join(n.cacheDir, "results", network+"-"+id+"-"+ifName)
}

// Attached returns the sorted IDs of all pods that berth or cri-dockerd has attached and
// that have not been detached. Attachments of other runtimes, which may use the same cache
// directory, are not among them.
func (n *CNI) Attached() (ids []string, err error) {
	all, err := n.lib.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("libcni's cache in %s: %w", n.cacheDir, err)
	}
	for _, a := range all {
		if a.IfName == ifName && a.Network != loopbackNetwork && isOwn(a) {
			ids = append(ids, a.ContainerID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
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
func (n *CNI) cachedNetworks(id string) (networks []string, err error) {
	entries, err := os.ReadDir(filepath.Join(n.cacheDir, "results"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), "-"+id+"-"+ifName); ok {
			networks = append(networks, name)
		}
	}
	return networks, nil
}

// deleteCache deletes the files of the pod id from libcni's cache.
func (n *CNI) deleteCache(id string) error {
	names, err := n.cachedNetworks(id)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		err := os.Remove(n.cacheFile(name, id))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
