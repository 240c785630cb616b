package adjust_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/names"
	"berth/core/nri/adjust"
	"berth/core/ocifeatures"
	"berth/core/todocker"
)

const dir = "/run/berth/oci"

// testID is the ID of the container.
const testID = "4242424242424242424242424242424242424242424242424242424242424242"

// env is a node with these cgroups. With ociRuntime Docker has berth's OCI runtime.
func env(cgroups int, ociRuntime bool) adjust.Env {
	f := engine.Features{
		CgroupVersion: cgroups, CgroupDriver: "cgroupfs", SeccompProfile: "builtin", Annotations: true, DefaultRuntime: "runc",
		Runtimes: map[string]engine.Runtime{"runc": {RuncShim: true}},
	}
	if ociRuntime {
		f.Runtimes["runc"] = engine.Runtime{RuncShim: true, OCI: ocifeatures.Parse(map[string]string{"org.opencontainers.runtime-spec.features": `{"ociVersionMax":"1.3.0",
			"linux":{"intelRdt":{"enabled":true,"schemata":true,"monitoring":true},"netDevices":{"enabled":true},"memoryPolicy":{"modes":["MPOL_BIND","MPOL_PREFERRED"]}}}`})}
		f.Runtimes[names.OCIRuntime("runc")] = engine.Runtime{RuncShim: true, Instructions: dir}
	}
	return adjust.Env{
		Features: f, Dir: dir, Runtime: "runc",
		Node: func(path string) (adjust.Node, bool) {
			return adjust.Node{Type: "c", Major: 1, Minor: 3, Mode: 0o666}, path == "/dev/null"
		},
		BlockIO: func(class string, r *container.Resources) error {
			r.BlkioWeight = 20
			return nil
		},
		RdtClass: func(class string) bool { return class == "gold" },
	}
}

func request() *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Command: []string{"serve"}, Envs: []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1")}},
		Annotations: map[string]string{"a": "1", "io.kubernetes.container.hash": "x"},
		Mounts:      []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/srv"}},
		Devices:     []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/zero"}},
		Linux:       &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20}},
	}
}

// apply applies an adjustment to request().
func apply(a *api.ContainerAdjustment, e adjust.Env) (*runtimeapi.ContainerConfig, todocker.Spec, error) {
	spec := todocker.Spec{Config: &container.Config{}, Host: &container.HostConfig{Runtime: "runc", SecurityOpt: []string{"seccomp=unconfined"}}}
	c := adjust.New(a, testID, []string{"10-test"}, false)
	config, err := c.Config(request(), e)
	if err == nil {
		err = c.Spec(&spec, config, e)
	}
	return config, spec, err
}

// samples are messages of fields that need more than any value.
var samples = map[protoreflect.FullName]proto.Message{
	"nri.pkg.api.v1alpha1.Mount":             &api.Mount{Destination: "/x", Type: "bind", Source: "/y", Options: []string{"ro"}},
	"nri.pkg.api.v1alpha1.LinuxDevice":       &api.LinuxDevice{Path: "/dev/x", Type: "c", Major: 9},
	"nri.pkg.api.v1alpha1.POSIXRlimit":       &api.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: 7, Hard: 8},
	"nri.pkg.api.v1alpha1.LinuxDeviceCgroup": &api.LinuxDeviceCgroup{Allow: true, Type: "c", Access: "rw"},
	"nri.pkg.api.v1alpha1.OptionalBool":      api.Bool(true),
	"nri.pkg.api.v1alpha1.Hook":              &api.Hook{Path: "/hook"},
	"nri.pkg.api.v1alpha1.LinuxNamespace":    &api.LinuxNamespace{Type: "ipc"},
	"nri.pkg.api.v1alpha1.LinuxMemoryPolicy": &api.LinuxMemoryPolicy{Mode: api.MpolMode_MPOL_BIND, Nodes: "0"},
	"nri.pkg.api.v1alpha1.LinuxRdt":          &api.LinuxRdt{ClosId: api.String("gold"), Schemata: api.RepeatedString([]string{"L3:0=f"}), EnableMonitoring: api.Bool(true)},
	"nri.pkg.api.v1alpha1.Hooks":             &api.Hooks{Poststop: []*api.Hook{{Path: "/hook"}}},
}

