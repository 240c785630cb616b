// Package userns translates user namespaces of pods (hostUsers: false). It validates the mappings
// of the CRI, chooses the OCI runtime that gives a pod a user namespace, which Docker cannot,
// and says what that runtime has to change in a container. It is pure: values in, values out, no I/O.
//
// Errors are of kind InvalidArgument where the request is the reason, and of kind
// FailedPrecondition where the node is.
package userns

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/names"
	"berth/core/ociedit"
	"berth/core/specedit"
)

// Mappings are the ID mappings of the user namespace of a pod. The zero value is for pods in
// the user namespace of the node.
type Mappings struct {
	UIDs, GIDs []ociedit.IDMapping
}

// IsZero reports whether m is for pods in the user namespace of the node.
func (m Mappings) IsZero() bool { return len(m.UIDs) == 0 }

// OfPod returns the mappings of a pod with these namespaces.
func OfPod(ns *runtimeapi.NamespaceOption) (Mappings, error) {
	m, err := parse(ns.GetUsernsOptions())
	if err != nil || m.IsZero() {
		return Mappings{}, err
	}
	return m, checkOthers(ns)
}

// OfContainer returns the mappings of a container in a pod with the mappings pod. They must be
// the same: all containers of a pod are in one user namespace.
func OfContainer(ns *runtimeapi.NamespaceOption, pod Mappings) (Mappings, error) {
	m, err := parse(ns.GetUsernsOptions())
	if err != nil {
		return Mappings{}, err
	}
	if !slices.Equal(m.UIDs, pod.UIDs) || !slices.Equal(m.GIDs, pod.GIDs) {
		return Mappings{}, invalid("user namespace %v of a container: must be that of its sandbox, %v", m, pod)
	}
	if m.IsZero() {
		return m, nil
	}
	return m, checkOthers(ns)
}

func (m Mappings) String() string {
	if m.IsZero() {
		return "of the node"
	}
	return fmt.Sprintf("with UIDs %s and GIDs %s", text(m.UIDs), text(m.GIDs))
}

// text formats mappings as in /proc/PID/uid_map.
func text(mappings []ociedit.IDMapping) (s string) {
	for i, m := range mappings {
		if i > 0 {
			s += ", "
		}
		s += fmt.Sprintf("%d %d %d", m.ContainerID, m.HostID, m.Size)
	}
	return s
}

func parse(u *runtimeapi.UserNamespace) (Mappings, error) {
	switch u.GetMode() {
	case runtimeapi.NamespaceMode_POD:
		if u == nil {
			return Mappings{}, nil // POD is the zero value of the mode
		}
	case runtimeapi.NamespaceMode_NODE:
		if len(u.GetUids()) > 0 || len(u.GetGids()) > 0 {
			return Mappings{}, invalid("id mappings: not allowed in the node's user namespace")
		}
		return Mappings{}, nil
	default:
		return Mappings{}, invalid("user namespace mode %v: must be POD or NODE", u.GetMode())
	}
	uids, err := parseMapping("uids of the user namespace", u.GetUids())
	if err != nil {
		return Mappings{}, err
	}
	gids, err := parseMapping("gids of the user namespace", u.GetGids())
	return Mappings{uids, gids}, err
}

// parseMapping parses the mappings of a user namespace or a mount. One mapping from ID 0 on is what the
// kubelet sends, and all that containerd and CRI-O accept: without root in the namespace, the low-level
// runtime could not set up a container.
func parseMapping(what string, list []*runtimeapi.IDMapping) ([]ociedit.IDMapping, error) {
	if len(list) != 1 {
		return nil, invalid("%s: must be exactly one mapping, not %d", what, len(list))
	}
	m := ociedit.IDMapping{ContainerID: list[0].GetContainerId(), HostID: list[0].GetHostId(), Size: list[0].GetLength()}
	switch {
	case m.ContainerID != 0:
		return nil, invalid("%s: container_id %d: must be 0", what, m.ContainerID)
	case m.Size == 0:
		return nil, invalid("%s: length 0: must be at least 1", what)
	case uint64(m.HostID)+uint64(m.Size) > 1<<32-1: // 2^32-1 is no ID (user_namespaces(7))
		return nil, invalid("%s: host_id %d with length %d: must be within 32 bits", what, m.HostID, m.Size)
	}
	return []ociedit.IDMapping{m}, nil
}

// checkOthers refuses the node's PID and IPC namespaces beside a user namespace, as Kubernetes does. A process has no
// privileges over them, so that the low-level runtime cannot mount /proc there. For the node's network it
// binds /sys (KEP-5607).
func checkOthers(ns *runtimeapi.NamespaceOption) error {
	for _, other := range []struct {
		name string
		mode runtimeapi.NamespaceMode
	}{{"pid", ns.GetPid()}, {"ipc", ns.GetIpc()}} {
		if other.mode == runtimeapi.NamespaceMode_NODE {
			return invalid("%s namespace mode NODE: not supported in a pod with a user namespace", other.name)
		}
	}
	return nil
}

