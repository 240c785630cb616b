package podpolicy

import (
	"maps"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/names"
)

var (
	docker20 = engine.Features{Version: "20.10.24", CgroupVersion: 1, DefaultRuntime: "runc", Runtimes: map[string]engine.Runtime{"runc": {RuncShim: true}}}
	docker28 = engine.Features{
		Version: "28.5.2", CgroupVersion: 2, DefaultRuntime: "runc", Runtimes: map[string]engine.Runtime{"runc": {RuncShim: true}, "kata": {}},
		Annotations: true, ShimRuntimes: true, WritableCgroups: true, LayerQuota: true,
	}
)

func policy(t testing.TB, o Options) Policy {
	t.Helper()
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pod returns a pod with annotations, given as keys and values.
func pod(keysAndValues ...string) *runtimeapi.PodSandboxConfig {
	p := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "ml", Uid: "u1"},
		LogDirectory: "/var/log/pods/web", Annotations: map[string]string{},
	}
	for i := 0; i+1 < len(keysAndValues); i += 2 {
		p.Annotations[keysAndValues[i]] = keysAndValues[i+1]
	}
	return p
}

func TestOptionsAreValidated(t *testing.T) {
	for entry, valid := range map[string]bool{
		"io.katacontainers.*": true, "kata=io.katacontainers.*": true, "kata*=io.katacontainers.*": true, "run.oci.handler": true, "runc=a/b": true,
		"": false, "*": false, "?x": false, "[a]b": false, `\*`: false, "kata=*": false, "=io.x": false, "kata=": false, "a[": false, "ka[=io.x": false, "a b": false,
		"io.kubernetes.cri.*": false, "io.kubernetes.cri.sandbox-id": false, "runsc=io.containerd.runc.v2.group": false,
	} {
		if _, err := New(Options{OCIAnnotations: []string{entry}}); (err == nil) != valid {
			t.Errorf("oci-annotations %q: %v, valid: %v", entry, err, valid)
		}
	}
	for entry, valid := range map[string]bool{
		"berth.ulimits=*": true, "berth.shm-size=ml": true, "berth.writable-cgroups=ci-1": true, "berth.rootfs-size=a": true,
		"": false, "berth.ulimits": false, "berth.ulimits=": false, "berth.ulimit=*": false, "berth.ulimits=ml*": false, "berth.ulimits=ML": false,
		"berth.ulimits/web=ml": false, "berth.ulimits=-a": false, "berth.ulimits=" + strings.Repeat("a", 64): false,
	} {
		if _, err := New(Options{AllowAnnotations: []string{entry}}); (err == nil) != valid {
			t.Errorf("allow-annotations %q: %v, valid: %v", entry, err, valid)
		}
	}
	for entry, valid := range map[string]bool{
		"io.containerd.runsc.v1": true, "gvisor=io.containerd.runsc.v1": true, "kata=io.containerd.kata-qemu.v2": true,
		"": false, "runsc": false, "gvisor=": false, "=io.containerd.runsc.v1": false, "GVisor=io.containerd.runsc.v1": false, "a.b=io.containerd.runsc.v1": false,
		"x=/usr/bin/runsc": false, "x=io.containerd..v1": false, "x=io.containerd.a/b.v1": false, "x=io.containerd.../x.v1": false, "x=io.containerd.runsc": false,
		"x=io.containerd.runsc.v1\n": false, "x=com.example.runsc.v1": false, "x=io.containerd." + strings.Repeat("a", 128) + ".v1": false,
	} {
		if _, err := New(Options{ShimRuntimes: []string{entry}}); (err == nil) != valid {
			t.Errorf("shim-runtimes %q: %v, valid: %v", entry, err, valid)
		}
	}
	if _, err := New(Options{ShimRuntimes: []string{"a=io.containerd.x.v1", "a=io.containerd.y.v1"}}); err == nil {
		t.Error("a handler with two shims is accepted")
	}
}

