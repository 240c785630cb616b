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

	"berth/core/ociedit"
)

// Edits are the changes that CDI devices make to a container. In each list a later entry wins over an earlier one for the
// same variable or path, and all of them win over the container's own.
type Edits struct {
	Env    []string // NAME=VALUE
	Nodes  []Node
	Mounts []Mount
	GIDs   []int64 // additional groups of the process

	// What the Engine API cannot express, and berth's OCI runtime can; empty where Docker does not have it.
	Devices []ociedit.Device
	Hooks   *ociedit.Hooks

	ociRuntime bool // Docker has berth's OCI runtime
}

// A Node is a device node of the host, and its path in the container. Docker copies the numbers, the owner and the
// mode of the host's node.
type Node struct {
	HostPath, Path string
	Permissions    string // of r, w and m

	UID, GID uint32      // owner of the host's node
	Mode     os.FileMode // permissions of the host's node
	Device   uint64      // number of the host's node
	Type     string      // b or c
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

// installRemedy is another one for what berth's OCI runtime can do.
const installRemedy = "; or run berthd runtime install"

func refused(format string, args ...any) error {
	return fmt.Errorf(format+": %s: %w", append(args, remedy, errdefs.ErrFailedPrecondition)...)
}

// needsRuntime is refused for what berth's OCI runtime can do.
func needsRuntime(format string, args ...any) error {
	return fmt.Errorf(format+": %s: %w", append(args, remedy+installRemedy, errdefs.ErrFailedPrecondition)...)
}

// add appends edits of a specification or of one of its devices, which have been validated.
func (e *Edits) add(edits specs.ContainerEdits) error {
	switch {
	case len(edits.Hooks) > 0 && !e.ociRuntime:
		return needsRuntime("it has hooks (%s %s), and the Engine API has none", edits.Hooks[0].HookName, edits.Hooks[0].Path)
	case edits.IntelRdt != nil:
		return refused("it has intelRdt, and the Engine API has none")
	case len(edits.NetDevices) > 0:
		return refused("it has net devices (%s), and the Engine API has none", edits.NetDevices[0].HostInterfaceName)
	}
	for _, d := range edits.DeviceNodes {
		if err := e.addNode(d); err != nil {
			return fmt.Errorf("device node %s: %w", d.Path, err)
		}
	}
	for _, h := range edits.Hooks {
		if e.Hooks == nil {
			e.Hooks = &ociedit.Hooks{}
		}
		stage := e.Hooks.Stage(h.HookName)
		if stage == nil { // the specification was validated
			return fmt.Errorf("hook %q: not a stage of the OCI specification: %w", h.HookName, errdefs.ErrFailedPrecondition)
		}
		*stage = append(*stage, ociedit.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: h.Timeout})
	}
	for _, m := range edits.Mounts {
		bind, err := bindMount(m)
		if err != nil {
			return fmt.Errorf("mount at %s: %w", m.ContainerPath, err)
		}
		e.Mounts = append(e.Mounts, bind)
	}
	e.addProcess(edits)
	return nil
}

// addProcess appends what edits say of processes.
func (e *Edits) addProcess(edits specs.ContainerEdits) {
	e.Env = append(e.Env, edits.Env...)
	for _, gid := range edits.AdditionalGIDs {
		if gid != 0 { // as in the CDI library, 0 adds no group
			e.GIDs = append(e.GIDs, int64(gid))
		}
	}
}

// addNode adds a device node: with the Engine API if Docker can copy it from the host, else with berth's OCI runtime.
func (e *Edits) addNode(d *specs.DeviceNode) error {
	n, err := node(d)
	if err != nil && e.ociRuntime {
		var device ociedit.Device
		if device, err = deviceOf(d); err == nil {
			e.Devices = append(e.Devices, device)
			e.Nodes = slices.DeleteFunc(e.Nodes, func(o Node) bool { return o.Path == device.Path })
		}
		return err
	}
	if err == nil {
		e.Nodes = append(e.Nodes, n)
		e.Devices = slices.DeleteFunc(e.Devices, func(o ociedit.Device) bool { return o.Path == n.Path })
	}
	return err
}

