// Package ociedit stores what berth-oci, the OCI runtime of berth, has to change in the config.json of one container.
//
// berthd writes the file <directory>/<container ID>.json between the create and the start of the container; berth-oci
// reads it each time that the container is created in the runtime, so at every start of it, and refuses a container that has
// none. The file must therefore exist as long as the container; berthd removes it after the container.
//
// Both believe the file because of where it is: in a directory that only root can enter, below directories that
// only root can change. Labels, annotations and environment variables do not carry instructions, because images and every client
// of the Engine set them.
//
// The package is linked into a program that runs at the start of every such container: it imports little.
package ociedit

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

const (
	// Version is the newest format. It increases when a file has a field that older programs do not
	// know: a program refuses files that are newer than itself, because it would leave out what it does not know. Write uses the
	// oldest format that has all fields of the file, so that the programs of containers that run need no upgrade. 2 has Restore and Namespaces.
	Version = 2
	// DefaultDir is the directory of the files.
	DefaultDir = "/run/berth/oci"
	// MaxSize bounds a file, in bytes.
	MaxSize = 1 << 20
	// maxID is the greatest length of a container ID. Docker's have 64 characters.
	maxID = 128
	// maxMappings is the greatest number of lines of uid_map in Linux >= 4.15 (user_namespaces(7)).
	maxMappings = 340
)

// Instructions say what to change in the config.json of one container. They are applied in the order of the fields, so
// that no patch can take back a user namespace. The zero value, but for the version and the ID, changes nothing.
type Instructions struct {
	// Version is set by Write.
	Version int `json:"version"`
	// ContainerID is the ID by which the Engine calls the runtime, which is Docker's full ID.
	ContainerID string `json:"containerID"`

	// Patches are JSON merge patches (RFC 7396) of the whole config.json: null removes a field, arrays are replaced.
	Patches []json.RawMessage `json:"patches,omitempty"`
	// Hooks are appended to those of the config.json.
	Hooks *Hooks `json:"hooks,omitempty"`
	// HostDevices bounds what a privileged container has of the host's devices, nil for no bound. It precedes Devices.
	HostDevices *HostDevices `json:"hostDevices,omitempty"`
	// Devices are device nodes. One replaces the device of the same path, or else is appended.
	Devices []Device `json:"devices,omitempty"`
	// DeviceOwner becomes the owner of nodes in linux.devices, but for Devices with an owner of their own.
	DeviceOwner *Owner `json:"deviceOwner,omitempty"`
	// Rlimits replace the limits of the same type, or else are appended.
	Rlimits []Rlimit `json:"rlimits,omitempty"`
	// MountOptions are appended to the options of mounts. A destination that the container does not have is an error.
	MountOptions []MountOptions `json:"mountOptions,omitempty"`
	// Unified are values of files of cgroup v2, by name: {"memory.high": "50331648"}.
	Unified map[string]string `json:"unified,omitempty"`
	// AmbientCapabilities, such as CAP_NET_BIND_SERVICE, are added to the bounding, effective, permitted, inheritable and
	// ambient sets of the container's process, and of processes that "docker exec" starts.
	AmbientCapabilities []string `json:"ambientCapabilities,omitempty"`
	// InheritableCapabilities are added to the inheritable set of the container's process.
	InheritableCapabilities []string `json:"inheritableCapabilities,omitempty"`

	// Sandbox is the process whose namespaces the container joins, the first one of the pause container. It is nil for the
	// pause container itself. If that process does not exist any more, or is another one, the container is refused.
	Sandbox *Process `json:"sandbox,omitempty"`
	// JoinNamespaces are the types of namespaces of Sandbox that the container joins, as the OCI specification names
	// them. "uts" is the only one: Docker itself joins network, ipc and pid, and UserNamespace is for user.
	JoinNamespaces []string `json:"joinNamespaces,omitempty"`
	// Namespaces replace the namespaces of the same type, or else are appended.
	Namespaces []Namespace `json:"namespaces,omitempty"`
	// UserNamespace gives the container a user namespace and maps its root file system into it.
	UserNamespace *UserNamespace `json:"userNamespace,omitempty"`

	// Restore has the container go on from a checkpoint, once, instead of starting its program. It needs runc below, and there can
	// be no UserNamespace.
	Restore *Restore `json:"restore,omitempty"`
}

// Names in the directory of a checkpoint.
const (
	RestoreImages  = "checkpoint"      // CRIU's images
	RestoreFiles   = "rootfs-diff.tar" // changed files of the root file system; need not exist
	RestoreDeleted = "deleted.files"   // files of the image that were deleted; need not exist
	RestoreWork    = "work"            // CRIU's log. The program that makes it restores the checkpoint, no other one
	RestoreLog     = "restore.log"     // CRIU's log, in RestoreWork

	// RestoreCgroup has the path of the container's cgroup, unless it is systemd's. The runtime below makes the cgroup long before it has written
	// down that there is a container.
	RestoreCgroup = "cgroup"

	// RestoreMarker is the variable in the environment of the runtime below, and so of CRIU, that says which checkpoint they restore:
	// the name of its directory.
	RestoreMarker = "BERTH_RESTORE"
)

