package todocker

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cdi"
	"berth/core/engine"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/podpolicy"
	"berth/core/premount"
)

// params returns the parameters of a plain container, with changes.
func params(features engine.Features, change ...func(*runtimeapi.ContainerConfig, *runtimeapi.LinuxContainerSecurityContext)) ContainerParams {
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "nginx", Attempt: 1},
		Image:    &runtimeapi.ImageSpec{Image: "sha256:1"},
		Command:  []string{"run"},
		LogPath:  "nginx/1.log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: modeContainer}},
		},
	}
	for _, f := range change {
		f(c, c.Linux.SecurityContext)
	}
	return ContainerParams{
		Pod: pod(), Config: c, SandboxID: "s1", Image: Image{ID: "sha256:1"}, ImageName: "nginx:1", Features: features,
		TargetID: "c2full", Volumes: map[string]Image{"files:1": {ID: "sha256:f", Ref: "files@sha256:f"}},
		Files: []File{{Source: "/run/p/hosts", Target: "/etc/hosts"}, {Source: "/run/p/resolv.conf", Target: "/etc/resolv.conf"}},
	}
}

// withCDI adds CDI devices to the parameters.
func withCDI(p ContainerParams, names []string, edits cdi.Edits) ContainerParams {
	p.CDINames, p.CDI, p.Premounts, p.PremountName = names, edits, fakePremounts{}, premountName
	return p
}

type (
	config   = *runtimeapi.ContainerConfig
	security = *runtimeapi.LinuxContainerSecurityContext
)

var premountName = names.NewPremount()

// storedLabels returns the labels of a container that was created from spec, as they are read.
func storedLabels(spec Spec) labels.Set {
	set, err := labels.Read(container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{Name: "/" + spec.Name.String(), HostConfig: spec.Host}, Config: spec.Config,
	})
	if err != nil {
		panic(err)
	}
	return set
}

