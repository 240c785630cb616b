// Package adjust applies what NRI plugins change in containers: the adjustment of a container that is being created, and the
// updates of the resources of others. It is pure: values in, values out, no I/O.
//
// A Change is applied in two steps. Config changes the request of the CRI, which has a field for most of it: what follows,
// from validation to mounts that the Engine API cannot express, is then the same as for a pod that requests it. Spec
// changes what the request was translated to, for what the CRI has no field for: HostConfig of the Engine API or, for what
// that API cannot express either, the instructions for berth's OCI runtime.
//
// Each field of the messages of NRI is applied or refused, with an error that names the plugins and the field. A field that
// this package does not know, of a newer version of NRI, is refused. Nothing is left out.
package adjust

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/names"
	"berth/core/todocker"
)

// A Change is what plugins change in one container that is being created.
type Change struct {
	adjustment *api.ContainerAdjustment // without empty fields
	plugins    []string
	unknown    bool // a plugin has sent a field that this version of NRI does not know
}

// New returns the change of an adjustment of the container id that these plugins have returned together. unknown reports that one of them
// has sent a field that this version of NRI does not know.
//
// The Change is one of the same container with another ID, too: where the ID is in it, names.UnknownID takes its place.
func New(adjustment *api.ContainerAdjustment, id string, plugins []string, unknown bool) Change {
	var own *api.ContainerAdjustment
	if adjustment != nil {
		own = proto.CloneOf(adjustment).Strip()
	}
	if own == nil {
		own = &api.ContainerAdjustment{}
	}
	if id != "" {
		replaceStrings(own.ProtoReflect(), strings.NewReplacer(id, names.UnknownID))
	}
	return Change{own, plugins, unknown}
}

// replaceStrings replaces in every string of m, but for keys of maps.
func replaceStrings(m protoreflect.Message, r *strings.Replacer) {
	replaced := func(field protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
		switch field.Kind() {
		case protoreflect.MessageKind:
			replaceStrings(v.Message(), r)
		case protoreflect.StringKind:
			return protoreflect.ValueOfString(r.Replace(v.String()))
		default:
		}
		return v
	}
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.IsMap():
			v.Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
				v.Map().Set(key, replaced(field.MapValue(), value))
				return true
			})
		case field.IsList():
			for i := range v.List().Len() {
				v.List().Set(i, replaced(field, v.List().Get(i)))
			}
		default:
			m.Set(field, replaced(field, v))
		}
		return true
	})
}

// HasUnknown reports whether m has a field that this version of NRI does not know.
func HasUnknown(m protoreflect.Message) bool {
	found := len(m.GetUnknown()) > 0
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.Message() == nil:
		case field.IsMap() && field.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				found = found || HasUnknown(v.Message())
				return !found
			})
		case field.IsMap():
		case field.IsList():
			for i := range v.List().Len() {
				found = found || HasUnknown(v.List().Get(i).Message())
			}
		default:
			found = found || HasUnknown(v.Message())
		}
		return !found
	})
	return found
}

// Plugins returns the names of the plugins.
func (c Change) Plugins() []string { return c.plugins }

// Empty reports whether the container stays as it is.
func (c Change) Empty() bool { return proto.Size(c.adjustment) == 0 && !c.unknown }

// Equal reports whether two changes are the same.
func (c Change) Equal(other Change) bool {
	return proto.Equal(c.adjustment, other.adjustment) && c.unknown == other.unknown
}

// Fields returns the names of the fields that are changed, as in api.proto of NRI: "env", "linux.resources".
func (c Change) Fields() []string {
	return c.fieldsThat(func(protoreflect.Message, protoreflect.FieldDescriptor, protoreflect.Value) bool { return true })
}

// fieldsThat returns the names of those fields, with their messages and values, that match.
func (c Change) fieldsThat(match func(protoreflect.Message, protoreflect.FieldDescriptor, protoreflect.Value) bool) (names []string) {
	add := func(prefix string, m protoreflect.Message) {
		m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			if (prefix != "" || field.Name() != "linux") && match(m, field, v) {
				names = append(names, prefix+string(field.Name()))
			}
			return true
		})
	}
	add("", c.adjustment.ProtoReflect())
	add("linux.", c.adjustment.GetLinux().ProtoReflect())
	slices.Sort(names)
	return names
}

// ofProcess are the fields that a process which goes on from a checkpoint has from there.
var ofProcess = []string{"args", "env", "linux.io_priority", "linux.memory_policy", "linux.oom_score_adj", "linux.scheduler", "linux.seccomp_policy", "rlimits"}

// Restored returns an error if c changes what a container that is restored from a checkpoint has from there.
func (c Change) Restored() error {
	for _, field := range c.Fields() {
		if slices.Contains(ofProcess, field) {
			return fmt.Errorf("NRI plugin %s: %w", strings.Join(c.plugins, ", "), failed("%s: a container that is restored has it from its checkpoint", field))
		}
	}
	return nil
}

// A Node is a device node of the host.
type Node struct {
	Type         string // b, c or p
	Major, Minor int64
	Mode         uint32 // permissions
	UID, GID     uint32
}