func TestParseSplitsLists(t *testing.T) {
	parse := Parse(func(o *Options, list []string) { o.AllowAnnotations = list })
	for text, want := range map[string]int{"": 0, " ": 0, "berth.ulimits=*": 1, "berth.ulimits=a, berth.shm-size=b": 2} {
		if list, err := parse(text); err != nil || len(list) != want {
			t.Errorf("%q: %q, %v; want %d entries", text, list, err, want)
		}
	}
	for _, text := range []string{",", "berth.ulimits=*,", "berth.ulimits"} {
		if list, err := parse(text); err == nil {
			t.Errorf("%q: %q, want an error", text, list)
		}
	}
}

func TestStandardAnnotationsOfPodsAndContainers(t *testing.T) {
	p := pod()
	p.Linux = &runtimeapi.LinuxPodSandboxConfig{Resources: &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 1 << 20}}
	want := map[string]string{
		"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-name": "web", "io.kubernetes.cri.sandbox-namespace": "ml", "io.kubernetes.cri.sandbox-uid": "u1",
		"io.kubernetes.cri.sandbox-log-directory": "/var/log/pods/web", "io.kubernetes.cri.sandbox-cpu-period": "100000", "io.kubernetes.cri.sandbox-cpu-quota": "50000",
		"io.kubernetes.cri.sandbox-cpu-shares": "512", "io.kubernetes.cri.sandbox-memory": "1048576",
	}
	if diff := cmp.Diff(want, Policy{}.SandboxOCIAnnotations(p, "", "g1", docker28)); diff != "" {
		t.Errorf("sandbox (-want +got):\n%s", diff)
	}
	c := Container{Pod: p, Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "nginx"}}, SandboxID: "s1", Runtime: "runc", ImageName: "nginx:1", PodShimGroup: "g1", OwnShimGroup: "own"}
	want = map[string]string{
		"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "s1", "io.kubernetes.cri.sandbox-name": "web", "io.kubernetes.cri.sandbox-namespace": "ml",
		"io.kubernetes.cri.sandbox-uid": "u1", "io.kubernetes.cri.container-name": "nginx", "io.kubernetes.cri.image-name": "nginx:1", "io.containerd.runc.v2.group": "own",
	}
	if diff := cmp.Diff(want, Policy{}.ContainerOCIAnnotations(c, docker28)); diff != "" {
		t.Errorf("container (-want +got):\n%s", diff)
	}
	if a, b := (Policy{}).SandboxOCIAnnotations(p, "", "g1", docker20), (Policy{}).ContainerOCIAnnotations(c, docker20); a != nil || b != nil {
		t.Errorf("Docker 20.10 passes none, got %v and %v", a, b)
	}
}

func TestOnlyAllowedAnnotationsReachTheRuntime(t *testing.T) {
	rules := policy(t, Options{OCIAnnotations: []string{"kata*=io.katacontainers.*", "run.oci.handler", "runc=io.*"}})
	all := pod("io.katacontainers.config", "1", "run.oci.handler", "wasm", "run.oci.hooks", "x", "note", "x",
		"io.kubernetes.cri.container-type", "container", "io.kubernetes.cri.sandbox-id", "another", "io.containerd.runc.v2.group", "another", "io.kubernetes.cri.other", "x")
	for runtime, want := range map[string]map[string]string{
		"kata":      {"io.katacontainers.config": "1", "run.oci.handler": "wasm"},
		"kata-qemu": {"io.katacontainers.config": "1", "run.oci.handler": "wasm"},
		"crun":      {"run.oci.handler": "wasm"},
		"":          {"io.katacontainers.config": "1", "run.oci.handler": "wasm"}, // runc
	} {
		got := rules.SandboxOCIAnnotations(all, runtime, "g1", docker28)
		maps.DeleteFunc(got, func(key, _ string) bool {
			_, standard := Policy{}.SandboxOCIAnnotations(pod(), runtime, "g1", docker28)[key]
			return standard && got[key] != all.Annotations[key]
		})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", runtime, diff)
		}
		c := Container{Pod: all, PodAnnotations: all.Annotations, Config: &runtimeapi.ContainerConfig{Annotations: map[string]string{"run.oci.handler": "of the container"}}, SandboxID: "s1", Runtime: runtime}
		if got := rules.ContainerOCIAnnotations(c, docker28); got["io.kubernetes.cri.sandbox-id"] != "s1" || got["io.containerd.runc.v2.group"] != "" || got["run.oci.handler"] != "of the container" || got["note"] != "" {
			t.Errorf("%q: container: %v", runtime, got)
		}
	}
	defaults := policy(t, Options{OCIAnnotations: DefaultOCIAnnotations})
	for runtime, want := range map[string]bool{"runc": false, "kata": true, "kata-qemu": true, "io.containerd.kata.v2": true, "io.containerd.kata-qemu.v2": true, "runsc": false} {
		_, got := defaults.SandboxOCIAnnotations(all, runtime, "g1", docker28)["io.katacontainers.config"]
		if got != want {
			t.Errorf("default, %s: annotation for Kata Containers passed: %v, want %v", runtime, got, want)
		}
	}
}