func TestContainer(t *testing.T) {
	for name, tt := range map[string]struct {
		params ContainerParams
		want   func(Spec) bool
	}{
		"names and labels": {params(old, func(c config, _ security) { c.Labels = map[string]string{"annotation.a": "label"} }), func(o Spec) bool {
			set := storedLabels(o)
			return o.Name.String() == "k8s_nginx_web-0_default_u1_1" && set.LogPath == "/var/log/pods/web/nginx/1.log" &&
				set.SandboxID == "s1" && set.Labels["annotation.a"] == "label" && len(set.Annotations) == 0
		}},
		"the sandbox's namespaces": {params(old), func(o Spec) bool {
			return o.Host.NetworkMode == "container:s1" && o.Host.IpcMode == "container:s1" && o.Host.PidMode == ""
		}},
		"a shared PID namespace": {params(old, func(_ config, s security) { s.NamespaceOptions = nil }), func(o Spec) bool {
			return o.Host.PidMode == "container:s1"
		}},
		"PID namespace of a target container": {params(old, func(_ config, s security) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: modeTarget, TargetId: "c2"}
		}), func(o Spec) bool { return o.Host.PidMode == "container:c2full" }},
		"environment": {params(old, func(c config, _ security) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b=c")}, {Key: "EMPTY"}}
		}), func(o Spec) bool { return slices.Equal(o.Config.Env, []string{"A=b=c", "EMPTY="}) }},
		"no environment in the labels": {params(old, func(c config, _ security) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("secret")}}
		}), func(o Spec) bool { return !strings.Contains(storedLabels(o).Config, "secret") }},
		"empty path lists override Docker's defaults": {params(old), func(o Spec) bool {
			return o.Host.MaskedPaths != nil && len(o.Host.MaskedPaths) == 0 && o.Host.ReadonlyPaths != nil
		}},
		"user and group": {params(old, func(_ config, s security) {
			s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 7}, &runtimeapi.Int64Value{Value: 8}
			s.SupplementalGroups = []int64{9}
		}), func(o Spec) bool { return o.Config.User == "7:8" && slices.Equal(o.Host.GroupAdd, []string{"9"}) }},
		"a capability to add and to drop is dropped": {params(old, func(_ config, s security) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"net_admin", "CAP_SYS_TIME"}, DropCapabilities: []string{"NET_ADMIN"}}
		}), func(o Spec) bool {
			return slices.Equal(o.Host.CapAdd, []string{"CAP_SYS_TIME"}) && slices.Equal(o.Host.CapDrop, []string{"CAP_NET_ADMIN"})
		}},
		"no_new_privs is set explicitly": {params(old), func(o Spec) bool {
			return slices.Contains(o.Host.SecurityOpt, "no-new-privileges=false")
		}},
		"a memory limit disables swap": {params(old, func(c config, _ security) { c.Linux.Resources.MemoryLimitInBytes = 64 << 20 }), func(o Spec) bool {
			return o.Host.Memory == 64<<20 && o.Host.MemorySwap == 64<<20
		}},
		"swap on cgroup v2": {params(recent, func(c config, _ security) {
			c.Linux.Resources.MemoryLimitInBytes = 64 << 20
			c.Linux.Resources.Unified = map[string]string{"memory.swap.max": "1024"}
		}), func(o Spec) bool { return o.Host.MemorySwap == 64<<20+1024 }},
		"stop signal in Docker's spelling": {params(old, func(c config, _ security) { c.StopSignal = runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3 }), func(o Spec) bool {
			return o.Config.StopSignal == "SIGRTMIN+3"
		}},
		"CDI devices": {withCDI(params(recent), []string{"v/gpu=0"}, cdi.Edits{}), func(o Spec) bool {
			return len(o.Host.DeviceRequests) == 1 && o.Host.DeviceRequests[0].Driver == "cdi" && o.Host.DeviceRequests[0].DeviceIDs[0] == "v/gpu=0"
		}},
		"CDI devices, Docker without CDI": {withCDI(params(kernel512, func(c config, _ security) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("own")}, {Key: "B", Value: []byte("own")}}
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/own", ContainerPath: "/dev/x"}}
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/own", ContainerPath: "/lib/a"}, {HostPath: "/b", ContainerPath: "/b"}}
		}), nil, cdi.Edits{
			Env: []string{"A=cdi"}, GIDs: []int64{44}, Nodes: []cdi.Node{{HostPath: "/dev/n", Path: "/dev/x", Permissions: "rw"}},
			Mounts: []cdi.Mount{
				{CRI: &runtimeapi.Mount{HostPath: "/host/a", ContainerPath: "/lib/a", Readonly: true}, NonRecursive: true},
				{CRI: &runtimeapi.Mount{HostPath: "/host/c", ContainerPath: "/lib/c", Readonly: true, MountOptions: []string{"nosuid"}}, NonRecursive: true},
			},
		}), func(o Spec) bool {
			d, m := o.Host.Devices, o.Host.Mounts
			return slices.Equal(o.Config.Env, []string{"B=own", "A=cdi"}) && slices.Equal(o.Host.GroupAdd, []string{"44"}) && len(o.Host.DeviceRequests) == 0 &&
				len(d) == 1 && d[0].PathOnHost == "/dev/n" && d[0].CgroupPermissions == "rw" &&
				len(m) == 5 && m[0].Source == "/b" && m[1].Source == "/host/a" && m[1].ReadOnly && m[1].BindOptions.NonRecursive && m[2].Target == "/lib/c" &&
				len(o.Premounts) == 1 && o.Premounts[0].Source == "/host/c" && o.Premounts[0].NonRecursive && slices.Equal(o.Premounts[0].Options, []string{"nosuid", "ro"})
		}},
		"devices, with all permissions by default": {params(old, func(c config, _ security) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/a", ContainerPath: "/dev/b"}, {HostPath: "/dev/c", ContainerPath: "/dev/c", Permissions: "r"}}
		}), func(o Spec) bool {
			d := o.Host.Devices
			return len(d) == 2 && d[0].PathOnHost == "/dev/a" && d[0].PathInContainer == "/dev/b" && d[0].CgroupPermissions == "rwm" && d[1].CgroupPermissions == "r"
		}},
		"resolved reference of an image volume": {params(recent, func(c config, _ security) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: "files:1"}}}
		}), func(o Spec) bool {
			stored := strings.ReplaceAll(storedLabels(o).Config, " ", "")
			return strings.Contains(stored, `"imageRef":"files@sha256:f"`) && strings.Contains(stored, `"readonly":true`)
		}},
		"the pod's files, but for paths with mounts": {params(old, func(c config, _ security) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/etc/hosts", HostPath: "/kubelet/hosts"}}
		}), func(o Spec) bool {
			return len(o.Host.Mounts) == 2 && o.Host.Mounts[0].Source == "/kubelet/hosts" && o.Host.Mounts[1].Target == "/etc/resolv.conf"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Container(tt.params)
			if err != nil {
				t.Fatal(err)
			}
			if !tt.want(got) {
				t.Errorf("got %+v\n%+v", got.Config, got.Host)
			}
		})
	}
}

