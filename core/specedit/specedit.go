// Package specedit translates what the CRI, options and files of the operator request and the Engine API cannot
// express to instructions for berth's OCI runtime (cmd/berth-oci), and chooses the runtime of Docker that applies them.
// It is pure: values in, values out, no I/O. User namespaces are translated by package userns.
//
// Containers without instructions keep the runtime of their pod. What cannot be done without the OCI runtime is an error of
// kind FailedPrecondition where Docker does not have it, and never left out. Cgroup settings have a fallback: package
// resources writes them right after the start.
package specedit

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cdi"
	"berth/core/engine"
	"berth/core/names"
	"berth/core/ociedit"
	"berth/core/podpolicy"
)

// installCommand is what an operator runs.
const installCommand = "berthd runtime install"

// Runtime returns the runtime of Docker that applies instructions in the directory dir to containers of the runtime below, "" for the
// default one. what, in the plural, is what they need it for.
func Runtime(what, below, dir string, features engine.Features) (string, error) {
	if below == "" {
		below = features.DefaultRuntime
	}
	name := names.OCIRuntime(below)
	switch own := features.Runtimes[name].Instructions; {
	case !features.RuncShim(below):
		return "", failed("%s: the runtime %s has a containerd shim of its own, and only runtimes like runc are supported", what, below)
	case own == "" || dir == "":
		return "", failed("%s need the OCI runtime %s, which Docker does not have: run %s", what, name, installCommand)
	case own != dir:
		return "", failed("%s: the OCI runtime %s of Docker reads instructions in %s, and this berthd writes them to %s: run %s", what, name, own, dir, installCommand)
	}
	return name, nil
}

// Installed reports whether Docker has the OCI runtime for containers of the runtime below, whose name may be that of the OCI runtime.
func Installed(runtime, dir string, features engine.Features) bool {
	_, err := InstalledRuntime("", runtime, dir, features)
	return err == nil
}

// InstalledRuntime returns the runtime of Docker that applies instructions to containers of a sandbox with the runtime; what, in the plural,
// is what they need it for.
func InstalledRuntime(what, runtime, dir string, features engine.Features) (string, error) {
	return Runtime(what, withoutEdits(runtime, features), dir, features)
}

// withoutEdits returns the runtime that a container without instructions has in a sandbox with this runtime. berth's OCI
// runtime refuses containers without instructions.
func withoutEdits(runtime string, features engine.Features) string {
	if r, known := features.Runtimes[runtime]; known && r.Instructions == "" {
		return runtime
	}
	if below := names.BelowOCIRuntime(runtime); below != "" {
		return below
	}
	return runtime
}

// Files are what files of the operator change in a container.
type Files struct {
	Patches []json.RawMessage // JSON merge patches of the OCI spec
	Hooks   *ociedit.Hooks
}

// A Sandbox is what Instructions needs to know of a pause container.
type Sandbox struct {
	Runtime string // that it has without instructions
	Dir     string // of instructions; "" on a berthd that writes none
	Files   Files  // hooks are for containers only
	UserNS  *ociedit.UserNamespace
}

// Instructions returns what to change in a pause container, and its HostConfig.Runtime.
func (s Sandbox) Instructions(features engine.Features) (i ociedit.Instructions, runtime string, err error) {
	i.Patches, i.UserNamespace = s.Files.Patches, s.UserNS
	switch {
	case len(i.Patches) > 0:
		runtime, err = Runtime(needPatches, s.Runtime, s.Dir, features)
	case i.UserNamespace != nil:
		runtime, err = Runtime(needUserNS, s.Runtime, s.Dir, features)
	default:
		runtime = s.Runtime
	}
	return i, runtime, err
}

// What instructions are needed for, for messages.
const (
	needUserNS      = "user namespaces"
	needPatches     = "patches of OCI specs"
	needHooks       = "OCI hooks"
	needAmbient     = "ambient capabilities"
	needDeviceOwner = "devices with another owner (" + podpolicy.DeviceOwnershipOption + ")"
	needPodUTS      = "UTS namespaces of pods (" + podpolicy.PodUTSNamespaceOption + ")"
	needNoDevices   = "privileged containers without the devices of the node (" + podpolicy.WithoutHostDevicesOption + ")"
	needRestore     = "containers that are restored from a checkpoint"
	needCDI         = "CDI devices with hooks or with nodes that differ from the host's"
)

// A Container is what Instructions needs to know of a container.
type Container struct {
	Pod     *runtimeapi.PodSandboxConfig
	Config  *runtimeapi.ContainerConfig
	Runtime string // HostConfig.Runtime of the sandbox
	Dir     string // of instructions; "" on a berthd that writes none
	Files   Files
	Options podpolicy.Edits
	CDI     cdi.Edits
	UserNS  *ociedit.UserNamespace
	Restore *ociedit.Restore // checkpoint; nil for none
}