// sample returns a message in which one field is set, as deep as it goes.
func sample(m protoreflect.Message, field protoreflect.FieldDescriptor) {
	value := func(set func() protoreflect.Value) protoreflect.Value {
		switch field.Kind() {
		case protoreflect.StringKind:
			return protoreflect.ValueOfString("gold")
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(true)
		case protoreflect.EnumKind:
			return protoreflect.ValueOfEnum(1)
		case protoreflect.MessageKind:
			v := set()
			fill(v.Message())
			return v
		case protoreflect.Int32Kind:
			return protoreflect.ValueOfInt32(7)
		case protoreflect.Int64Kind:
			return protoreflect.ValueOfInt64(7)
		case protoreflect.Uint32Kind:
			return protoreflect.ValueOfUint32(7)
		default:
			return protoreflect.ValueOfUint64(7)
		}
	}
	switch {
	case field.IsMap():
		v := protoreflect.ValueOfString("memory")
		if field.MapValue().Message() != nil {
			v = m.Mutable(field).Map().NewValue()
		}
		m.Mutable(field).Map().Set(protoreflect.ValueOfString("memory.high").MapKey(), v)
	case field.IsList():
		list := m.Mutable(field).List()
		list.Append(value(list.NewElement))
	default:
		m.Set(field, value(func() protoreflect.Value { return m.NewField(field) }))
	}
}

// fill sets the fields of a message.
func fill(m protoreflect.Message) {
	if known := samples[m.Descriptor().FullName()]; known != nil {
		proto.Merge(m.Interface(), known)
		return
	}
	for i := range m.Descriptor().Fields().Len() {
		if field := m.Descriptor().Fields().Get(i); field.Kind() != protoreflect.MessageKind {
			sample(m, field)
		}
	}
}

// TestEachFieldIsAppliedOrRefused sets each field of an adjustment, of the NRI module as it is, alone: what has no effect must be refused, on each
// kind of node.
func TestEachFieldIsAppliedOrRefused(t *testing.T) {
	paths := [][]string{nil, {"linux"}, {"linux", "resources"}, {"linux", "resources", "memory"}, {"linux", "resources", "cpu"}}
	count := 0
	for _, path := range paths {
		descriptor := (&api.ContainerAdjustment{}).ProtoReflect().Descriptor()
		for _, name := range path {
			descriptor = descriptor.Fields().ByName(protoreflect.Name(name)).Message()
		}
		for i := range descriptor.Fields().Len() {
			field := descriptor.Fields().Get(i)
			full := strings.Join(append(slices.Clone(path), string(field.Name())), ".")
			if slices.ContainsFunc(paths, func(p []string) bool { return strings.Join(p, ".") == full }) {
				continue // its fields follow
			}
			a := &api.ContainerAdjustment{}
			m := a.ProtoReflect()
			for _, name := range path {
				m = m.Mutable(m.Descriptor().Fields().ByName(protoreflect.Name(name))).Message()
			}
			sample(m, field)
			count++
			for _, cgroups := range []int{1, 2} {
				for _, ociRuntime := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s on cgroup v%d, OCI runtime %v", full, cgroups, ociRuntime), func(t *testing.T) { checkEffect(t, full, a, env(cgroups, ociRuntime)) })
				}
			}
		}
	}
	if count < 39 {
		t.Errorf("%d fields, want those of all messages", count)
	}
}

func checkEffect(t *testing.T, field string, a *api.ContainerAdjustment, e adjust.Env) {
	if adjust.New(a, testID, nil, false).Empty() {
		t.Fatalf("the sample of %s is empty: %v", field, a)
	}
	config, spec, err := apply(a, e)
	if err != nil {
		if !errdefs.IsFailedPrecondition(err) && !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "NRI plugin 10-test") {
			t.Errorf("error %q, want one of kind FailedPrecondition with the name of the plugin", err)
		}
		if strings.Contains(err.Error(), "does not know") {
			t.Errorf("%v: handle the field", err)
		}
		return
	}
	if field == "linux.resources.memory.use_hierarchy" {
		return // true is what Docker does
	}
	_, untouched, _ := apply(&api.ContainerAdjustment{}, e)
	if proto.Equal(config, request()) && reflect.DeepEqual(spec, untouched) {
		t.Errorf("%s is neither applied nor refused", field)
	}
}

