package adjust

import (
	"path"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/docker/docker/api/types/mount"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/ociedit"
)

// systemMounts are the mounts of every container that are not in a request (the OCI specification's default file systems).
var systemMounts = []string{"/dev", "/dev/mqueue", "/dev/pts", "/dev/shm", "/proc", "/sys", "/sys/fs/cgroup"}

// mounts applies removals first, as the library of NRI does.
func (out *change) mounts(list []*api.Mount) error {
	for _, m := range list {
		destination, removed := m.IsMarkedForRemoval()
		if !path.IsAbs(destination) {
			return invalid("mount %q: the destination must be an absolute path", destination)
		}
		destination = path.Clean(destination)
		if slices.Contains(systemMounts, destination) {
			return failed("mount %s: Docker makes it for every container, and it cannot be replaced or removed", destination)
		}
		if out.spec == nil {
			out.config.Mounts = slices.DeleteFunc(out.config.Mounts, func(o *runtimeapi.Mount) bool { return path.Clean("/"+o.GetContainerPath()) == destination })
		} else if removed || m.GetType() == "tmpfs" { // a file of the pod, like /etc/hosts
			out.spec.Host.Mounts = slices.DeleteFunc(slices.Clone(out.spec.Host.Mounts), func(o mount.Mount) bool { return removedMount(o, destination, out.config) })
		}
	}
	for _, m := range list {
		if _, removed := m.IsMarkedForRemoval(); removed {
			continue
		}
		if err := out.addMount(m); err != nil {
			return err
		}
	}
	return nil
}

// removedMount reports whether o is at the destination and not of the request.
func removedMount(o mount.Mount, destination string, config *runtimeapi.ContainerConfig) bool {
	return o.Target == destination && !slices.ContainsFunc(config.GetMounts(), func(m *runtimeapi.Mount) bool { return path.Clean("/"+m.GetContainerPath()) == destination })
}

func (out *change) addMount(m *api.Mount) error {
	switch m.GetType() {
	case "", "none", "bind":
		if out.spec != nil {
			return nil
		}
		cri, err := bindMount(m)
		if err == nil {
			out.config.Mounts = append(out.config.Mounts, cri)
		}
		return err
	case "tmpfs":
		if out.spec != nil {
			if out.spec.Host.Tmpfs == nil {
				out.spec.Host.Tmpfs = map[string]string{}
			}
			out.spec.Host.Tmpfs[path.Clean(m.GetDestination())] = strings.Join(m.GetOptions(), ",")
		}
		return nil
	default:
		return failed("mount %s of type %s: Docker has bind mounts and tmpfs", m.GetDestination(), m.GetType())
	}
}

// bindMount translates a bind mount to the CRI. Its options are those of the OCI specification.
func bindMount(m *api.Mount) (*runtimeapi.Mount, error) {
	if !path.IsAbs(m.GetSource()) {
		return nil, invalid("mount %s: the source %q must be an absolute path", m.GetDestination(), m.GetSource())
	}
	out := &runtimeapi.Mount{ContainerPath: path.Clean(m.GetDestination()), HostPath: m.GetSource()}
	for _, option := range m.GetOptions() {
		switch option {
		case "bind", "rbind", "rw", "private", "rprivate", "relatime", "": // what is below the source is mounted, too; relatime is Linux's default
		case "ro":
			out.Readonly = true
		case "rro":
			out.Readonly, out.RecursiveReadOnly = true, true
		case "slave", "rslave":
			out.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case "shared", "rshared":
			out.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		default: // validated with the mount_options of the CRI
			out.MountOptions = append(out.MountOptions, option)
		}
	}
	return out, nil
}

// devices gives the container nodes of the host through the Engine API, and others, or those with another owner or mode, through
// berth's OCI runtime.
func (out *change) devices(list []*api.LinuxDevice) error {
	for _, d := range list {
		name, removed := d.IsMarkedForRemoval()
		if !path.IsAbs(name) {
			return invalid("device %q: the path must be absolute", name)
		}
		if out.spec == nil {
			out.config.Devices = slices.DeleteFunc(out.config.Devices, func(o *runtimeapi.Device) bool { return o.GetContainerPath() == name })
		}
		if removed && out.config.GetLinux().GetSecurityContext().GetPrivileged() {
			return failed("removal of device %s: a privileged container has all devices of the node", name)
		}
	}
	for _, d := range list {
		if _, removed := d.IsMarkedForRemoval(); removed {
			continue
		}
		if !slices.Contains([]string{"b", "c", "u", "p"}, d.GetType()) {
			return invalid("device %s has type %q: must be one of b, c, u, p", d.GetPath(), d.GetType())
		}
		ofHost := out.ofHost(d)
		if out.spec == nil && ofHost {
			out.config.Devices = append(out.config.Devices, &runtimeapi.Device{HostPath: d.GetPath(), ContainerPath: d.GetPath(), Permissions: access(d)})
		} else if out.spec != nil && !ofHost {
			out.need("devices that differ from those of the node")
			out.spec.Instructions.Devices = append(out.spec.Instructions.Devices, device(d))
		}
	}
	return nil
}

// access is what the cgroup allows for d.
func access(d *api.LinuxDevice) string {
	if text := d.AccessString(); text != "" {
		return text
	}
	return "rwm"
}

// ofHost reports whether the host has the node d, with the same owner and mode.
func (out *change) ofHost(d *api.LinuxDevice) bool {
	if out.Node == nil {
		return false
	}
	node, ok := out.Node(d.GetPath())
	kind := d.GetType()
	if kind == "u" {
		kind = "c"
	}
	return ok && node.Type == kind && node.Major == d.GetMajor() && node.Minor == d.GetMinor() &&
		(d.GetFileMode() == nil || d.GetFileMode().GetValue()&0o7777 == node.Mode) &&
		(d.GetUid() == nil || d.GetUid().GetValue() == node.UID) && (d.GetGid() == nil || d.GetGid().GetValue() == node.GID)
}

// device returns the instruction for d.
func device(d *api.LinuxDevice) ociedit.Device {
	out := ociedit.Device{Path: d.GetPath(), Type: d.GetType(), Major: d.GetMajor(), Minor: d.GetMinor(), Access: access(d)}
	if v := d.GetFileMode(); v != nil {
		out.FileMode = new(v.GetValue())
	}
	if v := d.GetUid(); v != nil {
		out.UID = new(v.GetValue())
	}
	if v := d.GetGid(); v != nil {
		out.GID = new(v.GetValue())
	}
	return out
}

func (out *change) cdiDevices(list []*api.CDIDevice) {
	if out.spec != nil {
		return
	}
	for _, d := range list {
		if !slices.ContainsFunc(out.config.CDIDevices, func(o *runtimeapi.CDIDevice) bool { return o.GetName() == d.GetName() }) {
			out.config.CDIDevices = append(out.config.CDIDevices, &runtimeapi.CDIDevice{Name: d.GetName()})
		}
	}
}