// Mounts returns the mappings of a container's own mounts. Those without mappings stay as they
// are on the node: in the container their files belong to nobody (65534). Of several
// mounts with the same path the last one counts, as in todocker.
func Mounts(mounts []*runtimeapi.Mount, pod Mappings) ([]ociedit.MountMapping, error) {
	byPath := map[string]ociedit.MountMapping{}
	for _, m := range mounts {
		mapped := ociedit.MountMapping{Destination: path.Clean("/" + m.GetContainerPath())}
		if len(m.GetUidMappings()) > 0 || len(m.GetGidMappings()) > 0 {
			if pod.IsZero() {
				return nil, invalid("id mappings of mount %q: not allowed in a pod without a user namespace", m.GetContainerPath())
			}
			var err error
			if mapped.UIDMappings, err = parseMapping("uidMappings of mount "+strconv.Quote(m.GetContainerPath()), m.GetUidMappings()); err != nil {
				return nil, err
			}
			if mapped.GIDMappings, err = parseMapping("gidMappings of mount "+strconv.Quote(m.GetContainerPath()), m.GetGidMappings()); err != nil {
				return nil, err
			}
		}
		byPath[mapped.Destination] = mapped
	}
	if pod.IsZero() {
		return nil, nil
	}
	var list []ociedit.MountMapping
	for _, m := range byPath {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b ociedit.MountMapping) int {
		if a.Destination < b.Destination {
			return -1
		}
		return 1
	})
	return list, nil
}

// Edit returns what the OCI runtime has to change in a pause container, or in a container with
// these mounts; nil for nothing. What Docker mounts itself is mapped as the namespace: the files of the
// pod, /dev/shm and volumes of images.
func (m Mappings) Edit(mounts []ociedit.MountMapping) *ociedit.UserNamespace {
	if m.IsZero() {
		return nil
	}
	return &ociedit.UserNamespace{UIDMappings: m.UIDs, GIDMappings: m.GIDs, Mounts: mounts, IDMapOthers: true}
}

// pingGroupRange is the setting that allows unprivileged ping to groups.
const pingGroupRange = "net.ipv4.ping_group_range"

// Sysctls returns the settings of a pod that is in the node's network or has a network of its own. Docker lets all groups ping
// ("0 2147483647") in a network of its own, which the kernel refuses in a user namespace that does not have them.
func (m Mappings) Sysctls(pod map[string]string, hostNetwork bool) map[string]string {
	if _, set := pod[pingGroupRange]; set || hostNetwork || m.IsZero() {
		return pod
	}
	all := map[string]string{pingGroupRange: fmt.Sprintf("0 %d", min(m.GIDs[0].Size-1, 1<<31-1))}
	maps.Copy(all, pod)
	return all
}

// Support is what the node has for pods with user namespaces.
type Support struct {
	// Dir is the directory of instructions for the OCI runtime; "" on a berthd that writes none.
	Dir string
	// Probe returns why the kernel or a file system has no support for such pods, nil if it has.
	Probe func(engine.Features) error
}

// Runtime returns the runtime of Docker that gives containers of the runtime below, "" for the default
// one, a user namespace.
func (s Support) Runtime(below string, features engine.Features) (string, error) {
	name, err := specedit.Runtime("user namespaces", below, s.Dir, features)
	switch {
	case err != nil:
		return "", err
	case features.UserNSRemap:
		return "", failed("user namespaces: Docker has userns-remap, with which the files of images have other owners: remove it from daemon.json")
	}
	return name, s.Probe(features)
}

// Container returns what the OCI runtime has to change in a container of a pod with the namespaces pod; nil for
// nothing. runtime is the HostConfig.Runtime of its sandbox.
func (s Support) Container(pod *runtimeapi.NamespaceOption, c *runtimeapi.ContainerConfig, runtime string, features engine.Features) (*ociedit.UserNamespace, error) {
	m, err := OfPod(pod)
	if err != nil {
		return nil, err
	}
	if m, err = OfContainer(c.GetLinux().GetSecurityContext().GetNamespaceOptions(), m); err != nil {
		return nil, err
	}
	mounts, err := Mounts(c.GetMounts(), m)
	if err != nil || m.IsZero() {
		return nil, err
	}
	below := names.BelowOCIRuntime(runtime)
	if below == "" { // a sandbox of cri-dockerd, whatever the request says
		return nil, failed("the sandbox has no user namespace: it runs with the runtime %q of Docker", runtime)
	}
	_, err = s.Runtime(below, features)
	return m.Edit(mounts), err
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func failed(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}