func TestAdjustments(t *testing.T) {
	v2 := env(2, false)
	linux := func(l *api.LinuxContainerAdjustment) *api.ContainerAdjustment {
		return &api.ContainerAdjustment{Linux: l}
	}
	for name, tt := range map[string]struct {
		adjustment *api.ContainerAdjustment
		env        adjust.Env
		want       string // in the JSON of the result
		refused    string
	}{
		"replaced variable":                  {&api.ContainerAdjustment{Env: []*api.KeyValue{{Key: "A", Value: "2"}}}, v2, `"envs":[{"key":"A","value":"2"}]`, ""},
		"removed variable":                   {&api.ContainerAdjustment{Env: []*api.KeyValue{{Key: "-PATH"}}}, v2, `"Env":["PATH"]`, ""},
		"oom_score_adj below that of Docker": {linux(&api.LinuxContainerAdjustment{OomScoreAdj: api.Int(-5)}), v2, "", "has not the privilege"},
		"command line":                       {&api.ContainerAdjustment{Args: []string{"run", "x"}}, v2, `"command":["run","x"]`, ""},
		"annotation":                         {&api.ContainerAdjustment{Annotations: map[string]string{"b": "2", "-a": ""}}, v2, `"Annotations":{"b":"2"}`, ""},
		"annotation of the kubelet":          {&api.ContainerAdjustment{Annotations: map[string]string{"-io.kubernetes.container.hash": ""}}, v2, "", "the kubelet needs it"},
		"read-only mount with options": {&api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "/data", Source: "/new", Type: "bind", Options: []string{"rbind", "ro", "rslave", "noexec"}}}}, v2,
			`"mounts":[{"container_path":"/data","host_path":"/new","readonly":true,"propagation":1,"mount_options":["noexec"]}]`, ""},
		"tmpfs":             {&api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "/t", Type: "tmpfs", Options: []string{"size=1m"}}}}, v2, `"Tmpfs":{"/t":"size=1m"}`, ""},
		"mount of /proc":    {&api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "-/proc"}}}, v2, "", "/proc"},
		"other file system": {&api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "/n", Type: "nfs", Source: "x:/"}}}, v2, "", "bind mounts and tmpfs"},
		"device of the host": {linux(&api.LinuxContainerAdjustment{Devices: []*api.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}}}), v2,
			`{"container_path":"/dev/null","host_path":"/dev/null","permissions":"rw"}`, ""},
		"device with an owner, without OCI runtime": {linux(&api.LinuxContainerAdjustment{Devices: []*api.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, Uid: api.UInt32(uint32(9))}}}), v2, "", "berthd runtime install"},
		"device with an owner": {linux(&api.LinuxContainerAdjustment{Devices: []*api.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, Uid: api.UInt32(uint32(9))}}}), env(2, true),
			`"devices":[{"path":"/dev/null","type":"c","major":1,"minor":3,"uid":9,"access":"rw"}]`, ""},
		"hooks, without OCI runtime": {&api.ContainerAdjustment{Hooks: &api.Hooks{Prestart: []*api.Hook{{Path: "/h"}}}}, v2, "", "OCI hooks need the OCI runtime"},
		"hooks":                      {&api.ContainerAdjustment{Hooks: &api.Hooks{Prestart: []*api.Hook{{Path: "/h", Timeout: api.Int(3)}}}}, env(2, true), `"hooks":{"prestart":[{"path":"/h","timeout":3}]}`, ""},
		"unlimited rlimit":           {&api.ContainerAdjustment{Rlimits: []*api.POSIXRlimit{{Type: "RLIMIT_MEMLOCK", Hard: 1<<64 - 1, Soft: 1<<64 - 1}}}, v2, `"Ulimits":[{"Name":"memlock","Hard":-1,"Soft":-1}]`, ""},
		"rlimit that Docker lacks":   {&api.ContainerAdjustment{Rlimits: []*api.POSIXRlimit{{Type: "RLIMIT_AS", Hard: 5, Soft: 5}}}, env(2, true), `"rlimits":[{"type":"RLIMIT_AS","soft":5,"hard":5}]`, ""},
		"resources": {linux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Cpu: &api.LinuxCPU{Cpus: "0-1"}, Unified: map[string]string{"memory.high": "9"}, Pids: &api.LinuxPids{Limit: 5}}}), v2,
			`"cpu_shares":512,"memory_limit_in_bytes":67108864,"cpuset_cpus":"0-1","unified":{"memory.high":"9"}`, ""},
		"seccomp policy": {linux(&api.LinuxContainerAdjustment{SeccompPolicy: &api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", Syscalls: []*api.LinuxSyscall{{Names: []string{"reboot"}, Action: "SCMP_ACT_ERRNO"}}}}), v2,
			`"SecurityOpt":["seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"reboot\"],\"action\":\"SCMP_ACT_ERRNO\"}]}"]`, ""},
		"seccomp flags":                        {linux(&api.LinuxContainerAdjustment{SeccompPolicy: &api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", Flags: []string{"SECCOMP_FILTER_FLAG_LOG"}}}), env(2, true), `"seccomp":{"architectures":null,`, ""},
		"swappiness":                           {linux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Memory: &api.LinuxMemory{Swappiness: api.UInt64(uint64(5))}}}), v2, "", "needs cgroup v1"},
		"RDT class":                            {linux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{RdtClass: api.String("gold")}}), env(2, true), `"intelRdt":{"closID":"gold"}`, ""},
		"no RDT class":                         {linux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{RdtClass: api.String("tin")}}), env(2, true), "", "/sys/fs/resctrl has no such class"},
		"scheduler, old runtime":               {linux(&api.LinuxContainerAdjustment{Scheduler: &api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH}}), v2, "", "does not report"},
		"scheduler":                            {linux(&api.LinuxContainerAdjustment{Scheduler: &api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH, Nice: 3}}), env(2, true), `{"process":{"scheduler":{"policy":"SCHED_BATCH","nice":3}}}`, ""},
		"I/O priority":                         {linux(&api.LinuxContainerAdjustment{IoPriority: &api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 6}}), env(2, true), `{"process":{"ioPriority":{"class":"IOPRIO_CLASS_BE","priority":6}}}`, ""},
		"memory policy":                        {linux(&api.LinuxContainerAdjustment{MemoryPolicy: &api.LinuxMemoryPolicy{Mode: api.MpolMode_MPOL_BIND, Nodes: "0"}}), env(2, true), `{"linux":{"memoryPolicy":{"mode":"MPOL_BIND","nodes":"0"}}}`, ""},
		"memory policy that the runtime lacks": {linux(&api.LinuxContainerAdjustment{MemoryPolicy: &api.LinuxMemoryPolicy{Mode: api.MpolMode_MPOL_LOCAL}}), env(2, true), "", "does not report"},
		"network device":                       {linux(&api.LinuxContainerAdjustment{NetDevices: map[string]*api.LinuxNetDevice{"ens7": {Name: "net1"}}}), env(2, true), `{"linux":{"netDevices":{"ens7":{"name":"net1"}}}}`, ""},
		"namespaces": {linux(&api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "-ipc"}, {Type: "network", Path: "/n"}}}), env(2, true),
			`"namespaces":[{"type":"ipc","remove":true},{"type":"network","path":"/n"}]`, ""},
		"user namespace": {linux(&api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "user"}}}), env(2, true), "", "hostUsers: false"},
		"RDT":            {linux(&api.LinuxContainerAdjustment{Rdt: &api.LinuxRdt{ClosId: api.String("x"), EnableMonitoring: api.Bool(true)}}), env(2, true), `{"linux":{"intelRdt":{"closID":"x","enableMonitoring":true}}}`, ""},
		"cgroup path":    {linux(&api.LinuxContainerAdjustment{CgroupsPath: "/x"}), v2, "", "Docker chooses the cgroup"},
	} {
		t.Run(name, func(t *testing.T) {
			config, spec, err := apply(tt.adjustment, tt.env)
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v, want one line with %q", err, tt.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			one, _ := json.Marshal(config)
			two, _ := json.Marshal(spec.Config)
			three, _ := json.Marshal(spec.Host)
			four, _ := json.Marshal(spec.Instructions)
			if all := string(one) + string(two) + string(three) + string(four); !strings.Contains(all, tt.want) {
				t.Errorf("%s\nwant %s", all, tt.want)
			}
			if spec.Instructions.Changes() != (spec.Host.Runtime == names.OCIRuntime("runc")) {
				t.Errorf("runtime %s with instructions %+v", spec.Host.Runtime, spec.Instructions)
			}
		})
	}
}