func TestPrivileged(t *testing.T) {
	p := params(recent, func(c config, s security) {
		s.Privileged, s.MaskedPaths = true, []string{"/proc/kcore"}
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/a", ContainerPath: "/dev/a"}, {HostPath: "/dev/a", ContainerPath: "/dev/b"}}
		s.Seccomp = &runtimeapi.SecurityProfile{}
	})
	p.CDINames = []string{"v/gpu=0"}
	if _, err := Container(p); !errdefs.IsInvalidArgument(err) {
		t.Errorf("in a sandbox that is not privileged: %v, want an invalid argument", err)
	}
	p.Pod.Linux.SecurityContext.Privileged = true
	got, err := Container(p)
	if err != nil {
		t.Fatal(err)
	}
	if h := got.Host; !h.Privileged || h.MaskedPaths != nil || !slices.Contains(h.SecurityOpt, "seccomp=unconfined") || h.CgroupnsMode != "host" {
		t.Errorf("got %+v", h)
	}
	// A privileged container has the node's devices, but not under other paths, and no CDI devices.
	if h := got.Host; len(h.Devices) != 1 || h.Devices[0].PathInContainer != "/dev/b" || len(h.DeviceRequests) != 1 {
		t.Errorf("devices %+v, %+v", h.Devices, h.DeviceRequests)
	}
}

func TestContainerRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		params ContainerParams
		kind   func(error) bool
	}{
		"no name":                       {params(old, func(c config, _ security) { c.Metadata = nil }), errdefs.IsInvalidArgument},
		"no command":                    {params(old, func(c config, _ security) { c.Command = nil }), errdefs.IsInvalidArgument},
		"environment that is not UTF-8": {params(old, func(c config, _ security) { c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte{0xff}}} }), errdefs.IsInvalidArgument},
		"a log outside its directory":   {params(old, func(c config, _ security) { c.LogPath = "../../etc/passwd" }), errdefs.IsInvalidArgument},
		"a group without a user":        {params(old, func(_ config, s security) { s.RunAsGroup = &runtimeapi.Int64Value{Value: 1} }), errdefs.IsInvalidArgument},
		"ambient capabilities": {params(old, func(_ config, s security) {
			s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"CHOWN"}}
		}), errdefs.IsFailedPrecondition},
		"unified resources on cgroup v1": {params(old, func(c config, _ security) { c.Linux.Resources.Unified = map[string]string{"memory.high": "1"} }), errdefs.IsFailedPrecondition},
		"a unified resource with a path": {params(recent, func(c config, _ security) { c.Linux.Resources.Unified = map[string]string{"../memory.high": "1"} }), errdefs.IsInvalidArgument},
		"a CDI device that the user cannot open": {withCDI(params(old, func(_ config, s security) { s.RunAsUser = &runtimeapi.Int64Value{Value: 7} }), nil,
			cdi.Edits{Nodes: []cdi.Node{{HostPath: "/dev/n", Path: "/dev/n", Permissions: "rw", GID: 44, Mode: 0o660, UserOwned: true}}}), errdefs.IsFailedPrecondition},
		"a group of a CDI device out of range": {withCDI(params(old), nil, cdi.Edits{GIDs: []int64{1 << 31}}), errdefs.IsInvalidArgument},
		"a Localhost profile without a name": {params(old, func(_ config, s security) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost}
		}), errdefs.IsInvalidArgument},
		"an AppArmor profile, Docker without AppArmor": {params(old, func(_ config, s security) {
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "p"}
		}), errdefs.IsFailedPrecondition},
		"fields for Windows": {params(old, func(c config, _ security) {
			c.Windows = &runtimeapi.WindowsContainerConfig{SecurityContext: &runtimeapi.WindowsContainerSecurityContext{RunAsUsername: "u"}}
		}), errdefs.IsInvalidArgument},
		"an image for an unknown handler":          {params(old, func(c config, _ security) { c.Image.RuntimeHandler = "kata" }), errdefs.IsInvalidArgument},
		"the node's network in a pod with its own": {params(old, func(_ config, s security) { s.NamespaceOptions.Network = modeNode }), errdefs.IsInvalidArgument},
		"an unknown PID namespace mode":            {params(old, func(_ config, s security) { s.NamespaceOptions.Pid = 9 }), errdefs.IsInvalidArgument},
		"an unknown groups policy":                 {params(old, func(_ config, s security) { s.SupplementalGroupsPolicy = 9 }), errdefs.IsInvalidArgument},
		"id mappings in the node's user namespace": {params(old, func(_ config, s security) {
			s.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: modeNode, Uids: []*runtimeapi.IDMapping{{Length: 1}}}
		}), errdefs.IsInvalidArgument},
		"an unknown profile type": {params(old, func(_ config, s security) { s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: 9} }), errdefs.IsInvalidArgument},
		"RuntimeDefault with a localhost_ref": {params(old, func(_ config, s security) {
			s.Seccomp = &runtimeapi.SecurityProfile{LocalhostRef: "/p.json"}
		}), errdefs.IsInvalidArgument},
		"a device without a path": {params(old, func(c config, _ security) { c.Devices = []*runtimeapi.Device{{HostPath: "/dev/a"}} }), errdefs.IsInvalidArgument},
		"unknown device permissions": {params(old, func(c config, _ security) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/a", ContainerPath: "/a", Permissions: "x"}}
		}), errdefs.IsInvalidArgument},
		"a swap limit without a memory limit": {params(old, func(c config, _ security) { c.Linux.Resources.MemorySwapLimitInBytes = 1 << 30 }), errdefs.IsInvalidArgument},
		"a swap limit below the memory limit": {params(old, func(c config, _ security) {
			c.Linux.Resources.MemoryLimitInBytes, c.Linux.Resources.MemorySwapLimitInBytes = 1<<30, 1<<20
		}), errdefs.IsInvalidArgument},
		"oom_score_adj out of range": {params(old, func(c config, _ security) { c.Linux.Resources.OomScoreAdj = 1001 }), errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Container(tt.params); !tt.kind(err) {
				t.Errorf("err = %v", err)
			}
		})
	}
}