func TestLimitsByAnnotation(t *testing.T) {
	all := policy(t, Options{AllowAnnotations: []string{"berth.ulimits=ml", "berth.shm-size=other", "berth.shm-size=ml", "berth.writable-cgroups=*", "berth.rootfs-size=*"}})
	ulimit := func(name string, soft, hard int64) *container.Ulimit {
		return &container.Ulimit{Name: name, Soft: soft, Hard: hard}
	}
	for name, c := range map[string]struct {
		pod  *runtimeapi.PodSandboxConfig
		want Limits
	}{
		"none":             {pod("note", "x", "berth.other", "x"), Limits{}},
		"ulimits":          {pod("berth.ulimits", "nofile=1024:65536, memlock=unlimited,core=0"), Limits{Ulimits: []*container.Ulimit{ulimit("nofile", 1024, 65536), ulimit("memlock", -1, -1), ulimit("core", 0, 0)}}},
		"of the container": {pod("berth.ulimits", "core=1", "berth.ulimits/web", "core=2:unlimited", "berth.ulimits/db", "core=3"), Limits{Ulimits: []*container.Ulimit{ulimit("core", 2, -1)}}},
		"shm-size":         {pod("berth.shm-size", "1.5Gi"), Limits{ShmSize: 3 << 29}},
		"cgroups":          {pod("berth.writable-cgroups", "true"), Limits{WritableCgroups: true}},
		"cgroups of one":   {pod("berth.writable-cgroups", "true", "berth.writable-cgroups/web", "false"), Limits{}},
		"rootfs-size":      {pod("berth.rootfs-size/web", "10G"), Limits{RootfsSize: 10e9}},
	} {
		if _, err := all.CheckPod(c.pod, docker28); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		got, err := all.ContainerLimits(c.pod, c.pod.Annotations, "web", docker28)
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}

func TestLimitsAreRefused(t *testing.T) {
	all := policy(t, Options{AllowAnnotations: []string{"berth.ulimits=*", "berth.shm-size=*", "berth.writable-cgroups=*", "berth.rootfs-size=*"}})
	hostIPC := pod("berth.shm-size", "1Gi")
	hostIPC.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_NODE}}}
	snapshotter, v1, noQuota := docker28, docker28, docker28
	snapshotter.Snapshotter, snapshotter.LayerQuota, v1.CgroupVersion, noQuota.LayerQuota = true, false, 1, false
	for name, c := range map[string]struct {
		policy   Policy
		pod      *runtimeapi.PodSandboxConfig
		features engine.Features
		is       func(error) bool
		text     string
	}{
		"nothing allowed":       {Policy{}, pod("berth.ulimits", "core=0"), docker28, errdefs.IsPermissionDenied, "annotation berth.ulimits: not allowed in namespace ml on this node; the operator can add berth.ulimits=ml to the option allow-annotations"},
		"for one container":     {Policy{}, pod("berth.ulimits/web", "core=0"), docker28, errdefs.IsPermissionDenied, "annotation berth.ulimits/web: not allowed in namespace ml"},
		"another namespace":     {policy(t, Options{AllowAnnotations: []string{"berth.ulimits=default"}}), pod("berth.ulimits", "core=0"), docker28, errdefs.IsPermissionDenied, "namespace ml"},
		"another annotation":    {policy(t, Options{AllowAnnotations: []string{"berth.ulimits=ml"}}), pod("berth.shm-size", "1Gi"), docker28, errdefs.IsPermissionDenied, "berth.shm-size=ml"},
		"unknown ulimit":        {all, pod("berth.ulimits", "files=1"), docker28, errdefs.IsInvalidArgument, `annotation berth.ulimits "files=1": "files=1" must be NAME=SOFT`},
		"no value":              {all, pod("berth.ulimits", ""), docker28, errdefs.IsInvalidArgument, "must be NAME=SOFT"},
		"no number":             {all, pod("berth.ulimits", "core=1k"), docker28, errdefs.IsInvalidArgument, "whole number or unlimited"},
		"negative":              {all, pod("berth.ulimits", "core=-1"), docker28, errdefs.IsInvalidArgument, "whole number or unlimited"},
		"soft above hard":       {all, pod("berth.ulimits", "core=2:1"), docker28, errdefs.IsInvalidArgument, "soft limit"},
		"unlimited above hard":  {all, pod("berth.ulimits", "core=unlimited:1"), docker28, errdefs.IsInvalidArgument, "soft limit"},
		"twice":                 {all, pod("berth.ulimits", "core=1,core=2"), docker28, errdefs.IsInvalidArgument, "core is set twice"},
		"unlimited files":       {all, pod("berth.ulimits", "nofile=unlimited"), docker28, errdefs.IsInvalidArgument, "fs.nr_open"},
		"size of no quantity":   {all, pod("berth.shm-size", "big"), docker28, errdefs.IsInvalidArgument, "from 1Mi to 1Pi"},
		"size too small":        {all, pod("berth.shm-size", "1Ki"), docker28, errdefs.IsInvalidArgument, "from 1Mi to 1Pi"},
		"shm of one container":  {all, pod("berth.shm-size/web", "1Gi"), docker28, errdefs.IsInvalidArgument, "must be berth.shm-size"},
		"shm with hostIPC":      {all, hostIPC, docker28, errdefs.IsInvalidArgument, "hostIPC"},
		"no name":               {all, pod("berth.ulimits/", "core=1"), docker28, errdefs.IsInvalidArgument, "name of a container"},
		"cgroups, no boolean":   {all, pod("berth.writable-cgroups", "yes"), docker28, errdefs.IsInvalidArgument, "true or false"},
		"cgroups, Docker 20.10": {all, pod("berth.writable-cgroups", "true"), docker20, errdefs.IsFailedPrecondition, "need Docker 28 or newer, this is 20.10.24"},
		"cgroups, v1":           {all, pod("berth.writable-cgroups", "true"), v1, errdefs.IsFailedPrecondition, "need cgroup v2"},
		"rootfs, no quota":      {all, pod("berth.rootfs-size", "1Gi"), noQuota, errdefs.IsFailedPrecondition, "pquota"},
		"rootfs, snapshotter":   {all, pod("berth.rootfs-size/web", "1Gi"), snapshotter, errdefs.IsFailedPrecondition, "containerd image store"},
		"rootfs, bad value":     {all, pod("berth.rootfs-size", "-1"), noQuota, errdefs.IsInvalidArgument, "from 1Mi to 1Pi"},
	} {
		if _, err := c.policy.CheckPod(c.pod, c.features); err == nil || !c.is(err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want %q", name, err, c.text)
		}
	}
}

