package todocker

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/labels"
	"berth/core/podpolicy"
)

const (
	modeNode      = runtimeapi.NamespaceMode_NODE
	modeContainer = runtimeapi.NamespaceMode_CONTAINER
	modeTarget    = runtimeapi.NamespaceMode_TARGET
)

// The features of an old and of a recent Docker.
var (
	old = engine.Features{
		CgroupDriver: "cgroupfs", CgroupVersion: 1, RootDir: "/var/lib/docker", DefaultRuntime: "runc", LowestOOMScore: -1000,
		Runtimes: map[string]engine.Runtime{"runc": {}}, SeccompProfile: "default",
	}
	recent = engine.Features{
		CgroupDriver: "systemd", CgroupVersion: 2, RootDir: "/var/lib/docker", DefaultRuntime: "runc", LowestOOMScore: -1000,
		Runtimes: map[string]engine.Runtime{"runc": {RecursiveReadOnly: true}, "runsc": {}},
		CDI:      true, Premounts: true, SeccompBuiltin: true, ReadOnlyNonRecursive: true, ImageMounts: true, AppArmor: true,
		SeccompProfile: "builtin", Annotations: true,
	}
)

// withShims is recent with shims as runtimes.
var withShims = func() engine.Features {
	r := recent
	r.ShimRuntimes = true
	return r
}()

func policy(o podpolicy.Options) podpolicy.Policy {
	p, err := podpolicy.New(o)
	if err != nil {
		panic(err)
	}
	return p
}

// allowed allows every annotation that sets a limit, in all namespaces.
var allowed = policy(podpolicy.Options{AllowAnnotations: []string{
	"berth.ulimits=*", "berth.shm-size=*", "berth.writable-cgroups=*", "berth.rootfs-size=*",
}})

// kernel512 is the old Docker on Linux 5.12.
var kernel512 = func() engine.Features {
	r := old
	r.Premounts = true
	return r
}()

func pod(change ...func(*runtimeapi.PodSandboxConfig)) *runtimeapi.PodSandboxConfig {
	p := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web-0", Namespace: "default", Uid: "u1", Attempt: 2},
		Hostname:     "web-0",
		LogDirectory: "/var/log/pods/web",
		Labels:       map[string]string{"app": "web"},
		Annotations:  map[string]string{"note": "x"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    "/kubepods.slice/kubepods-podu1.slice",
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: modeContainer}},
		},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func TestSandboxWithoutDockerNetwork(t *testing.T) {
	got, err := Sandbox(SandboxParams{Pod: pod(), Image: "sha256:pause", Features: old, OOMScore: PauseOOMScore})
	if err != nil {
		t.Fatal(err)
	}
	if name := got.Name.String(); name != "k8s_POD_web-0_default_u1_2" {
		t.Errorf("name %s", name)
	}
	h := got.Host
	if !got.Config.NetworkDisabled || !h.NetworkMode.IsNone() || !h.IpcMode.IsShareable() || h.PidMode != "" || h.OomScoreAdj != -998 ||
		h.CgroupParent != "/kubepods.slice/kubepods-podu1.slice" || h.CgroupnsMode != "host" || h.RestartPolicy.Name != "no" ||
		h.Init == nil || *h.Init || h.LogConfig.Type != "none" {
		t.Errorf("config %+v\nhost %+v", got.Config, h)
	}
	set := storedLabels(got)
	if set.Kind != labels.Sandbox || set.Labels["app"] != "web" || set.Annotations["note"] != "x" || strings.Contains(set.Config, "note") {
		t.Errorf("labels %+v", set)
	}
}

func TestEachSandboxHasAShimGroup(t *testing.T) {
	features := recent
	features.Runtimes = map[string]engine.Runtime{"runc": {RuncShim: true}, "kata": {}}
	for handler, want := range map[string]string{"": "G1", "runc": "G1", "kata": ""} {
		p := SandboxParams{Features: features, Pod: pod(), Handler: handler, ShimGroup: "G1", Policy: policy(podpolicy.Options{ShimPerPod: true})}
		got, err := Sandbox(p)
		if err != nil || got.Host.Annotations["io.containerd.runc.v2.group"] != want {
			t.Errorf("runtime handler %q: %v, annotations %v", handler, err, got.Host.Annotations)
		}
	}
}