func TestMounts(t *testing.T) {
	private, slave, shared := runtimeapi.MountPropagation_PROPAGATION_PRIVATE, runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	bindOf := func(o *mount.BindOptions, readonly bool) *mount.Mount {
		return &mount.Mount{Type: mount.TypeBind, Source: "/data", Target: "/d", ReadOnly: readonly, BindOptions: o}
	}
	noPropagation := func(source string) *mount.Mount {
		return &mount.Mount{Type: mount.TypeBind, Source: source, Target: "/d", BindOptions: &mount.BindOptions{}}
	}
	for name, tt := range map[string]struct {
		features engine.Features
		in       *runtimeapi.Mount
		want     *mount.Mount    // nil: refused, or a premount
		pre      *premount.Mount // nil: refused, or no premount
	}{
		"private":                 {old, &runtimeapi.Mount{HostPath: "/data", Propagation: private}, bindOf(&mount.BindOptions{Propagation: "rprivate"}, false), nil},
		"host to container":       {old, &runtimeapi.Mount{HostPath: "/data", Propagation: slave}, bindOf(&mount.BindOptions{Propagation: "rslave"}, false), nil},
		"bidirectional":           {old, &runtimeapi.Mount{HostPath: "/data", Propagation: shared}, bindOf(&mount.BindOptions{Propagation: "rshared"}, false), nil},
		"parent of the data root": {old, &runtimeapi.Mount{HostPath: "/var/lib"}, noPropagation("/var/lib"), nil},
		"the data root":           {old, &runtimeapi.Mount{HostPath: "/var/lib/docker"}, noPropagation("/var/lib/docker"), nil},
		"within the data root":    {old, &runtimeapi.Mount{HostPath: "/var/lib/docker/volumes"}, noPropagation("/var/lib/docker/volumes"), nil},
		"a path with the data root as string prefix": {old, &runtimeapi.Mount{HostPath: "/var/lib/docker2/x"}, noPropagation("/var/lib/docker2/x"), nil},
		"a string prefix of the data root":           {old, &runtimeapi.Mount{HostPath: "/var/lib/dock"}, noPropagation("/var/lib/dock"), nil},
		"read-only, not recursive, Docker 20.10":     {old, &runtimeapi.Mount{HostPath: "/data", Readonly: true}, bindOf(&mount.BindOptions{Propagation: "rprivate"}, true), nil},
		"read-only, not recursive, Docker 25": {recent, &runtimeapi.Mount{HostPath: "/data", Readonly: true},
			bindOf(&mount.BindOptions{Propagation: "rprivate", ReadOnlyNonRecursive: true}, true), nil},
		"recursive read-only": {recent, &runtimeapi.Mount{HostPath: "/data", Readonly: true, RecursiveReadOnly: true},
			bindOf(&mount.BindOptions{Propagation: "rprivate", ReadOnlyForceRecursive: true}, true), nil},
		"recursive read-only, not supported": {old, &runtimeapi.Mount{HostPath: "/data", Readonly: true, RecursiveReadOnly: true}, nil, nil},
		"recursive but not read-only":        {recent, &runtimeapi.Mount{HostPath: "/data", RecursiveReadOnly: true}, nil, nil},
		"recursive read-only, not private":   {recent, &runtimeapi.Mount{HostPath: "/data", Readonly: true, RecursiveReadOnly: true, Propagation: slave}, nil, nil},
		"with id mappings":                   {old, &runtimeapi.Mount{HostPath: "/data", UidMappings: []*runtimeapi.IDMapping{{Length: 1}}}, nil, nil},
		"an image with id mappings":          {recent, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}, GidMappings: []*runtimeapi.IDMapping{{Length: 1}}}, nil, nil},
		"a sub-path without an image":        {recent, &runtimeapi.Mount{HostPath: "/data", ImageSubPath: "a"}, nil, nil},
		"a relative source":                  {old, &runtimeapi.Mount{HostPath: "data"}, nil, nil},
		"an option of a file system":         {recent, &runtimeapi.Mount{HostPath: "/data", MountOptions: []string{"size=1"}}, nil, nil},
		"options on an old kernel":           {old, &runtimeapi.Mount{HostPath: "/data", MountOptions: []string{"noexec"}}, nil, nil},
		"options": {recent, &runtimeapi.Mount{HostPath: "/data/", MountOptions: []string{"noexec"}}, nil,
			&premount.Mount{Source: "/data", Options: []string{"noexec"}}},
		"options, read-only": {recent, &runtimeapi.Mount{HostPath: "/data", MountOptions: []string{"nosuid"}, Readonly: true, Propagation: slave}, nil,
			&premount.Mount{Source: "/data", Options: []string{"nosuid", "ro"}, Propagation: premount.Slave}},
		"an option that removes a restriction": {recent, &runtimeapi.Mount{HostPath: "/data", MountOptions: []string{"exec"}}, nil, nil},
		"recursive read-only, old Docker": {kernel512, &runtimeapi.Mount{HostPath: "/var/lib", Readonly: true, RecursiveReadOnly: true}, nil,
			&premount.Mount{Source: "/var/lib", Options: []string{"rro"}}},
		"options, recursive read-only": {recent, &runtimeapi.Mount{HostPath: "/data", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"nodev"}}, nil,
			&premount.Mount{Source: "/data", Options: []string{"nodev", "rro"}}},
		"an image as a premount": {kernel512, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}, ImageSubPath: "a/b"}, nil,
			&premount.Mount{Layers: []string{"/l/2", "/l/1"}, SubPath: "a/b"}},
		"an image, layers unknown": {kernel512, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "other:1"}}, nil, nil},
		"an image with options":    {recent, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}, MountOptions: []string{"noexec"}}, nil, nil},
		"an image": {recent, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}, ImageSubPath: "a/b"}, &mount.Mount{
			Type: mount.TypeImage, Source: "sha256:f", Target: "/d", ReadOnly: true, ImageOptions: &mount.ImageOptions{Subpath: "a/b"},
		}, nil},
		"an image, old Docker": {old, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}}, nil, nil},
		"an image, as from a kubelet 1.31": {recent, &runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: "files:1"}}, &mount.Mount{
			Type: mount.TypeImage, Source: "sha256:f", Target: "/d", ReadOnly: true,
		}, nil},
		"a sub-path out of an image": {recent, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}, ImageSubPath: "../x"}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			tt.in.ContainerPath = "/d"
			p := params(tt.features, func(c config, _ security) { c.Mounts = []*runtimeapi.Mount{tt.in} })
			p.Files, p.PremountName, p.Premounts = nil, premountName, premount.New("/stages")
			p.Volumes = map[string]Image{"files:1": {ID: "sha256:f", Layers: []string{"/l/2", "/l/1"}}, "other:1": {ID: "sha256:o"}}
			got, err := Container(p)
			if tt.pre != nil && err == nil {
				tt.want = bindOf(&mount.BindOptions{Propagation: propagations[tt.in.Propagation].docker}, false)
				tt.want.Source = "/stages/" + premountName.String() + "/0"
				if diff := cmp.Diff([]premount.Mount{*tt.pre}, got.Premounts); diff != "" || storedLabels(got).Premount != premountName {
					t.Errorf("premounts (-want +got):\n%s", diff)
				}
			}
			if tt.want == nil {
				if err == nil {
					t.Errorf("got %+v, want an error", got.Host.Mounts)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]mount.Mount{*tt.want}, got.Host.Mounts); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The API server only compares the strings of mountPath, so a pod can have two mounts with the
