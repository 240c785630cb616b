package adjust

import (
	"cmp"
	"fmt"
	"math"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/limits"
)

// Resources are LinuxResources of NRI. CRI has what the CRI has fields for; fields that are not set stay as they are.
type Resources struct {
	CRI *runtimeapi.LinuxContainerResources

	// The Engine API can change these of a container that exists.
	Reservation *int64 // of memory, in bytes
	Pids        *int64 // the greatest number of processes; -1 for no limit

	// These it can only set when it creates a container.
	kernelTCP         *int64
	swappiness        *int64
	oomKillDisable    *bool
	realtimeRuntime   *int64
	realtimePeriod    *int64
	deviceRules       []string
	blockIO, rdtClass *string
}

// NewResources translates r. What no container can have with these features is an error.
func NewResources(r *api.LinuxResources, features engine.Features) (Resources, error) {
	out := Resources{CRI: &runtimeapi.LinuxContainerResources{}}
	err := each(r.ProtoReflect(), func(name string) error {
		switch name {
		case "memory":
			return each(r.GetMemory().ProtoReflect(), func(name string) error { return out.memory(name, r.GetMemory(), features) })
		case "cpu":
			return each(r.GetCpu().ProtoReflect(), func(name string) error { return out.cpu(name, r.GetCpu(), features) })
		case "hugepage_limits":
			for _, h := range r.GetHugepageLimits() {
				out.CRI.HugepageLimits = append(out.CRI.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
			}
		case "blockio_class":
			out.blockIO = new(r.GetBlockioClass().GetValue())
		case "rdt_class":
			out.rdtClass = new(r.GetRdtClass().GetValue())
		case "unified":
			out.CRI.Unified = r.GetUnified()
		case "devices":
			return out.devices(r.GetDevices())
		case "pids":
			out.Pids = new(r.GetPids().GetLimit())
		default:
			return failed("%s: this berthd does not know the field", name)
		}
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("linux.resources: %w", err)
	}
	return out, nil
}

// v1 refuses a field that is not set to what no cgroup v2 node can do otherwise.
func v1(field string, features engine.Features) error {
	if features.CgroupVersion == 2 {
		return failed("%s: needs cgroup v1, and this node has v2", field)
	}
	return nil
}

func (out *Resources) memory(name string, m *api.LinuxMemory, features engine.Features) error {
	switch name {
	case "limit":
		out.CRI.MemoryLimitInBytes = m.GetLimit().GetValue()
	case "swap": // with memory, as in the CRI
		out.CRI.MemorySwapLimitInBytes = m.GetSwap().GetValue()
	case "reservation":
		out.Reservation = new(m.GetReservation().GetValue())
	case "kernel":
		return failed("memory.kernel: Docker has no limit of kernel memory, which Linux has deprecated")
	case "kernel_tcp":
		out.kernelTCP = new(m.GetKernelTcp().GetValue())
		return v1("memory.kernel_tcp", features)
	case "swappiness":
		if m.GetSwappiness().GetValue() > 100 {
			return invalid("memory.swappiness %d: must be at most 100", m.GetSwappiness().GetValue())
		}
		out.swappiness = new(int64(m.GetSwappiness().GetValue()))
		return v1("memory.swappiness", features)
	case "disable_oom_killer":
		if m.GetDisableOomKiller().GetValue() {
			out.oomKillDisable = new(true)
			return v1("memory.disable_oom_killer", features)
		}
		out.oomKillDisable = new(false)
	case "use_hierarchy":
		if !m.GetUseHierarchy().GetValue() {
			return failed("memory.use_hierarchy false: the cgroups of Docker are hierarchical")
		}
	default:
		return failed("memory.%s: this berthd does not know the field", name)
	}
	return nil
}

func (out *Resources) cpu(name string, c *api.LinuxCPU, features engine.Features) error {
	switch name {
	case "shares":
		return signed(&out.CRI.CpuShares, "cpu.shares", c.GetShares().GetValue())
	case "quota":
		out.CRI.CpuQuota = c.GetQuota().GetValue()
	case "period":
		return signed(&out.CRI.CpuPeriod, "cpu.period", c.GetPeriod().GetValue())
	case "realtime_runtime":
		out.realtimeRuntime = new(c.GetRealtimeRuntime().GetValue())
		return v1("cpu.realtime_runtime", features)
	case "realtime_period":
		out.realtimePeriod = new(int64(0))
		if err := signed(out.realtimePeriod, "cpu.realtime_period", c.GetRealtimePeriod().GetValue()); err != nil {
			return err
		}
		return v1("cpu.realtime_period", features)
	case "cpus":
		out.CRI.CpusetCpus = c.GetCpus()
	case "mems":
		out.CRI.CpusetMems = c.GetMems()
	default:
		return failed("cpu.%s: this berthd does not know the field", name)
	}
	return nil
}

// signed stores a value of NRI in a field of the CRI.
func signed(field *int64, name string, v uint64) error {
	if v > math.MaxInt64 {
		return invalid("%s %d: must be at most %d", name, v, int64(math.MaxInt64))
	}
	*field = int64(v)
	return nil
}

// devices translates rules of the device cgroup. Docker allows more, and denies nothing that it allows every container.
func (out *Resources) devices(rules []*api.LinuxDeviceCgroup) error {
	for _, r := range rules {
		number := func(v *api.OptionalInt64) string {
			if v == nil || v.GetValue() < 0 {
				return "*"
			}
			return fmt.Sprint(v.GetValue())
		}
		rule := fmt.Sprintf("%s %s:%s %s", cmp.Or(r.GetType(), "a"), number(r.GetMajor()), number(r.GetMinor()), cmp.Or(r.GetAccess(), "rwm"))
		if !r.GetAllow() {
			return failed("devices: a rule that denies %q, and Docker has only rules that allow", rule)
		}
		out.deviceRules = append(out.deviceRules, rule)
	}
	return nil
}

// CheckUpdate refuses what a container that exists cannot get.
func (r Resources) CheckUpdate() error {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"memory.kernel_tcp", r.kernelTCP != nil},
		{"memory.swappiness", r.swappiness != nil},
		{"memory.disable_oom_killer", r.oomKillDisable != nil},
		{"cpu.realtime_runtime", r.realtimeRuntime != nil},
		{"cpu.realtime_period", r.realtimePeriod != nil},
		{"devices", len(r.deviceRules) > 0},
		{"blockio_class", r.blockIO != nil},
		{"rdt_class", r.rdtClass != nil},
	} {
		if f.set {
			return failed("linux.resources: %s: Docker sets it when it creates a container, and cannot change it", f.name)
		}
	}
	return nil
}