func TestUpdateOf(t *testing.T) {
	cpus := func(set string) *api.ContainerAdjustment {
		return &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Cpu: &api.LinuxCPU{Cpus: set}}}}
	}
	with := func(a *api.ContainerAdjustment, value string) *api.ContainerAdjustment {
		a.Env = []*api.KeyValue{{Key: "E", Value: value}}
		return a
	}
	block := &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{RdtClass: api.String("gold")}}}
	for name, tt := range map[string]struct {
		change, applied *api.ContainerAdjustment
		want            bool
	}{
		"resources only":                  {cpus("1"), nil, true},
		"other resources, same variables": {with(cpus("1"), "x"), with(cpus("2"), "x"), true},
		"a variable":                      {with(cpus("1"), "x"), nil, false},
		"another variable":                {with(cpus("1"), "y"), with(cpus("1"), "x"), false},
		"resources that were set":         {&api.ContainerAdjustment{}, cpus("1"), false},
		"a class":                         {block, nil, false},
	} {
		resources, ok := adjust.New(tt.change, testID, nil, false).UpdateOf(adjust.New(tt.applied, testID, nil, false), env(2, false).Features)
		if ok != tt.want || ok && resources.CRI.GetCpusetCpus() != "1" {
			t.Errorf("%s: %v, %v, want %v", name, resources.CRI, ok, tt.want)
		}
	}
}