func TestSandboxVariants(t *testing.T) {
	security := func(p *runtimeapi.PodSandboxConfig) *runtimeapi.LinuxSandboxSecurityContext {
		return p.Linux.SecurityContext
	}
	for name, tt := range map[string]struct {
		params SandboxParams
		want   func(Spec) bool
	}{
		"host network": {
			SandboxParams{Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) { security(p).NamespaceOptions.Network = modeNode })},
			func(o Spec) bool {
				return o.Host.NetworkMode.IsHost() && o.Host.UTSMode.IsHost() && o.Config.Hostname == "" && !o.Config.NetworkDisabled
			},
		},
		"host pid and ipc": {
			SandboxParams{Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
				security(p).NamespaceOptions.Pid, security(p).NamespaceOptions.Ipc = modeNode, modeNode
			})},
			func(o Spec) bool { return o.Host.PidMode.IsHost() && o.Host.IpcMode.IsHost() },
		},
		"Docker's bridge": {
			SandboxParams{Features: old, Pod: pod(), Bridge: true},
			func(o Spec) bool { return o.Host.NetworkMode.IsDefault() && !o.Config.NetworkDisabled },
		},
		"systemd cgroup driver takes a slice": {
			SandboxParams{Features: recent, Pod: pod()},
			func(o Spec) bool {
				return o.Host.CgroupParent == "kubepods-podu1.slice" && o.Host.CgroupnsMode == "private"
			},
		},
		"a shim as handler": {
			SandboxParams{Features: withShims, Pod: pod(), Handler: "gvisor", Policy: policy(podpolicy.Options{ShimRuntimes: []string{"gvisor=io.containerd.runsc.v1"}})},
			func(o Spec) bool {
				return o.Host.Runtime == "io.containerd.runsc.v1" && storedLabels(o).Handler == "gvisor"
			},
		},
		"a size of /dev/shm": {
			SandboxParams{Features: old, Policy: allowed, Pod: pod(func(p *runtimeapi.PodSandboxConfig) { p.Annotations["berth.shm-size"] = "1Gi" })},
			func(o Spec) bool { return o.Host.ShmSize == 1<<30 },
		},
		"annotations of the CRI": {
			SandboxParams{Features: recent, Pod: pod()},
			func(o Spec) bool {
				return o.Host.Annotations["io.kubernetes.cri.container-type"] == "sandbox" && o.Host.Annotations["note"] == ""
			},
		},
		"oom_score_adj below Docker's lowest": {
			SandboxParams{Features: engine.Features{LowestOOMScore: -500}, Pod: pod(), OOMScore: PauseOOMScore},
			func(o Spec) bool { return o.Host.OomScoreAdj == -500 },
		},
		"a long hostname": {
			SandboxParams{Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) { p.Hostname = strings.Repeat("a", 63) + "-" + "tail" })},
			func(o Spec) bool { return o.Config.Hostname == strings.Repeat("a", 63) },
		},
		"the node's sysctls": {
			SandboxParams{Features: old, Pod: pod(), NodeSysctls: map[string]string{"net.ipv6.conf.all.disable_ipv6": "1"}},
			func(o Spec) bool {
				return len(o.Host.Sysctls) == 1 && o.Host.Sysctls["net.ipv6.conf.all.disable_ipv6"] == "1" && !strings.Contains(storedLabels(o).Config, "ipv6")
			},
		},
		"the node's sysctls, but for those of the pod": {
			SandboxParams{Features: old, NodeSysctls: map[string]string{"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"},
				Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
					p.Linux.Sysctls = map[string]string{"net.ipv6.conf.all.disable_ipv6": "0", "kernel.msgmax": "1"}
				})},
			func(o Spec) bool {
				s := o.Host.Sysctls
				return len(s) == 3 && s["net.ipv6.conf.all.disable_ipv6"] == "0" && s["net.ipv6.conf.default.disable_ipv6"] == "1" && s["kernel.msgmax"] == "1"
			},
		},
		"no sysctls in the node's network": {
			SandboxParams{Features: old, NodeSysctls: map[string]string{"net.ipv6.conf.all.disable_ipv6": "1"},
				Pod: pod(func(p *runtimeapi.PodSandboxConfig) { security(p).NamespaceOptions.Network = modeNode })},
			func(o Spec) bool { return len(o.Host.Sysctls) == 0 },
		},
		"no sysctls on Docker's bridge, which sets them itself": {
			SandboxParams{Features: old, Pod: pod(), Bridge: true, NodeSysctls: map[string]string{"net.ipv6.conf.all.disable_ipv6": "1"}},
			func(o Spec) bool { return len(o.Host.Sysctls) == 0 },
		},
		"a runtime handler": {
			SandboxParams{Features: recent, Pod: pod(), Handler: "runsc"},
			func(o Spec) bool { return o.Host.Runtime == "runsc" },
		},
		"cri-dockerd's name of the default handler": {
			SandboxParams{Features: old, Pod: pod(), Handler: "docker"},
			func(o Spec) bool { return o.Host.Runtime == "" },
		},
		"ports on Docker's bridge": {
			SandboxParams{Features: old, Bridge: true, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
				p.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_UDP, ContainerPort: 53, HostPort: 5353, HostIp: "10.0.0.1"}, {ContainerPort: 80}}
			})},
			func(o Spec) bool {
				b := o.Host.PortBindings["53/udp"]
				_, exposed := o.Config.ExposedPorts["53/udp"]
				return exposed && len(o.Host.PortBindings) == 1 && len(b) == 1 && b[0].HostIP == "10.0.0.1" && b[0].HostPort == "5353"
			},
		},
		"a user": {
			SandboxParams{Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
				security(p).RunAsUser, security(p).SupplementalGroups = &runtimeapi.Int64Value{Value: 7}, []int64{8}
				security(p).ReadonlyRootfs = true
			})},
			func(o Spec) bool {
				return o.Config.User == "7" && slices.Equal(o.Host.GroupAdd, []string{"8"}) && o.Host.ReadonlyRootfs
			},
		},
		"a user, policy Strict": {
			SandboxParams{Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
				security(p).RunAsUser, security(p).SupplementalGroupsPolicy = &runtimeapi.Int64Value{Value: 7}, runtimeapi.SupplementalGroupsPolicy_Strict
			})},
			func(o Spec) bool { return o.Config.User == "7:0" },
		},
		"a user and a group": {
			SandboxParams{Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
				security(p).RunAsUser, security(p).RunAsGroup = &runtimeapi.Int64Value{Value: 7}, &runtimeapi.Int64Value{Value: 8}
			})},
			func(o Spec) bool { return o.Config.User == "7:8" },
		},
		"a group without a user": {
			SandboxParams{Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
				security(p).RunAsGroup = &runtimeapi.Int64Value{}
			})},
			func(o Spec) bool { return o.Config.User == "" },
		},
		"RuntimeDefault, Docker without seccomp": {
			SandboxParams{Features: engine.Features{}, Pod: pod(func(p *runtimeapi.PodSandboxConfig) { security(p).Seccomp = &runtimeapi.SecurityProfile{} })},
			func(o Spec) bool { return slices.Contains(o.Host.SecurityOpt, "seccomp=unconfined") },
		},
		"RuntimeDefault, unconfined in daemon.json": {
			SandboxParams{Features: engine.Features{SeccompProfile: "unconfined"}, Pod: pod(func(p *runtimeapi.PodSandboxConfig) { security(p).Seccomp = &runtimeapi.SecurityProfile{} })},
			func(o Spec) bool { return slices.Contains(o.Host.SecurityOpt, "seccomp=unconfined") },
		},
		"RuntimeDefault, Docker with builtin": {
			SandboxParams{Features: recent, Pod: pod(func(p *runtimeapi.PodSandboxConfig) { security(p).Seccomp = &runtimeapi.SecurityProfile{} })},
			func(o Spec) bool { return slices.Contains(o.Host.SecurityOpt, "seccomp=builtin") },
		},
		"no seccomp profile": {
			SandboxParams{Features: recent, Pod: pod()},
			func(o Spec) bool { return slices.Contains(o.Host.SecurityOpt, "seccomp=unconfined") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Sandbox(tt.params)
			if err != nil {
				t.Fatal(err)
			}
			if !tt.want(got) {
				t.Errorf("got %+v\n%+v", got.Config, got.Host)
			}
		})
	}
}