// deviceOf translates a device node for berth's OCI runtime. What the specification does not say of its type and numbers is that of the
// host's node, as with the CDI library (fillMissingInfo in pkg/cdi).
func deviceOf(d *specs.DeviceNode) (ociedit.Device, error) {
	out := ociedit.Device{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, UID: d.UID, GID: d.GID, Access: d.Permissions}
	if d.FileMode != nil {
		out.FileMode = new(uint32(d.FileMode.Perm()))
	}
	switch d.Permissions {
	case "":
		out.Access = "rwm"
	case cdi.NoPermissions:
		out.Access = "" // no rule
	}
	if d.Type == "p" || d.Type != "" && d.Major != 0 {
		return out, nil
	}
	host := d.HostPath
	if host == "" {
		host = d.Path
	}
	var stat unix.Stat_t
	if err := unix.Stat(host, &stat); err != nil {
		return out, fmt.Errorf("%s on the host: %w: %w", host, err, errdefs.ErrFailedPrecondition)
	}
	kinds := nodeTypes[stat.Mode&unix.S_IFMT]
	switch {
	case kinds == nil:
		return out, fmt.Errorf("%s on the host is neither a character nor a block device: %w", host, errdefs.ErrFailedPrecondition)
	case d.Type != "" && !slices.Contains(kinds, d.Type):
		return out, fmt.Errorf("the type must be %q, and %s on the host has %q: %w", d.Type, host, kinds[0], errdefs.ErrFailedPrecondition)
	}
	out.Type = kinds[0]
	if d.Major == 0 {
		out.Major, out.Minor = int64(unix.Major(stat.Rdev)), int64(unix.Minor(stat.Rdev))
	}
	return out, nil
}

// nodeTypes are the types of device nodes in specifications, by those of the kernel.
var nodeTypes = map[uint32][]string{unix.S_IFBLK: {"b"}, unix.S_IFCHR: {"c", "u"}}

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
		return Node{}, needsRuntime("permissions %q cannot be expressed", d.Permissions)
	}
	var stat unix.Stat_t
	if err := unix.Stat(out.HostPath, &stat); err != nil { // follows symbolic links, as Docker does
		return Node{}, needsRuntime("%s on the host: %v, and Docker copies a node of the host", out.HostPath, err)
	}
	kinds := nodeTypes[stat.Mode&unix.S_IFMT]
	out.UID, out.GID, out.Mode, out.Device = stat.Uid, stat.Gid, os.FileMode(stat.Mode&0o777), stat.Rdev
	host := fmt.Sprintf("%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
	wanted := fmt.Sprintf("%d:%d", d.Major, d.Minor)
	switch {
	case kinds == nil:
		return Node{}, needsRuntime("%s on the host is neither a character nor a block device, and Docker copies no other node", out.HostPath)
	case d.Type != "" && !slices.Contains(kinds, d.Type):
		return Node{}, needsRuntime("the type must be %q, and %s on the host has %q", d.Type, out.HostPath, kinds[0])
	case d.Major != 0 && wanted != host:
		return Node{}, needsRuntime("the device number must be %s, and %s on the host has %s", wanted, out.HostPath, host)
	case d.FileMode != nil && *d.FileMode&0o777 != out.Mode:
		return Node{}, needsRuntime("the mode must be %04o, and %s on the host has %04o", *d.FileMode&0o777, out.HostPath, out.Mode)
	case d.UID != nil && *d.UID != out.UID:
		return Node{}, needsRuntime("the owner must be %d, and %s on the host belongs to %d", *d.UID, out.HostPath, out.UID)
	case d.GID != nil && *d.GID != out.GID:
		return Node{}, needsRuntime("the group must be %d, and %s on the host belongs to group %d", *d.GID, out.HostPath, out.GID)
	}
	out.Type = kinds[0]
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
