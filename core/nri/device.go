package nri

import (
	"github.com/containerd/nri/pkg/api"
	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"berth/core/nri/adjust"
)

// HostNode returns the device node of the host at a path.
func HostNode(path string) (adjust.Node, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return adjust.Node{}, false
	}
	kind := map[uint32]string{unix.S_IFBLK: "b", unix.S_IFCHR: "c", unix.S_IFIFO: "p"}[st.Mode&unix.S_IFMT]
	return adjust.Node{
		Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
	}, kind != ""
}

// hostDevice returns a device of the host that a container has.
func hostDevice(d container.DeviceMapping) *api.LinuxDevice {
	out := &api.LinuxDevice{Path: d.PathInContainer}
	if node, ok := HostNode(d.PathOnHost); ok {
		out.Type, out.Major, out.Minor = node.Type, node.Major, node.Minor
		out.FileMode, out.Uid, out.Gid = api.FileMode(node.Mode), api.UInt32(node.UID), api.UInt32(node.GID)
	}
	return out
}
