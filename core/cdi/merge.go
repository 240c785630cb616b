package cdi

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/ociedit"
)

// MergeEnv adds the variables to those of a container.
func (e Edits) MergeEnv(env []*runtimeapi.KeyValue) []*runtimeapi.KeyValue {
	for _, v := range e.Env {
		name, value, _ := strings.Cut(v, "=")
		env = replace(env, func(o *runtimeapi.KeyValue) bool { return o.GetKey() == name }, &runtimeapi.KeyValue{Key: name, Value: []byte(value)})
	}
	return env
}

// MergeDevices adds the device nodes to the devices of a container.
func (e Edits) MergeDevices(devices []*runtimeapi.Device) []*runtimeapi.Device {
	for _, n := range e.Nodes {
		devices = replace(devices, func(o *runtimeapi.Device) bool { return o.GetContainerPath() == n.Path },
			&runtimeapi.Device{HostPath: n.HostPath, ContainerPath: n.Path, Permissions: n.Permissions})
	}
	if len(e.Devices) == 0 {
		return devices
	}
	return slices.DeleteFunc(slices.Clone(devices), func(d *runtimeapi.Device) bool {
		return slices.ContainsFunc(e.Devices, func(o ociedit.Device) bool { return o.Path == d.GetContainerPath() })
	})
}

// replace returns a new list without the items that are old, and with one at its end.
func replace[T any](list []T, old func(T) bool, with T) []T {
	return append(slices.DeleteFunc(slices.Clone(list), old), with)
}

// MergeMounts adds the mounts to those of a container, at the end.
func (e Edits) MergeMounts(mounts []*runtimeapi.Mount) []*runtimeapi.Mount {
	out := slices.Clone(mounts)
	for _, m := range e.Mounts {
		out = append(out, m.CRI)
	}
	return out
}

// MergeGroups adds the groups to the supplemental ones of a container.
func (e Edits) MergeGroups(sc *runtimeapi.LinuxContainerSecurityContext) *runtimeapi.LinuxContainerSecurityContext {
	if len(e.GIDs) == 0 {
		return sc
	}
	out := &runtimeapi.LinuxContainerSecurityContext{}
	proto.Merge(out, sc)
	out.SupplementalGroups = append(out.SupplementalGroups, e.GIDs...)
	return out
}

// ForUser returns the edits for a container with the user, who owns the nodes for which a specification names no
// owner, as in runtimes that resolve CDI devices themselves. With the Engine API alone a node keeps its owner of the host: the error is
// for a user who cannot open it.
func (e Edits) ForUser(user *runtimeapi.LinuxContainerUser) (Edits, error) {
	e.Nodes, e.Devices = slices.Clone(e.Nodes), slices.Clone(e.Devices)
	if user.GetUid() == 0 {
		return e, nil
	}
	var refusal error
	e.Nodes = slices.DeleteFunc(e.Nodes, func(n Node) bool {
		switch {
		case n.opensFor(user):
			return false
		case e.ociRuntime:
			e.Devices = append(e.Devices, n.device())
			return true
		case refusal == nil:
			refusal = needsRuntime("CDI device node %s: user %d cannot open it, for %s on the host belongs to %d:%d and has mode %04o; add the group to supplementalGroups of the pod if it suffices, or change the owner or mode on the host",
				n.Path, user.GetUid(), n.HostPath, n.UID, n.GID, n.Mode)
		}
		return false
	})
	for i := range e.Devices {
		if d := &e.Devices[i]; d.UID == nil {
			d.UID = new(uint32(user.GetUid()))
		}
		if d := &e.Devices[i]; d.GID == nil && user.GetGid() > 0 {
			d.GID = new(uint32(user.GetGid()))
		}
	}
	return e, refusal
}

// opensFor reports whether a user can open the node as the owner could. If the specification names an owner, the node is as it says.
func (n Node) opensFor(user *runtimeapi.LinuxContainerUser) bool {
	allowed := n.Mode & 0o7
	switch {
	case int64(n.UID) == user.GetUid():
		allowed = n.Mode >> 6 & 0o7
	case int64(n.GID) == user.GetGid(), slices.Contains(user.GetSupplementalGroups(), int64(n.GID)):
		allowed = n.Mode >> 3 & 0o7
	}
	wanted := n.Mode >> 6 & 0o6 // what the user could do as the owner
	if !strings.Contains(n.Permissions, "r") {
		wanted &^= 0o4
	}
	if !strings.Contains(n.Permissions, "w") {
		wanted &^= 0o2
	}
	return !n.UserOwned || wanted&^allowed == 0
}

// device returns the node for berth's OCI runtime, without its owner on the host.
func (n Node) device() ociedit.Device {
	return ociedit.Device{
		Path: n.Path, Type: n.Type, Major: int64(unix.Major(n.Device)), Minor: int64(unix.Minor(n.Device)), FileMode: new(uint32(n.Mode)), Access: n.Permissions,
	}
}