// Restore is a checkpoint. The container is as its config.json says: what follows was found in the checkpoint, and a container
// that it does not fit to is refused.
type Restore struct {
	// Dir is the directory of core/restore with the files of the checkpoint.
	Dir string `json:"dir"`
	// Mounts are all mounts. CRIU makes them as they were: it neither adds one nor leaves one out.
	Mounts     []RestoredMount     `json:"mounts"`
	Namespaces []RestoredNamespace `json:"namespaces"`
	// Capabilities are all that a process has in one of its sets: bit N is capability N of capabilities(7).
	Capabilities uint64 `json:"capabilities"`
	// Root says that a process has the user ID 0.
	Root bool `json:"root"`
	// Seccomp and NoNewPrivileges say that they are set for all processes.
	Seccomp         bool `json:"seccomp"`
	NoNewPrivileges bool `json:"noNewPrivileges"`
	// MaskedPaths and ReadonlyPaths are those of the container.
	MaskedPaths   []string `json:"maskedPaths,omitempty"`
	ReadonlyPaths []string `json:"readonlyPaths,omitempty"`
	// ReadonlyRoot reports that the root file system is read-only.
	ReadonlyRoot bool `json:"readonlyRoot"`
}

// RestoredMount is a mount of a checkpoint.
type RestoredMount struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// RestoredNamespace is a namespace of a container, with a type of the OCI specification.
type RestoredNamespace struct {
	Type   string `json:"type"`
	Joined bool   `json:"joined"` // it has a path
}

// Namespace is a namespace of a type of the OCI specification but "user": a new one without Path, that of the node with Remove.
type Namespace struct {
	Type   string `json:"type"`
	Path   string `json:"path,omitempty"`
	Remove bool   `json:"remove,omitempty"`
}

// NamespaceTypes are those that Namespaces can have.
var NamespaceTypes = []string{"cgroup", "ipc", "mount", "network", "pid", "time", "uts"}

// UserNamespace is the user namespace of a pod.
type UserNamespace struct {
	// UIDMappings and GIDMappings are those of the namespace. Without Sandbox the container gets a new namespace with them;
	// with Sandbox it joins the one of Sandbox, which must have the same.
	UIDMappings []IDMapping `json:"uidMappings"`
	GIDMappings []IDMapping `json:"gidMappings"`
	// Mounts are bind mounts that get other mappings than IDMapOthers says. A destination that the container does not
	// have, or that is no bind mount, is an error.
	Mounts []MountMapping `json:"mounts,omitempty"`
	// IDMapOthers maps all bind mounts that Mounts does not name as the namespace: those that Docker adds, like
	// /etc/hosts, /dev/shm and anonymous volumes. Otherwise they show their owners as 65534.
	IDMapOthers bool `json:"idMapOthers,omitempty"`
}

// IDMapping maps Size IDs from ContainerID on, as processes of the container see them, to those from HostID on.
type IDMapping struct {
	ContainerID uint32 `json:"containerID"`
	HostID      uint32 `json:"hostID"`
	Size        uint32 `json:"size"`
}

// MountMapping says how the owners of the files of one mount are shown. The mappings are those of an id-mapped
// mount: a file that belongs to ContainerID on disk is shown as belonging to HostID, which is what the pod's user namespace maps
// back. Without mappings the mount stays as it is.
type MountMapping struct {
	Destination string      `json:"destination"`
	UIDMappings []IDMapping `json:"uidMappings,omitempty"`
	GIDMappings []IDMapping `json:"gidMappings,omitempty"`
}

// Process identifies a process: a PID can be used again, but not with the same start time.
type Process struct {
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat: clock ticks since the boot of the machine.
	StartTime uint64 `json:"startTime"`
}

// Hooks are programs that the runtime calls, as in the OCI specification. They run as root outside of the container, but for
// CreateContainer and StartContainer.
type Hooks struct {
	Prestart        []Hook `json:"prestart,omitempty"`
	CreateRuntime   []Hook `json:"createRuntime,omitempty"`
	CreateContainer []Hook `json:"createContainer,omitempty"`
	StartContainer  []Hook `json:"startContainer,omitempty"`
	Poststart       []Hook `json:"poststart,omitempty"`
	Poststop        []Hook `json:"poststop,omitempty"`
}

// Hook is one program. Path is absolute, Args has the name of the program first, Timeout is in seconds.
type Hook struct {
	Path    string   `json:"path"`
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
	Timeout *int     `json:"timeout,omitempty"`
}