func TestSandboxRefuses(t *testing.T) {
	for name, p := range map[string]SandboxParams{
		"no metadata":                  {Features: old, Pod: &runtimeapi.PodSandboxConfig{}},
		"an unknown handler":           {Features: old, Pod: pod(), Handler: "kata"},
		"a cgroup that is not a slice": {Features: recent, Pod: pod(func(p *runtimeapi.PodSandboxConfig) { p.Linux.CgroupParent = "/kubepods/podu1" })},
		"a relative log directory":     {Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) { p.LogDirectory = "logs" })},
		"a user namespace": {Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}
		})},
		"a UID out of range": {Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1 << 32}
		})},
		"a GID out of range": {Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.SecurityContext.RunAsUser, p.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1}, &runtimeapi.Int64Value{Value: -1}
		})},
		"a GID out of range alone": {Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1 << 32}
		})},
		"a supplemental group out of range": {Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.SecurityContext.SupplementalGroups = []int64{1, 1 << 31}
		})},
		"fields for Windows": {Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
			p.Windows = &runtimeapi.WindowsPodSandboxConfig{SecurityContext: &runtimeapi.WindowsSandboxSecurityContext{HostProcess: true}}
		})},
		"an unknown protocol": {Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
			p.PortMappings = []*runtimeapi.PortMapping{{Protocol: 9, ContainerPort: 80, HostPort: 80}}
		})},
		"a port out of range": {Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) {
			p.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 70000}}
		})},
		"an unknown groups policy":     {Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) { p.Linux.SecurityContext.SupplementalGroupsPolicy = 9 })},
		"a line break in the hostname": {Features: old, Pod: pod(func(p *runtimeapi.PodSandboxConfig) { p.Hostname = "a\nb" })},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := Sandbox(p); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %+v, %v; want an invalid argument", got, err)
			}
		})
	}
}