// AddTo adds what the CRI has no field for to an update by the Engine API.
func (r Resources) AddTo(update *container.UpdateConfig) {
	if r.Reservation != nil {
		update.MemoryReservation = *r.Reservation
	}
	if r.Pids != nil {
		update.PidsLimit = r.Pids
	}
}

// UpdateOf returns the update of a container that has been created with the change applied, and that makes it one with c. ok is false
// if an update cannot do that.
func (c Change) UpdateOf(applied Change, features engine.Features) (_ Resources, ok bool) {
	want, wanted := split(c.adjustment)
	has, had := split(applied.adjustment)
	score := c.adjustment.GetLinux().GetOomScoreAdj()
	switch {
	case c.unknown || applied.unknown || !proto.Equal(want, has) || !covers(wanted.ProtoReflect(), had.ProtoReflect()):
		return Resources{}, false
	case score.GetValue() < int64(features.LowestOOMScore), score != nil && score.GetValue() == 0, score == nil && applied.adjustment.GetLinux().GetOomScoreAdj() != nil:
		return Resources{}, false // 0 is "as it is" in an update of the CRI
	}
	r, err := NewResources(wanted, features)
	if err != nil || r.CheckUpdate() != nil {
		return r, false
	}
	r.CRI.OomScoreAdj = score.GetValue()
	return r, true
}