// same path; with runtimes that mount them in order the later one is on top.
func TestLastMountAtAPathIsUsed(t *testing.T) {
	image := &runtimeapi.ImageSpec{Image: "files:1"}
	for name, tt := range map[string]struct {
		in        []*runtimeapi.Mount
		want      []string // source:target of the container's own, in order
		premounts []string // their options
	}{
		"the same string":  {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/d"}, {HostPath: "/b", ContainerPath: "/d"}}, []string{"/b:/d"}, nil},
		"a trailing slash": {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/d"}, {HostPath: "/b", ContainerPath: "/d/"}}, []string{"/b:/d"}, nil},
		"other spellings": {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/x/../d"}, {HostPath: "/b", ContainerPath: "d"},
			{HostPath: "/c", ContainerPath: "//d"}, {HostPath: "/e", ContainerPath: "/./d/."}, {HostPath: "/f", ContainerPath: "/../d"}}, []string{"/f:/d"}, nil},
		"another mount in between": {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/d"}, {HostPath: "/b", ContainerPath: "/d/e"}, {HostPath: "/c", ContainerPath: "/d/"}},
			[]string{"/b:/d/e", "/c:/d"}, nil},
		"a file of the pod": {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/etc/hosts"}, {HostPath: "/b", ContainerPath: "/etc/hosts"}}, []string{"/b:/etc/hosts"}, nil},
		"a premount, then none": {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/d", MountOptions: []string{"noexec"}}, {HostPath: "/b", ContainerPath: "/d"},
			{HostPath: "/c", ContainerPath: "/e", MountOptions: []string{"nodev"}}}, []string{"/b:/d", "/stages/" + premountName.String() + "/0:/e"}, []string{"nodev"}},
		"none, then a premount": {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/d"}, {HostPath: "/b", ContainerPath: "/d", MountOptions: []string{"noexec"}}},
			[]string{"/stages/" + premountName.String() + "/0:/d"}, []string{"noexec"}},
		"an image, which is mounted once": {[]*runtimeapi.Mount{{ContainerPath: "/d", Readonly: true, Image: image}, {ContainerPath: "/d/", Readonly: true, Image: image}},
			[]string{"sha256:f:/d"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := params(recent, func(c config, _ security) { c.Mounts = tt.in })
			p.PremountName, p.Premounts = premountName, premount.New("/stages")
			got, err := Container(p)
			if err != nil {
				t.Fatal(err)
			}
			var have, premounts []string
			targets := map[string]bool{}
			for _, m := range got.Host.Mounts {
				if targets[m.Target] {
					t.Errorf("two mounts at %s", m.Target)
				}
				targets[m.Target] = true
				if !strings.HasPrefix(m.Source, "/run/p/") {
					have = append(have, m.Source+":"+m.Target)
				}
			}
			for _, s := range got.Premounts {
				premounts = append(premounts, s.Options...)
			}
			if !slices.Equal(have, tt.want) || !slices.Equal(premounts, tt.premounts) {
				t.Errorf("mounts %q, premounts %q; want %q, %q", have, premounts, tt.want, tt.premounts)
			}
		})
	}
	bad := params(old, func(c config, _ security) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: "relative", ContainerPath: "/d"}, {HostPath: "/b", ContainerPath: "/d"}}
	})
	if _, err := Container(bad); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an invalid mount that is not used: %v, want an invalid argument", err)
	}
}

