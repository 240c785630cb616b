package cdi

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	specs "tags.cncf.io/container-device-interface/specs-go"
)

// Edits are the changes that CDI devices make to a container, as far as the Engine API can express them. In each list
// a later entry wins over an earlier one for the same variable or path, and all of them win over the container's own.
type Edits struct {
	Env    []string // NAME=VALUE
	Nodes  []Node
	Mounts []Mount
	GIDs   []int64 // additional groups of the process
}

// A Node is a device node of the host, and its path in the container. Docker copies the numbers, the owner and the
// mode of the host's node.
type Node struct {
	HostPath, Path string
	Permissions    string // of r, w and m

	UID, GID uint32      // owner of the host's node
	Mode     os.FileMode // permissions of the host's node
	// UserOwned is set if the specification names no owner. Then the node is meant to be owned by the user
	// of the container, which Docker cannot do.
	UserOwned bool
}

// A Mount is a bind mount.
type Mount struct {
	CRI *runtimeapi.Mount
	// NonRecursive leaves out the mounts below the host path.
	NonRecursive bool
}

// remedy ends the message about something that the Engine API cannot express.
const remedy = "Docker has no CDI before 28.2, unless features.cdi is set in daemon.json of 25.0 or newer"

func refused(format string, args ...any) error {
	return fmt.Errorf(format+": %s: %w", append(args, remedy, errdefs.ErrFailedPrecondition)...)
}

// add appends edits of a specification or of one of its devices, which have been validated.
func (e *Edits) add(edits specs.ContainerEdits) error {
	switch {
	case len(edits.Hooks) > 0:
		return refused("it has hooks (%s %s), and the Engine API has none", edits.Hooks[0].HookName, edits.Hooks[0].Path)
	case edits.IntelRdt != nil:
		return refused("it has intelRdt, and the Engine API has none")
	case len(edits.NetDevices) > 0:
		return refused("it has net devices (%s), and the Engine API has none", edits.NetDevices[0].HostInterfaceName)
	}
	for _, d := range edits.DeviceNodes {
		n, err := node(d)
		if err != nil {
			return fmt.Errorf("device node %s: %w", d.Path, err)
		}
		e.Nodes = append(e.Nodes, n)
	}
	for _, m := range edits.Mounts {
		bind, err := bindMount(m)
		if err != nil {
			return fmt.Errorf("mount at %s: %w", m.ContainerPath, err)
		}
		e.Mounts = append(e.Mounts, bind)
	}
	e.addGroups(edits.AdditionalGIDs)
	e.Env = append(e.Env, edits.Env...)
	return nil
}

func (e *Edits) addGroups(gids []uint32) {
	for _, gid := range gids {
		if gid != 0 { // as in the CDI library, 0 adds no group
			e.GIDs = append(e.GIDs, int64(gid))
		}
	}
}

// node translates a device node. Docker can only copy one that the host has, so what the specification says of
// the node must be true of the host's.
func node(d *specs.DeviceNode) (Node, error) {
	out := Node{HostPath: d.HostPath, Path: d.Path, Permissions: d.Permissions, UserOwned: d.UID == nil}
	if out.HostPath == "" {
		out.HostPath = d.Path
	}
	switch d.Permissions {
	case "":
		out.Permissions = "rwm"
	case cdi.NoPermissions:
		return Node{}, refused("permissions %q cannot be expressed", d.Permissions)
	}
	var stat unix.Stat_t
	if err := unix.Stat(out.HostPath, &stat); err != nil { // follows symbolic links, as Docker does
		return Node{}, refused("%s on the host: %v, and Docker copies a node of the host", out.HostPath, err)
	}
	kinds := map[uint32][]string{unix.S_IFBLK: {"b"}, unix.S_IFCHR: {"c", "u"}}[stat.Mode&unix.S_IFMT]
	out.UID, out.GID, out.Mode = stat.Uid, stat.Gid, os.FileMode(stat.Mode&0o777)
	host := fmt.Sprintf("%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
	wanted := fmt.Sprintf("%d:%d", d.Major, d.Minor)
	switch {
	case kinds == nil:
		return Node{}, refused("%s on the host is neither a character nor a block device, and Docker copies no other node", out.HostPath)
	case d.Type != "" && !slices.Contains(kinds, d.Type):
		return Node{}, refused("the type must be %q, and %s on the host has %q", d.Type, out.HostPath, kinds[0])
	case d.Major != 0 && wanted != host:
		return Node{}, refused("the device number must be %s, and %s on the host has %s", wanted, out.HostPath, host)
	case d.FileMode != nil && *d.FileMode&0o777 != out.Mode:
		return Node{}, refused("the mode must be %04o, and %s on the host has %04o", *d.FileMode&0o777, out.HostPath, out.Mode)
	case d.UID != nil && *d.UID != out.UID:
		return Node{}, refused("the owner must be %d, and %s on the host belongs to %d", *d.UID, out.HostPath, out.UID)
	case d.GID != nil && *d.GID != out.GID:
		return Node{}, refused("the group must be %d, and %s on the host belongs to group %d", *d.GID, out.HostPath, out.GID)
	}
	return out, nil
}

// propagations maps mount options to propagations of the CRI.
var propagations = map[string]runtimeapi.MountPropagation{
	"private": runtimeapi.MountPropagation_PROPAGATION_PRIVATE,
	"slave":   runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
	"shared":  runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL,
}

// bindMount translates a mount.
func bindMount(m *specs.Mount) (Mount, error) {
	if m.Type != "" && m.Type != "bind" && m.Type != "none" {
		return Mount{}, refused("type %q: only bind mounts can be expressed", m.Type)
	}
	if _, err := os.Stat(m.HostPath); err != nil {
		return Mount{}, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	out := Mount{CRI: &runtimeapi.Mount{HostPath: m.HostPath, ContainerPath: m.ContainerPath}}
	recursiveReadOnly := false
	for _, option := range m.Options {
		propagation, isPropagation := propagations[strings.TrimPrefix(option, "r")]
		switch {
		case option == "bind", option == "rbind":
			out.NonRecursive = option == "bind"
		case option == "ro", option == "rro", option == "rw":
			out.CRI.Readonly, recursiveReadOnly = option != "rw", option == "rro"
		case isPropagation:
			out.CRI.Propagation = propagation
		case slices.Contains([]string{"nosuid", "nodev", "noexec", "nosymfollow"}, option):
			out.CRI.MountOptions = append(out.CRI.MountOptions, option)
		default:
			return Mount{}, refused("option %q: only bind, rbind, ro, rro, rw, nosuid, nodev, noexec, nosymfollow and propagations can be expressed", option)
		}
	}
	out.CRI.RecursiveReadOnly = recursiveReadOnly && !out.NonRecursive // without submounts it is the same as ro
	return out, nil
}