// The group is berth's: no annotation of a pod, and no glob of the operator, can set another.
func TestContainersOfAPodShareAShimGroup(t *testing.T) {
	const key = "io.containerd.runc.v2.group"
	hostile := map[string]string{key: "another", "io.kubernetes.cri.sandbox-id": "another"}
	for name, c := range map[string]struct {
		shimPerPod          bool
		runtime             string
		ofPod               string // the group of the pause container
		wantPod, wantMember string
		features            engine.Features
	}{
		"default runtime":           {true, "", "g1", "g1", "g1", docker28},
		"runc":                      {true, "runc", "g1", "g1", "g1", docker28},
		"a shim of daemon.json":     {true, "kata", "", "", "own", docker28},
		"a shim of shim-runtimes":   {true, "io.containerd.runsc.v1", "", "", "own", docker28},
		"off":                       {false, "", "", "", "own", docker28},
		"off, the pod has a group":  {false, "", "g1", "", "own", docker28},
		"a pod of an earlier berth": {true, "", "", "g1", "own", docker28},
		"Docker 20.10":              {true, "", "", "", "", docker20},
	} {
		p := policy(t, Options{ShimPerPod: c.shimPerPod, OCIAnnotations: []string{"i*", "io*=io*", "*=io.c*"}, ShimRuntimes: []string{"io.containerd.runsc.v1"}})
		all := pod()
		all.Annotations = hostile
		if got := p.SandboxOCIAnnotations(all, c.runtime, "g1", c.features)[key]; got != c.wantPod {
			t.Errorf("%s: the pause container has the group %q, want %q", name, got, c.wantPod)
		}
		member := Container{
			Pod: all, PodAnnotations: hostile, Config: &runtimeapi.ContainerConfig{Annotations: hostile}, SandboxID: "s1", Runtime: c.runtime, PodShimGroup: c.ofPod, OwnShimGroup: "own",
		}
		if got := p.ContainerOCIAnnotations(member, c.features); got[key] != c.wantMember || got["io.kubernetes.cri.sandbox-id"] == "another" {
			t.Errorf("%s: the container has %q, want the group %q", name, got, c.wantMember)
		}
	}
}