// split returns a without the resources and oom_score_adj, and the resources.
func split(a *api.ContainerAdjustment) (rest *api.ContainerAdjustment, resources *api.LinuxResources) {
	rest, resources = proto.CloneOf(a), a.GetLinux().GetResources()
	if rest.GetLinux() != nil {
		rest.Linux.Resources, rest.Linux.OomScoreAdj = nil, nil
	}
	if rest = rest.Strip(); rest == nil {
		rest = &api.ContainerAdjustment{}
	}
	return rest, resources
}

// covers reports whether a has each field and key that b has.
func covers(a, b protoreflect.Message) bool {
	ok := true
	b.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case !a.Has(field):
			ok = false
		case field.IsMap():
			v.Map().Range(func(key protoreflect.MapKey, _ protoreflect.Value) bool {
				ok = ok && a.Get(field).Map().Has(key)
				return ok
			})
		case field.IsList():
			ok = a.Get(field).List().Len() >= v.List().Len()
		case field.Message() != nil:
			ok = covers(a.Get(field).Message(), v.Message())
		}
		return ok
	})
	return ok
}

// resources applies what plugins set at the creation.
func (out *change) resources(r *api.LinuxResources) error {
	res, err := NewResources(r, out.Features)
	if err != nil {
		return err
	}
	if out.spec == nil {
		linux := linuxOf(out.config)
		linux.Resources, out.config.Linux = limits.Merge(linux.GetResources(), res.CRI), linux
		return nil
	}
	host := &out.spec.Host.Resources
	if res.Reservation != nil {
		host.MemoryReservation = *res.Reservation
	}
	if res.Pids != nil {
		host.PidsLimit = res.Pids
	}
	if res.kernelTCP != nil {
		host.KernelMemoryTCP = *res.kernelTCP //nolint:staticcheck // cgroup v1 before Linux 6.12 has it
	}
	if res.swappiness != nil {
		host.MemorySwappiness = res.swappiness
	}
	if res.oomKillDisable != nil {
		host.OomKillDisable = res.oomKillDisable
	}
	if res.realtimeRuntime != nil {
		host.CPURealtimeRuntime = *res.realtimeRuntime
	}
	if res.realtimePeriod != nil {
		host.CPURealtimePeriod = *res.realtimePeriod
	}
	host.DeviceCgroupRules = append(host.DeviceCgroupRules, res.deviceRules...)
	if res.blockIO != nil {
		if err := out.blockIO(*res.blockIO); err != nil {
			return err
		}
	}
	if res.rdtClass != nil {
		return out.rdtClass(*res.rdtClass)
	}
	return nil
}

// blockIO applies a block I/O class; "" is none.
func (out *change) blockIO(class string) error {
	if class == "" {
		return nil
	}
	if out.BlockIO == nil {
		return failed("linux.resources: blockio_class %q: this berthd has no block I/O classes, see blockio-config-file", class)
	}
	if err := out.BlockIO(class, &out.spec.Host.Resources); err != nil {
		return failed("linux.resources: blockio_class %q: %v", class, err)
	}
	return nil
}

// rdtClass puts the container in a class of resctrl, a directory of /sys/fs/resctrl.
func (out *change) rdtClass(class string) error {
	switch {
	case class == "":
		return nil
	case strings.ContainsAny(class, "/\n") || strings.HasPrefix(class, "."):
		return invalid("linux.resources: rdt_class %q: must be the name of a directory of /sys/fs/resctrl", class)
	case out.RdtClass == nil || !out.RdtClass(class):
		return failed("linux.resources: rdt_class %q: /sys/fs/resctrl has no such class", class)
	}
	if err := out.require("linux.resources.rdt_class", out.reported().Rdt); err != nil {
		return err
	}
	return out.patch("RDT classes", linuxPatch("intelRdt", map[string]any{"closID": class}))
}