// Docker stops containers when the daemon shuts down, systemd when the node does.
func TestGracePeriodAtShutdown(t *testing.T) {
	grace := func(features engine.Features, value string) ContainerParams {
		return params(features, func(c config, _ security) { c.Annotations = map[string]string{graceAnnotation: value} })
	}
	const property = "org.systemd.property.TimeoutStopUSec"
	noAnnotations := recent
	noAnnotations.Annotations = false
	for name, tt := range map[string]struct {
		params ContainerParams
		want   int // seconds; -1 for Docker's default
		scope  string
	}{
		"none":                        {params(recent), -1, ""},
		"of the pod":                  {grace(recent, "60"), 60, "uint64 60000000"},
		"zero":                        {grace(recent, "0"), 0, "uint64 1000000"},
		"with cgroupfs":               {grace(old, "60"), 60, ""},
		"with Docker before API 1.43": {grace(noAnnotations, "60"), 60, ""},
		"longer than the limit":       {grace(recent, "9223372036854775807"), maxGraceSeconds, "uint64 86400000000"},
		"longer than int64":           {grace(recent, "92233720368547758070"), maxGraceSeconds, "uint64 86400000000"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Container(tt.params)
			if err != nil {
				t.Fatal(err)
			}
			have := -1
			if got.Config.StopTimeout != nil {
				have = *got.Config.StopTimeout
			}
			if have != tt.want || got.Host.Annotations[property] != tt.scope {
				t.Errorf("StopTimeout %d, scope %q; want %d, %q", have, got.Host.Annotations[property], tt.want, tt.scope)
			}
		})
	}
	for _, value := range []string{"", "-1", "60s", "1e3", "-92233720368547758070"} {
		if _, err := Container(grace(recent, value)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want an invalid argument", value, err)
		}
	}
}

func TestFilesWithoutASizeLimitAreReadOnly(t *testing.T) {
	p := params(old)
	p.Files[1].ReadOnly = true
	got, err := Container(p)
	if err != nil {
		t.Fatal(err)
	}
	if m := got.Host.Mounts; m[0].ReadOnly || !m[1].ReadOnly {
		t.Errorf("%+v", m)
	}
}