// Instructions returns what to change in a container, and its HostConfig.Runtime.
func (c Container) Instructions(features engine.Features) (ociedit.Instructions, string, error) {
	i := ociedit.Instructions{Patches: c.Files.Patches, Hooks: c.Files.Hooks, UserNamespace: c.UserNS}
	var needs []string
	need := func(what string, needed bool) bool {
		if needed {
			needs = append(needs, what)
		}
		return needed
	}
	if need(needRestore, c.Restore != nil) {
		if err := c.checkRestore(); err != nil {
			return ociedit.Instructions{}, "", err
		}
		i.Restore = c.Restore
	}
	need(needUserNS, c.UserNS != nil)
	need(needPatches, len(i.Patches) > 0)
	need(needHooks, i.Hooks != nil)
	sc := c.Config.GetLinux().GetSecurityContext()
	_, _, ambient, err := Capabilities(sc.GetCapabilities())
	if err != nil {
		return ociedit.Instructions{}, "", err
	}
	if need(needAmbient, len(ambient) > 0) {
		i.AmbientCapabilities = ambient
	}
	if owner := c.deviceOwner(); need(needDeviceOwner, owner != nil) {
		i.DeviceOwner = owner
	}
	below := withoutEdits(c.Runtime, features)
	if need(needPodUTS, c.joinsUTS(below, features)) {
		i.JoinNamespaces = []string{"uts"}
	}
	if need(needNoDevices, c.Options.WithoutHostDevices && sc.GetPrivileged()) {
		i.HostDevices = &ociedit.HostDevices{Allowed: c.allowedDevices()}
	}
	if need(needCDI, len(c.CDI.Devices) > 0 || c.CDI.Hooks != nil) {
		i.Devices, i.Hooks = c.CDI.Devices, c.CDI.Hooks.Append(i.Hooks)
	}
	if err := addCgroupSettings(&i, c.Config.GetLinux().GetResources(), features); err != nil {
		return ociedit.Instructions{}, "", err
	}
	if !i.Changes() {
		return ociedit.Instructions{}, below, nil
	}
	if len(needs) == 0 { // cgroup settings alone
		name, err := Runtime("", below, c.Dir, features)
		if err != nil {
			return ociedit.Instructions{}, below, nil //nolint:nilerr // they are written right after the start
		}
		return i, name, nil
	}
	name, err := Runtime(needs[0], below, c.Dir, features)
	return i, name, err
}

// checkRestore refuses what no checkpoint can be restored with.
func (c Container) checkRestore() error {
	switch {
	case c.UserNS != nil:
		return failed("a container cannot be restored in a pod with a user namespace")
	case c.Config.GetTty():
		return failed("a container with a terminal cannot be restored")
	}
	return nil
}

// joinsUTS reports whether the container joins the UTS namespace of its pause container. Runtimes with a shim of their own isolate pods
// by themselves, and a pod in the node's network has the node's UTS namespace.
func (c Container) joinsUTS(runtime string, features engine.Features) bool {
	network := c.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork()
	return c.Options.PodUTSNamespace && network != runtimeapi.NamespaceMode_NODE && features.RuncShim(runtime)
}

// deviceOwner returns the owner of the devices of a container, nil to keep that of the node. As in containerd
// (WithDevices in internal/cri/opts of 2.1), a user or group that is 0 or not set changes nothing, and devices that the container has from
// elsewhere keep theirs.
func (c Container) deviceOwner() *ociedit.Owner {
	sc := c.Config.GetLinux().GetSecurityContext()
	if !c.Options.DeviceOwnership || sc.GetPrivileged() {
		return nil
	}
	owner := &ociedit.Owner{UID: ownerID(sc.GetRunAsUser()), GID: ownerID(sc.GetRunAsGroup())}
	for _, d := range c.Config.GetDevices() {
		owner.Paths = append(owner.Paths, d.GetContainerPath())
	}
	if owner.UID == nil && owner.GID == nil || len(owner.Paths) == 0 {
		return nil
	}
	return owner
}

// ownerID returns the ID that a device gets, nil to keep that of the node. Package identity has refused others than those of Docker.
func ownerID(id *runtimeapi.Int64Value) *uint32 {
	if id.GetValue() <= 0 {
		return nil
	}
	return new(uint32(id.GetValue()))
}

// allowedDevices returns the devices that a privileged container without the devices of the node has.
func (c Container) allowedDevices() (list []ociedit.DeviceAccess) {
	for _, d := range c.CDI.MergeDevices(c.Config.GetDevices()) {
		access := d.GetPermissions()
		if access == "" {
			access = "rwm"
		}
		list = append(list, ociedit.DeviceAccess{Path: d.GetContainerPath(), Access: access})
	}
	return list
}

func failed(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