// Device is a device node of the container.
type Device struct {
	// Path is absolute in the container.
	Path string `json:"path"`
	// Type is b, c, u or p.
	Type  string `json:"type"`
	Major int64  `json:"major,omitempty"`
	Minor int64  `json:"minor,omitempty"`
	// FileMode are the permissions; nil is the runtime's default.
	FileMode *uint32 `json:"fileMode,omitempty"`
	UID      *uint32 `json:"uid,omitempty"`
	GID      *uint32 `json:"gid,omitempty"`
	// Access is what the cgroup allows: of r, w and m. An empty string adds no rule.
	Access string `json:"access,omitempty"`
}

// HostDevices removes all nodes from linux.devices that it does not list. The cgroup allows nothing but the listed ones, and what the
// runtime below allows each container, like /dev/null.
type HostDevices struct {
	Allowed []DeviceAccess `json:"allowed,omitempty"`
}

// DeviceAccess is what the cgroup allows for the nodes at Path or below it: of r, w and m.
type DeviceAccess struct {
	Path   string `json:"path"`
	Access string `json:"access"`
}

// Owner is a user and a group of the container for device nodes at Paths or below them. A nil UID or GID keeps the node's.
type Owner struct {
	UID   *uint32  `json:"uid,omitempty"`
	GID   *uint32  `json:"gid,omitempty"`
	Paths []string `json:"paths"`
}