// A plugin that was built with a newer NRI can send what this one has no field for.
func TestUnknownFieldsAreRefused(t *testing.T) {
	a := &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{}}
	a.Linux.ProtoReflect().SetUnknown([]byte{0xfa, 0x01, 0x00})
	if !adjust.HasUnknown(a.ProtoReflect()) || adjust.HasUnknown((&api.ContainerAdjustment{}).ProtoReflect()) {
		t.Error("HasUnknown does not report the field")
	}
	c := adjust.New(&api.ContainerAdjustment{}, testID, []string{"10-new"}, true)
	if _, err := c.Config(request(), env(2, true)); c.Empty() || err == nil || !strings.Contains(err.Error(), "10-new") {
		t.Errorf("Empty %v, %v, want an error that names the plugin", c.Empty(), err)
	}
}

// TestIDOfTheContainer: what differs between two containers only by their IDs is the same change, and where the ID is can be completed later, or is refused.
func TestIDOfTheContainer(t *testing.T) {
	const other = "5656565656565656565656565656565656565656565656565656565656565656"
	of := func(id string, hasID bool) *api.ContainerAdjustment {
		a := &api.ContainerAdjustment{
			Mounts: []*api.Mount{{Destination: "/state", Type: "bind", Source: "/srv/" + id + "/a", Options: []string{"ro"}}},
			Hooks:  &api.Hooks{Poststop: []*api.Hook{{Path: "/hook", Args: []string{"hook", id}}}},
			Linux:  &api.LinuxContainerAdjustment{Sysctl: map[string]string{"net.x": "1"}},
		}
		if hasID {
			a.Linux.Sysctl["net.x"] = id
			a.Env = []*api.KeyValue{{Key: "ID", Value: id}}
		}
		return a
	}
	for _, hasID := range []bool{false, true} {
		if !adjust.New(of(testID, hasID), testID, nil, false).Equal(adjust.New(of(other, hasID), other, nil, false)) {
			t.Error("the changes of two containers differ")
		}
		if adjust.New(of(testID, hasID), testID, nil, false).Equal(adjust.New(of(testID, hasID), other, nil, false)) {
			t.Error("a change with the ID of another container is the same")
		}
	}
	config, spec, err := apply(of(testID, false), env(2, true))
	if err != nil {
		t.Fatal(err)
	}
	if source := config.GetMounts()[1].GetHostPath(); source != "/srv/"+names.UnknownID+"/a" {
		t.Errorf("source %s", source)
	}
	if args := spec.Instructions.Hooks.Poststop[0].Args; args[1] != names.UnknownID {
		t.Errorf("arguments of the hook %q", args)
	}
	if _, _, err := apply(of(testID, true), env(2, true)); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "env, hooks, linux.sysctl, mounts: the ID of the container can only be") {
		t.Errorf("got %v", err)
	}
}