func TestShimGroupOfAPauseContainer(t *testing.T) {
	group := names.NewShimGroup()
	for value, want := range map[string]string{group: group, "": "", "another": "", group + "x": "", strings.ToLower(group): ""} {
		if got := ShimGroupOf(&container.HostConfig{Annotations: map[string]string{"io.containerd.runc.v2.group": value}}); got != want {
			t.Errorf("%q: %q", value, got)
		}
	}
	if got := ShimGroupOf(&container.HostConfig{}); got != "" {
		t.Errorf("without annotations: %q", got)
	}
	if names.NewShimGroup() == group {
		t.Error("two pods have the same group")
	}
}

func TestRuntimeHandlers(t *testing.T) {
	p := policy(t, Options{ShimRuntimes: []string{"gvisor=io.containerd.runsc.v1", "kata=io.containerd.kata.v2", "io.containerd.spin.v2"}})
	for handler, want := range map[string]string{
		"": "", "docker": "", "runc": "runc", "gvisor": "io.containerd.runsc.v1", "io.containerd.spin.v2": "io.containerd.spin.v2",
		"kata": "kata", // of daemon.json
	} {
		if got, err := p.Runtime(handler, docker28); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", handler, got, err, want)
		}
	}
	for handler, want := range map[string]string{"crun": "runtimes in daemon.json", "io.containerd.runsc.v1": "shim-runtimes"} {
		if _, err := p.Runtime(handler, docker28); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", handler, err, want)
		}
	}
	if _, err := p.Runtime("gvisor", docker20); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "Docker 23 or newer, this is 20.10.24") {
		t.Errorf("Docker 20.10: %v", err)
	}
	if diff := cmp.Diff([]string{"gvisor", "io.containerd.spin.v2", "kata", "runc"}, p.Handlers(docker28)); diff != "" {
		t.Errorf("handlers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"runc"}, p.Handlers(docker20)); diff != "" {
		t.Errorf("handlers of Docker 20.10 (-want +got):\n%s", diff)
	}
}

func TestLimitationsOfAnEngine(t *testing.T) {
	p := policy(t, Options{
		OCIAnnotations: []string{"run.oci.handler"}, ShimRuntimes: []string{"gvisor=io.containerd.runsc.v1"},
		AllowAnnotations: []string{"berth.writable-cgroups=*", "berth.rootfs-size=*", "berth.ulimits=*"},
	})
	var options []string
	for _, l := range p.Limitations(docker20) {
		options = append(options, l.Option)
	}
	if diff := cmp.Diff([]string{"oci-annotations", "shim-runtimes", "allow-annotations", "allow-annotations"}, options); diff != "" {
		t.Errorf("Docker 20.10 (-want +got):\n%s", diff)
	}
	if got := p.Limitations(docker28); len(got) > 0 {
		t.Errorf("Docker 28: %+v", got)
	}
	if got := policy(t, Options{OCIAnnotations: DefaultOCIAnnotations}).Limitations(docker20); len(got) > 0 {
		t.Errorf("the default: %+v", got)
	}
}