// Rlimit is a resource limit, like RLIMIT_NOFILE, in the unit of setrlimit(2).
type Rlimit struct {
	Type string `json:"type"`
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// MountOptions are options of config.json for the mount at Destination, like rro.
type MountOptions struct {
	Destination string   `json:"destination"`
	Options     []string `json:"options"`
}

// Changes reports whether i changes anything in a container.
func (i *Instructions) Changes() bool {
	lists := len(i.Patches) + len(i.Devices) + len(i.Rlimits) + len(i.MountOptions) + len(i.Unified) + len(i.AmbientCapabilities) + len(i.InheritableCapabilities) + len(i.JoinNamespaces) + len(i.Namespaces)
	return lists > 0 || len(i.Hooks.all()) > 0 || i.HostDevices != nil || i.DeviceOwner != nil || i.UserNamespace != nil || i.Restore != nil
}

// version returns the oldest format that has all fields of i.
func (i *Instructions) version() int {
	if i.Restore == nil && len(i.Namespaces) == 0 {
		return 1
	}
	return Version
}

// idCharacters are those of container IDs.
const idCharacters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-"

// validID reports whether id can be a container ID, and so the name of a file.
func validID(id string) bool {
	return id != "" && len(id) <= maxID && id[0] != '.' && id[0] != '-' && strings.Trim(id, idCharacters) == ""
}

// validate reports the first thing in i that cannot be applied to any container.
func (i *Instructions) validate() error {
	for n, patch := range i.Patches {
		var object map[string]json.RawMessage
		if json.Unmarshal(patch, &object) != nil || object == nil {
			return fmt.Errorf("patch %d is not a JSON object", n+1)
		}
	}
	for _, d := range i.Devices {
		switch {
		case !absolute(d.Path):
			return fmt.Errorf("device %q: the path must be absolute", d.Path)
		case !slices.Contains([]string{"b", "c", "u", "p"}, d.Type):
			return fmt.Errorf("device %s has type %q: must be one of b, c, u, p", d.Path, d.Type)
		case strings.Trim(d.Access, "rwm") != "":
			return fmt.Errorf("device %s has access %q: must be of r, w and m", d.Path, d.Access)
		}
	}
	if err := i.validateDeviceEdits(); err != nil {
		return err
	}
	for _, h := range i.Hooks.all() {
		if !absolute(h.Path) {
			return fmt.Errorf("hook %q: the path must be absolute", h.Path)
		}
	}
	for name := range i.Unified {
		if name == "" || strings.ContainsAny(name, "/\x00") {
			return fmt.Errorf("cgroup file %q: must be a name without a slash", name)
		}
	}
	for _, name := range slices.Concat(i.AmbientCapabilities, i.InheritableCapabilities) {
		if !strings.HasPrefix(name, "CAP_") {
			return fmt.Errorf("capability %q: must begin with CAP_", name)
		}
	}
	return i.validateNamespaces()
}

func (i *Instructions) validateDeviceEdits() error {
	if i.HostDevices != nil {
		for _, d := range i.HostDevices.Allowed {
			if !absolute(d.Path) || strings.Trim(d.Access, "rwm") != "" {
				return fmt.Errorf("device %q with access %q: the path must be absolute, the access of r, w and m", d.Path, d.Access)
			}
		}
	}
	if i.DeviceOwner != nil {
		for _, path := range i.DeviceOwner.Paths {
			if !absolute(path) {
				return fmt.Errorf("owner of device %q: the path must be absolute", path)
			}
		}
	}
	return nil
}

func (i *Instructions) validateNamespaces() error {
	if s := i.Sandbox; s != nil && (s.PID <= 0 || s.StartTime == 0) {
		return errors.New("the process of the sandbox needs a PID and a start time")
	}
	for _, kind := range i.JoinNamespaces {
		if kind != "uts" {
			return fmt.Errorf("namespace %q cannot be joined: must be uts", kind)
		}
		if i.Sandbox == nil {
			return fmt.Errorf("namespace %s cannot be joined without a process of the sandbox", kind)
		}
	}
	for _, n := range i.Namespaces {
		if !slices.Contains(NamespaceTypes, n.Type) || n.Path != "" && (n.Remove || !absolute(n.Path)) {
			return fmt.Errorf("namespace %q with path %q: must be one of %s, the path absolute or empty", n.Type, n.Path, strings.Join(NamespaceTypes, ", "))
		}
	}
	u := i.UserNamespace
	if r := i.Restore; r != nil {
		switch {
		case !absolute(r.Dir) || path.Clean(r.Dir) != r.Dir:
			return fmt.Errorf("checkpoint %q: must be an absolute path without . and .. elements", r.Dir)
		case u != nil:
			return errors.New("a container with a user namespace cannot be restored")
		}
	}
	if u == nil {
		return nil
	}
	if len(u.UIDMappings) == 0 || len(u.GIDMappings) == 0 {
		return errors.New("a user namespace needs UID and GID mappings")
	}
	if err := validateMappings("the user namespace", u.UIDMappings, u.GIDMappings); err != nil {
		return err
	}
	for _, m := range u.Mounts {
		if !absolute(m.Destination) {
			return fmt.Errorf("mount %q: the destination must be absolute", m.Destination)
		}
		if (len(m.UIDMappings) == 0) != (len(m.GIDMappings) == 0) {
			return fmt.Errorf("mount %s needs both UID and GID mappings or none", m.Destination)
		}
		if err := validateMappings("mount "+m.Destination, m.UIDMappings, m.GIDMappings); err != nil {
			return err
		}
	}
	return nil
}

// validateMappings checks mappings as the kernel does when they are written to uid_map.
func validateMappings(what string, both ...[]IDMapping) error {
	for _, mappings := range both {
		if len(mappings) > maxMappings {
			return fmt.Errorf("%s has %d mappings: must be at most %d", what, len(mappings), maxMappings)
		}
		for n, m := range mappings {
			if m.Size == 0 || overflows(m.ContainerID, m.Size) || overflows(m.HostID, m.Size) {
				return fmt.Errorf("%s has the mapping %d %d %d: must be within 32 bits", what, m.ContainerID, m.HostID, m.Size)
			}
			for _, o := range mappings[:n] {
				if overlap(m.ContainerID, o.ContainerID, m.Size, o.Size) || overlap(m.HostID, o.HostID, m.Size, o.Size) {
					return fmt.Errorf("%s has mappings that overlap", what)
				}
			}
		}
	}
	return nil
}

// overflows reports whether a range has 2^32-1, which is no ID, or more.
func overflows(first, size uint32) bool { return uint64(first)+uint64(size) > 1<<32-1 }

func overlap(a, b, sizeA, sizeB uint32) bool {
	return uint64(a) < uint64(b)+uint64(sizeB) && uint64(b) < uint64(a)+uint64(sizeA)
}

// all returns the hooks of all kinds.
func (h *Hooks) all() []Hook {
	if h == nil {
		return nil
	}
	return slices.Concat(h.Prestart, h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop)
}

// Append returns the hooks of h, and then those of others. Either may be nil.
func (h *Hooks) Append(others *Hooks) *Hooks {
	if h == nil || others == nil {
		return cmp.Or(h, others)
	}
	return &Hooks{
		Prestart:        slices.Concat(h.Prestart, others.Prestart),
		CreateRuntime:   slices.Concat(h.CreateRuntime, others.CreateRuntime),
		CreateContainer: slices.Concat(h.CreateContainer, others.CreateContainer),
		StartContainer:  slices.Concat(h.StartContainer, others.StartContainer),
		Poststart:       slices.Concat(h.Poststart, others.Poststart),
		Poststop:        slices.Concat(h.Poststop, others.Poststop),
	}
}

// Stage returns the hooks of a stage, named as in the OCI specification, nil if there is no such stage.
func (h *Hooks) Stage(name string) *[]Hook {
	return map[string]*[]Hook{
		"prestart": &h.Prestart, "createRuntime": &h.CreateRuntime, "createContainer": &h.CreateContainer,
		"startContainer": &h.StartContainer, "poststart": &h.Poststart, "poststop": &h.Poststop,
	}[name]
}

func absolute(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.Contains(path, "\x00")
}
