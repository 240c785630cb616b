package tocri

import (
	"encoding/hex"
	"net/netip"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
)

// BridgeNetwork returns the addresses of a container on Docker's own networks.
func BridgeNetwork(result container.InspectResponse) Network {
	network := Network{Ready: true}
	if result.NetworkSettings == nil {
		return network
	}
	for _, n := range result.NetworkSettings.Networks {
		for _, text := range []string{n.IPAddress, n.GlobalIPv6Address} {
			if addr, err := netip.ParseAddr(text); err == nil {
				network.Addrs = append(network.Addrs, addr)
			}
		}
	}
	return network
}

// AnonymousVolumes returns the directories of the volumes that the Engine has created and
// named itself, by 64 hexadecimal digits.
func AnonymousVolumes(mounts []container.MountPoint) []string {
	var dirs []string
	for _, m := range mounts {
		_, notHex := hex.DecodeString(m.Name)
		if m.Type == mount.TypeVolume && m.Driver == "local" && len(m.Name) == 64 && notHex == nil {
			dirs = append(dirs, m.Source)
		}
	}
	return dirs
}
