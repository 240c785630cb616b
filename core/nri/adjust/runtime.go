package adjust

import (
	"maps"
	"slices"

	"github.com/containerd/nri/pkg/api"

	"berth/core/names"
	"berth/core/ociedit"
	"berth/core/ocifeatures"
)

// What follows has no field in the Engine API. Low-level runtimes ignore fields of the OCI specification that they do not
// know, so that most of it needs a runtime that reports that it has the field.

// reported returns what the runtime of the container reports about itself.
func (out *change) reported() ocifeatures.Features {
	runtime := out.Runtime
	if below := names.BelowOCIRuntime(runtime); below != "" {
		runtime = below
	}
	if runtime == "" {
		runtime = out.Features.DefaultRuntime
	}
	return out.Features.Runtimes[runtime].OCI
}

// require refuses a field that the runtime of the container does not report to have.
func (out *change) require(field string, has bool) error {
	if !has {
		return failed("%s: the low-level runtime does not report that it has the field (docker info, with Docker 25 or newer)", field)
	}
	return nil
}

// linuxPatch sets fields of linux in the OCI spec.
func linuxPatch(name string, v any) map[string]any {
	return map[string]any{"linux": map[string]any{name: v}}
}

func (out *change) ioPriority(p *api.LinuxIOPriority) error {
	// runc 1.2, the first one with I/O priorities and schedulers, is the first one that knows 1.2 of the specification.
	if err := out.require("linux.io_priority", out.reported().AtLeast(1, 2)); err != nil || out.spec == nil {
		return err
	}
	if p.GetClass() == api.IOPrioClass_IOPRIO_CLASS_NONE {
		return nil // that of the parent, as without it
	}
	return out.patch("I/O priorities", map[string]any{"process": map[string]any{"ioPriority": p.ToOCI()}})
}

func (out *change) scheduler(s *api.LinuxScheduler) error {
	if err := out.require("linux.scheduler", out.reported().AtLeast(1, 2)); err != nil || out.spec == nil {
		return err
	}
	if s.ToOCI() == nil {
		return invalid("linux.scheduler: a policy must be set")
	}
	return out.patch("schedulers", map[string]any{"process": map[string]any{"scheduler": s.ToOCI()}})
}

func (out *change) memoryPolicy(p *api.LinuxMemoryPolicy) error {
	policy := p.ToOCI()
	wanted := []string{string(policy.Mode)}
	for _, flag := range policy.Flags {
		wanted = append(wanted, string(flag))
	}
	if err := out.require("linux.memory_policy", out.reported().MemoryPolicy(wanted...)); err != nil || out.spec == nil {
		return err
	}
	return out.patch("memory policies", linuxPatch("memoryPolicy", policy))
}

func (out *change) netDevices(devices map[string]*api.LinuxNetDevice) error {
	if err := out.require("linux.net_devices", out.reported().NetDevices); err != nil || out.spec == nil {
		return err
	}
	added := map[string]any{}
	for _, key := range slices.Sorted(maps.Keys(devices)) {
		if _, removed := api.IsMarkedForRemoval(key); removed {
			continue // Docker gives a container none that could be removed
		}
		device := map[string]any{}
		if name := devices[key].GetName(); name != "" {
			device["name"] = name
		}
		added[key] = device
	}
	if len(added) == 0 {
		return nil
	}
	return out.patch("network devices", linuxPatch("netDevices", added))
}

// namespaces are in every version of the specification. User namespaces are those of the pod.
func (out *change) namespaces(list []*api.LinuxNamespace) error {
	for _, n := range list {
		kind, removed := n.IsMarkedForRemoval()
		if kind == "user" {
			return failed("linux.namespaces: a user namespace belongs to the pod (hostUsers: false)")
		}
		if !slices.Contains(ociedit.NamespaceTypes, kind) {
			return invalid("linux.namespaces: type %q is none of the OCI specification", kind)
		}
		if out.spec != nil {
			out.need("other namespaces")
			out.spec.Instructions.Namespaces = append(out.spec.Instructions.Namespaces, ociedit.Namespace{Type: kind, Path: n.GetPath(), Remove: removed})
		}
	}
	return nil
}

func (out *change) rdt(r *api.LinuxRdt) error {
	has := out.reported()
	fields := map[string]any{}
	if v := r.GetClosId(); v != nil {
		fields["closID"] = v.GetValue()
		if err := out.require("linux.rdt.clos_id", has.Rdt); err != nil {
			return err
		}
	}
	if v := r.GetSchemata(); v != nil {
		fields["schemata"] = v.GetValue()
		if err := out.require("linux.rdt.schemata", has.RdtSchemata); err != nil {
			return err
		}
	}
	if v := r.GetEnableMonitoring(); v != nil {
		fields["enableMonitoring"] = v.GetValue()
		if err := out.require("linux.rdt.enable_monitoring", has.RdtMonitoring); err != nil {
			return err
		}
	}
	if len(fields) == 0 || out.spec == nil {
		return nil // Docker gives a container none that could be removed
	}
	return out.patch("RDT", linuxPatch("intelRdt", fields))
}
