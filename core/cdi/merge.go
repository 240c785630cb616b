package cdi

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
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
	return devices
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

// CheckAccess fails if the user of a container cannot open a device node because the node keeps its owner of the
// host. In runtimes that resolve CDI devices themselves the user owns the nodes for which a specification
// names no owner.
func (e Edits) CheckAccess(user *runtimeapi.LinuxContainerUser) error {
	if user.GetUid() == 0 {
		return nil
	}
	for _, n := range e.Nodes {
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
		if n.UserOwned && wanted&^allowed != 0 {
			return refused("CDI device node %s: user %d cannot open it, for %s on the host belongs to %d:%d and has mode %04o; add the group to supplementalGroups of the pod if it suffices, or change the owner or mode on the host",
				n.Path, user.GetUid(), n.HostPath, n.UID, n.GID, n.Mode)
		}
	}
	return nil
}