func TestResolvConf(t *testing.T) {
	node := []byte("nameserver 9.9.9.9\n")
	for name, tt := range map[string]struct {
		dns  *runtimeapi.DNSConfig
		want string
	}{
		"no config":       {nil, "nameserver 9.9.9.9\n"},
		"an empty config": {&runtimeapi.DNSConfig{}, ""},
		"only servers":    {&runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}}, "nameserver 10.0.0.10\n"},
		"all fields":      {&runtimeapi.DNSConfig{Servers: []string{"a", "b"}, Searches: []string{"x.y", "y"}, Options: []string{"ndots:5"}}, "nameserver a\nnameserver b\nsearch x.y y\noptions ndots:5\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := ResolvConf(tt.dns, node); err != nil || string(got) != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
	if _, err := ResolvConf(&runtimeapi.DNSConfig{Searches: []string{"a\nnameserver 6.6.6.6"}}, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a line break: %v, want an invalid argument", err)
	}
}

func TestHostname(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	for name, tt := range map[string]struct{ hostname, want string }{
		"a hostname":  {"web-0", "web-0"},
		"63 bytes":    {strings.Repeat("a", 31) + "." + strings.Repeat("b", 31), strings.Repeat("a", 31) + "." + strings.Repeat("b", 31)},
		"64 bytes":    {"h." + strings.Repeat("a", 30) + "." + strings.Repeat("b", 31), "h." + strings.Repeat("a", 30) + "." + strings.Repeat("b", 31)},
		"65 bytes":    {strings.Repeat("a", 65), strings.Repeat("a", 64)},
		"too long":    {strings.Repeat("a", 63) + "-tail", strings.Repeat("a", 63)},
		"none":        {"", "0123456789ab"},
		"only dashes": {strings.Repeat("-", 65), "0123456789ab"},
	} {
		config := pod(func(p *runtimeapi.PodSandboxConfig) { p.Hostname = tt.hostname })
		if got := Hostname(config, id); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
		// Docker gets the same, or none and then uses the ID.
		spec, err := Sandbox(SandboxParams{Features: old, Pod: config})
		if err != nil || spec.Config.Hostname != "" && spec.Config.Hostname != tt.want || spec.Config.Hostname == "" && tt.want != id[:12] {
			t.Errorf("%s: Docker gets %q, %v", name, spec.Config.Hostname, err)
		}
	}
}

func TestHosts(t *testing.T) {
	got := string(Hosts("web-0", []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::3")}))
	for _, line := range []string{"127.0.0.1\tlocalhost\n", "10.1.2.3\tweb-0\n", "fd00::3\tweb-0\n"} {
		if !strings.Contains(got, line) {
			t.Errorf("%q is not in %q", line, got)
		}
	}
}