func TestEverySignalHasAName(t *testing.T) {
	for n, name := range runtimeapi.Signal_name {
		got, err := stopSignal(runtimeapi.Signal(n))
		if err != nil || (got == "") != (name == "SIGNAL_RUNTIME_DEFAULT") || strings.Contains(got, "PLUS") || strings.Contains(got, "MINUS") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := stopSignal(9999); !errdefs.IsInvalidArgument(err) {
		t.Errorf("9999: %v", err)
	}
}

// Docker refuses two mounts of an image with the same reference.
func TestImageMountedSeveralTimesHasDistinctReferences(t *testing.T) {
	const id = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	p := params(recent, func(c config, _ security) {
		for _, target := range []string{"/a", "/b", "/c"} {
			c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: target, Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}})
		}
	})
	p.Volumes = map[string]Image{"files:1": {ID: id}}
	got, err := Container(p)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range got.Host.Mounts[:3] {
		if seen[m.Source] || !strings.HasPrefix(id, m.Source) && !strings.HasPrefix(id, "sha256:"+m.Source) {
			t.Errorf("source %s", m.Source)
		}
		seen[m.Source] = true
	}
	if _, err := uniqueImageRef(id, 60); err == nil {
		t.Error("shortened to five digits")
	}
}

func TestCheckUpdate(t *testing.T) {
	for name, r := range map[string]*runtimeapi.UpdateContainerResourcesRequest{
		"annotations":        {Annotations: map[string]string{"a": "b"}},
		"fields for Windows": {Windows: &runtimeapi.WindowsContainerResources{CpuCount: 1}},
	} {
		if err := CheckUpdate(r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want an invalid argument", name, err)
		}
	}
	if err := CheckUpdate(&runtimeapi.UpdateContainerResourcesRequest{Windows: &runtimeapi.WindowsContainerResources{}}); err != nil {
		t.Error(err)
	}
}

func TestContainerLimitsByAnnotation(t *testing.T) {
	features := recent
	features.WritableCgroups, features.LayerQuota = true, true
	annotated := func(change ...func(*runtimeapi.ContainerConfig, *runtimeapi.LinuxContainerSecurityContext)) ContainerParams {
		p := params(features, change...)
		p.Policy, p.PremountName = allowed, premountName
		p.PodAnnotations = map[string]string{
			"berth.ulimits": "nofile=1:2", "berth.shm-size": "1Gi", "berth.writable-cgroups": "true", "berth.rootfs-size/nginx": "10Mi",
		}
		return p
	}
	got, err := Container(annotated())
	if err != nil {
		t.Fatal(err)
	}
	h := got.Host
	if len(h.Ulimits) != 1 || h.Ulimits[0].Name != "nofile" || h.Ulimits[0].Soft != 1 || h.Ulimits[0].Hard != 2 ||
		h.ShmSize != 0 || h.StorageOpt["size"] != "10485760" || !slices.Contains(h.SecurityOpt, "writable-cgroups=true") {
		t.Errorf("host %+v", h)
	}
	if h.Annotations["io.kubernetes.cri.sandbox-id"] != "s1" || h.Annotations["io.containerd.runc.v2.group"] != premountName.String() {
		t.Errorf("annotations %v", h.Annotations)
	}
	got, err = Container(annotated(func(_ config, s security) {
		s.NamespaceOptions.Ipc = modeContainer
	}))
	if err != nil || got.Host.ShmSize != 1<<30 {
		t.Errorf("with IPC of its own: /dev/shm of %d bytes, %v", got.Host.ShmSize, err)
	}
	privileged := annotated(func(_ config, s security) { s.Privileged = true })
	privileged.Pod.Linux.SecurityContext.Privileged = true
	got, err = Container(privileged)
	if err != nil || slices.Contains(got.Host.SecurityOpt, "writable-cgroups=true") {
		t.Errorf("privileged: %q, %v", got.Host.SecurityOpt, err)
	}
	refused := annotated()
	refused.Policy = policy(podpolicy.Options{})
	if _, err := Container(refused); !errdefs.IsPermissionDenied(err) {
		t.Errorf("without permission: %v", err)
	}
}