// An Env is what the node and its Docker have for changes.
type Env struct {
	Features engine.Features
	// Dir is the directory of instructions for berth's OCI runtime; "" for none.
	Dir string
	// Runtime is the HostConfig.Runtime of the sandbox.
	Runtime string
	// Node returns the device node of the host at a path.
	Node func(path string) (Node, bool)
	// BlockIO sets what a block I/O class has; nil without classes.
	BlockIO func(class string, r *container.Resources) error
	// RdtClass reports whether resctrl has the class.
	RdtClass func(class string) bool
}

// change is one change that is being applied.
type change struct {
	Env
	config *runtimeapi.ContainerConfig // as requested at first, then changed
	spec   *todocker.Spec              // nil in Config
	needs  string                      // what needs berth's OCI runtime, "" for nothing
}

// Config returns the request of the CRI with what it has fields for. It refuses what cannot be applied to any container.
func (c Change) Config(config *runtimeapi.ContainerConfig, env Env) (*runtimeapi.ContainerConfig, error) {
	out := &change{Env: env, config: proto.CloneOf(config)}
	return out.config, c.apply(out)
}

// Spec applies the rest to what the changed request was translated to.
func (c Change) Spec(spec *todocker.Spec, config *runtimeapi.ContainerConfig, env Env) error {
	out := &change{Env: env, config: config, spec: spec}
	if err := c.apply(out); err != nil {
		return err
	}
	spec.Strict = true
	if err := c.checkID(spec); err != nil {
		return c.named(err)
	}
	return c.named(out.useRuntime())
}

// checkID fails if Docker would have to be sent the ID of a container that it has not created.
func (c Change) checkID(spec *todocker.Spec) error {
	request, err := json.Marshal([]any{spec.Config, spec.Host})
	if err != nil || !bytes.Contains(request, []byte(names.UnknownID)) {
		return err
	}
	fields := c.fieldsThat(func(m protoreflect.Message, field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		only := m.New()
		only.Set(field, v)
		text, err := proto.Marshal(only.Interface())
		return err != nil || bytes.Contains(text, []byte(names.UnknownID))
	})
	return failed("%s: the ID of the container can only be in sources of bind mounts and in hooks, for Docker chooses it when it creates the container", strings.Join(fields, ", "))
}

// apply applies each field, in the order of its number.
func (c Change) apply(out *change) error {
	if c.unknown {
		return c.named(failed("a field of a newer version of NRI: this berthd does not know it"))
	}
	if err := each(c.adjustment.ProtoReflect(), func(name string) error { return out.general(name, c.adjustment) }); err != nil {
		return c.named(err)
	}
	linux := c.adjustment.GetLinux()
	return c.named(each(linux.ProtoReflect(), func(name string) error { return out.linux(name, linux) }))
}

// each calls apply with the name of each field that m has.
func each(m protoreflect.Message, apply func(name string) error) error {
	fields := map[int]string{}
	m.Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		fields[int(field.Number())] = string(field.Name())
		return true
	})
	for _, number := range slices.Sorted(maps.Keys(fields)) {
		if err := apply(fields[number]); err != nil {
			return err
		}
	}
	return nil
}

// named adds the names of the plugins to an error.
func (c Change) named(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("adjustment by NRI plugin %s: %w", strings.Join(c.plugins, ", "), err)
}

// general applies a field of ContainerAdjustment.
func (out *change) general(name string, a *api.ContainerAdjustment) error {
	switch name {
	case "annotations":
		return out.annotations(a.GetAnnotations())
	case "mounts":
		return out.mounts(a.GetMounts())
	case "env":
		return out.env(a.GetEnv())
	case "args":
		return out.args(a.GetArgs())
	case "hooks":
		return out.hooks(a.GetHooks())
	case "rlimits":
		return out.rlimits(a.GetRlimits())
	case "CDI_devices":
		out.cdiDevices(a.GetCDIDevices())
		return nil
	case "linux":
		return nil // its fields follow
	default:
		return failed("%s: this berthd does not know the field", name)
	}
}

// linux applies a field of LinuxContainerAdjustment.
func (out *change) linux(name string, a *api.LinuxContainerAdjustment) error {
	switch name {
	case "devices":
		return out.devices(a.GetDevices())
	case "resources":
		return out.resources(a.GetResources())
	case "cgroups_path":
		return failed("linux.cgroups_path %q: Docker chooses the cgroup of a container", a.GetCgroupsPath())
	case "oom_score_adj":
		return out.oomScore(a.GetOomScoreAdj().GetValue())
	case "io_priority":
		return out.ioPriority(a.GetIoPriority())
	case "seccomp_policy":
		return out.seccomp(a.GetSeccompPolicy())
	case "namespaces":
		return out.namespaces(a.GetNamespaces())
	case "sysctl":
		out.sysctls(a.GetSysctl())
		return nil
	case "net_devices":
		return out.netDevices(a.GetNetDevices())
	case "scheduler":
		return out.scheduler(a.GetScheduler())
	case "rdt":
		return out.rdt(a.GetRdt())
	case "memory_policy":
		return out.memoryPolicy(a.GetMemoryPolicy())
	default:
		return failed("linux.%s: this berthd does not know the field", name)
	}
}

func failed(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
