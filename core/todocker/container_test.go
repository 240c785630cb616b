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

	"berth/core/engine"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/premount"
)

// asked is an ask for a plain container, with changes.
func asked(can engine.Features, change ...func(*runtimeapi.ContainerConfig, *runtimeapi.LinuxContainerSecurityContext)) ContainerParams {
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
		Pod: pod(), Config: c, SandboxID: "s1", ImageID: "sha256:1", ImageName: "nginx:1", Can: can,
		TargetID: "c2full", Volumes: map[string]Volume{"files:1": {ID: "sha256:f", Ref: "files@sha256:f"}},
		Files: []File{{Source: "/run/p/hosts", Target: "/etc/hosts"}, {Source: "/run/p/resolv.conf", Target: "/etc/resolv.conf"}},
	}
}

type (
	config   = *runtimeapi.ContainerConfig
	security = *runtimeapi.LinuxContainerSecurityContext
)

var stage = names.NewStage()

// recorded returns what will be read back from a container created from o.
func recorded(o Spec) labels.Set {
	set, err := labels.Read(container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{Name: "/" + o.Name.String(), HostConfig: o.Host}, Config: o.Config,
	})
	if err != nil {
		panic(err)
	}
	return set
}

func TestContainer(t *testing.T) {
	for name, tt := range map[string]struct {
		ask  ContainerParams
		want func(Spec) bool
	}{
		"names and labels": {asked(old, func(c config, _ security) { c.Labels = map[string]string{"annotation.a": "label"} }), func(o Spec) bool {
			said := recorded(o)
			return o.Name.String() == "k8s_nginx_web-0_default_u1_1" && said.LogPath == "/var/log/pods/web/nginx/1.log" &&
				said.SandboxID == "s1" && said.Labels["annotation.a"] == "label" && len(said.Annotations) == 0
		}},
		"the sandbox's namespaces": {asked(old), func(o Spec) bool {
			return o.Host.NetworkMode == "container:s1" && o.Host.IpcMode == "container:s1" && o.Host.PidMode == ""
		}},
		"a shared pid namespace": {asked(old, func(_ config, s security) { s.NamespaceOptions = nil }), func(o Spec) bool {
			return o.Host.PidMode == "container:s1"
		}},
		"another container's pid namespace": {asked(old, func(_ config, s security) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: modeTarget, TargetId: "c2"}
		}), func(o Spec) bool { return o.Host.PidMode == "container:c2full" }},
		"variables": {asked(old, func(c config, _ security) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b=c")}, {Key: "EMPTY"}}
		}), func(o Spec) bool { return slices.Equal(o.Config.Env, []string{"A=b=c", "EMPTY="}) }},
		"no variable is kept in a label": {asked(old, func(c config, _ security) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("secret")}}
		}), func(o Spec) bool { return !strings.Contains(recorded(o).Config, "secret") }},
		"paths: none are none, not Docker's": {asked(old), func(o Spec) bool {
			return o.Host.MaskedPaths != nil && len(o.Host.MaskedPaths) == 0 && o.Host.ReadonlyPaths != nil
		}},
		"user and group": {asked(old, func(_ config, s security) {
			s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 7}, &runtimeapi.Int64Value{Value: 8}
			s.SupplementalGroups = []int64{9}
		}), func(o Spec) bool { return o.Config.User == "7:8" && slices.Equal(o.Host.GroupAdd, []string{"9"}) }},
		"a drop wins over an add": {asked(old, func(_ config, s security) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"net_admin", "CAP_SYS_TIME"}, DropCapabilities: []string{"NET_ADMIN"}}
		}), func(o Spec) bool {
			return slices.Equal(o.Host.CapAdd, []string{"CAP_SYS_TIME"}) && slices.Equal(o.Host.CapDrop, []string{"CAP_NET_ADMIN"})
		}},
		"no new privileges is always said": {asked(old), func(o Spec) bool {
			return slices.Contains(o.Host.SecurityOpt, "no-new-privileges=false")
		}},
		"memory without swap": {asked(old, func(c config, _ security) { c.Linux.Resources.MemoryLimitInBytes = 64 << 20 }), func(o Spec) bool {
			return o.Host.Memory == 64<<20 && o.Host.MemorySwap == 64<<20
		}},
		"swap on cgroup v2": {asked(recent, func(c config, _ security) {
			c.Linux.Resources.MemoryLimitInBytes = 64 << 20
			c.Linux.Resources.Unified = map[string]string{"memory.swap.max": "1024"}
		}), func(o Spec) bool { return o.Host.MemorySwap == 64<<20+1024 }},
		"a signal by the Engine's name": {asked(old, func(c config, _ security) { c.StopSignal = runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3 }), func(o Spec) bool {
			return o.Config.StopSignal == "SIGRTMIN+3"
		}},
		"CDI devices": {asked(recent, func(c config, _ security) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v/gpu=0"}} }), func(o Spec) bool {
			return len(o.Host.DeviceRequests) == 1 && o.Host.DeviceRequests[0].Driver == "cdi" && o.Host.DeviceRequests[0].DeviceIDs[0] == "v/gpu=0"
		}},
		"devices, with all permissions where none are named": {asked(old, func(c config, _ security) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/a", ContainerPath: "/dev/b"}, {HostPath: "/dev/c", ContainerPath: "/dev/c", Permissions: "r"}}
		}), func(o Spec) bool {
			d := o.Host.Devices
			return len(d) == 2 && d[0].PathOnHost == "/dev/a" && d[0].PathInContainer == "/dev/b" && d[0].CgroupPermissions == "rwm" && d[1].CgroupPermissions == "r"
		}},
		"which image a mount turned out to be of": {asked(recent, func(c config, _ security) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}}}
		}), func(o Spec) bool {
			return strings.Contains(strings.ReplaceAll(recorded(o).Config, " ", ""), `"imageRef":"files@sha256:f"`)
		}},
		"the pod's files, but for those it brings": {asked(old, func(c config, _ security) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/etc/hosts", HostPath: "/kubelet/hosts"}}
		}), func(o Spec) bool {
			return len(o.Host.Mounts) == 2 && o.Host.Mounts[0].Source == "/kubelet/hosts" && o.Host.Mounts[1].Target == "/etc/resolv.conf"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Container(tt.ask)
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
	ask := asked(recent, func(c config, s security) {
		s.Privileged, s.MaskedPaths = true, []string{"/proc/kcore"}
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/a", ContainerPath: "/dev/a"}, {HostPath: "/dev/a", ContainerPath: "/dev/b"}}
		c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v/gpu=0"}}
		s.Seccomp = &runtimeapi.SecurityProfile{}
	})
	if _, err := Container(ask); !errdefs.IsInvalidArgument(err) {
		t.Errorf("in a sandbox that is not: %v, want an invalid argument", err)
	}
	ask.Pod.Linux.SecurityContext.Privileged = true
	got, err := Container(ask)
	if err != nil {
		t.Fatal(err)
	}
	if h := got.Host; !h.Privileged || h.MaskedPaths != nil || !slices.Contains(h.SecurityOpt, "seccomp=unconfined") || h.CgroupnsMode != "host" {
		t.Errorf("got %+v", h)
	}
	// It has the node's devices by their own names only, and none that CDI makes up.
	if h := got.Host; len(h.Devices) != 1 || h.Devices[0].PathInContainer != "/dev/b" || len(h.DeviceRequests) != 1 {
		t.Errorf("devices %+v, %+v", h.Devices, h.DeviceRequests)
	}
}

func TestContainerRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		ask  ContainerParams
		kind func(error) bool
	}{
		"no name":                    {asked(old, func(c config, _ security) { c.Metadata = nil }), errdefs.IsInvalidArgument},
		"nothing to run":             {asked(old, func(c config, _ security) { c.Command = nil }), errdefs.IsInvalidArgument},
		"a variable that is no text": {asked(old, func(c config, _ security) { c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte{0xff}}} }), errdefs.IsInvalidArgument},
		"a log outside":              {asked(old, func(c config, _ security) { c.LogPath = "../../etc/passwd" }), errdefs.IsInvalidArgument},
		"a group without a user":     {asked(old, func(_ config, s security) { s.RunAsGroup = &runtimeapi.Int64Value{Value: 1} }), errdefs.IsInvalidArgument},
		"ambient capabilities": {asked(old, func(_ config, s security) {
			s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"CHOWN"}}
		}), errdefs.IsInvalidArgument},
		"unified on cgroup v1":         {asked(old, func(c config, _ security) { c.Linux.Resources.Unified = map[string]string{"memory.high": "1"} }), errdefs.IsInvalidArgument},
		"a unified path":               {asked(recent, func(c config, _ security) { c.Linux.Resources.Unified = map[string]string{"../memory.high": "1"} }), errdefs.IsInvalidArgument},
		"CDI without an Engine for it": {asked(old, func(c config, _ security) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v/gpu=0"}} }), errdefs.IsFailedPrecondition},
		"a Localhost profile without a name": {asked(old, func(_ config, s security) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost}
		}), errdefs.IsInvalidArgument},
		"AppArmor without AppArmor": {asked(old, func(_ config, s security) {
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "p"}
		}), errdefs.IsInvalidArgument},
		"fields for Windows": {asked(old, func(c config, _ security) {
			c.Windows = &runtimeapi.WindowsContainerConfig{SecurityContext: &runtimeapi.WindowsContainerSecurityContext{RunAsUsername: "u"}}
		}), errdefs.IsInvalidArgument},
		"an image for a handler that there is not": {asked(old, func(c config, _ security) { c.Image.RuntimeHandler = "kata" }), errdefs.IsInvalidArgument},
		"the node's network in a pod with its own": {asked(old, func(_ config, s security) { s.NamespaceOptions.Network = modeNode }), errdefs.IsInvalidArgument},
		"a pid mode that there is not":             {asked(old, func(_ config, s security) { s.NamespaceOptions.Pid = 9 }), errdefs.IsInvalidArgument},
		"a policy that there is not":               {asked(old, func(_ config, s security) { s.SupplementalGroupsPolicy = 9 }), errdefs.IsInvalidArgument},
		"id mappings in the node's user namespace": {asked(old, func(_ config, s security) {
			s.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: modeNode, Uids: []*runtimeapi.IDMapping{{Length: 1}}}
		}), errdefs.IsInvalidArgument},
		"a profile of a type that there is not": {asked(old, func(_ config, s security) { s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: 9} }), errdefs.IsInvalidArgument},
		"a file for a profile that has none": {asked(old, func(_ config, s security) {
			s.Seccomp = &runtimeapi.SecurityProfile{LocalhostRef: "/p.json"}
		}), errdefs.IsInvalidArgument},
		"a device without a path": {asked(old, func(c config, _ security) { c.Devices = []*runtimeapi.Device{{HostPath: "/dev/a"}} }), errdefs.IsInvalidArgument},
		"a permission that there is not": {asked(old, func(c config, _ security) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/a", ContainerPath: "/a", Permissions: "x"}}
		}), errdefs.IsInvalidArgument},
		"swap without memory": {asked(old, func(c config, _ security) { c.Linux.Resources.MemorySwapLimitInBytes = 1 << 30 }), errdefs.IsInvalidArgument},
		"less swap than memory, which it includes": {asked(old, func(c config, _ security) {
			c.Linux.Resources.MemoryLimitInBytes, c.Linux.Resources.MemorySwapLimitInBytes = 1<<30, 1<<20
		}), errdefs.IsInvalidArgument},
		"a score that there is not": {asked(old, func(c config, _ security) { c.Linux.Resources.OomScoreAdj = 1001 }), errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Container(tt.ask); !tt.kind(err) {
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
	unsaid := func(source string) *mount.Mount {
		return &mount.Mount{Type: mount.TypeBind, Source: source, Target: "/d", BindOptions: &mount.BindOptions{}}
	}
	for name, tt := range map[string]struct {
		can  engine.Features
		in   *runtimeapi.Mount
		want *mount.Mount    // nil: refused, or staged
		tree *premount.Mount // nil: refused, or not staged
	}{
		"private":                            {old, &runtimeapi.Mount{HostPath: "/data", Propagation: private}, bindOf(&mount.BindOptions{Propagation: "rprivate"}, false), nil},
		"from the host":                      {old, &runtimeapi.Mount{HostPath: "/data", Propagation: slave}, bindOf(&mount.BindOptions{Propagation: "rslave"}, false), nil},
		"both ways":                          {old, &runtimeapi.Mount{HostPath: "/data", Propagation: shared}, bindOf(&mount.BindOptions{Propagation: "rshared"}, false), nil},
		"above Docker's own data":            {old, &runtimeapi.Mount{HostPath: "/var/lib"}, unsaid("/var/lib"), nil},
		"Docker's own data":                  {old, &runtimeapi.Mount{HostPath: "/var/lib/docker"}, unsaid("/var/lib/docker"), nil},
		"within Docker's own data":           {old, &runtimeapi.Mount{HostPath: "/var/lib/docker/volumes"}, unsaid("/var/lib/docker/volumes"), nil},
		"a path that begins as Docker's own": {old, &runtimeapi.Mount{HostPath: "/var/lib/docker2/x"}, unsaid("/var/lib/docker2/x"), nil},
		"a path that Docker's own begins as": {old, &runtimeapi.Mount{HostPath: "/var/lib/dock"}, unsaid("/var/lib/dock"), nil},
		"read-only, not deep, on 20.10":      {old, &runtimeapi.Mount{HostPath: "/data", Readonly: true}, bindOf(&mount.BindOptions{Propagation: "rprivate"}, true), nil},
		"read-only, not deep, from 25 on": {recent, &runtimeapi.Mount{HostPath: "/data", Readonly: true},
			bindOf(&mount.BindOptions{Propagation: "rprivate", ReadOnlyNonRecursive: true}, true), nil},
		"read-only and deep": {recent, &runtimeapi.Mount{HostPath: "/data", Readonly: true, RecursiveReadOnly: true},
			bindOf(&mount.BindOptions{Propagation: "rprivate", ReadOnlyForceRecursive: true}, true), nil},
		"deep where it cannot be":   {old, &runtimeapi.Mount{HostPath: "/data", Readonly: true, RecursiveReadOnly: true}, nil, nil},
		"deep but not read-only":    {recent, &runtimeapi.Mount{HostPath: "/data", RecursiveReadOnly: true}, nil, nil},
		"deep but not private":      {recent, &runtimeapi.Mount{HostPath: "/data", Readonly: true, RecursiveReadOnly: true, Propagation: slave}, nil, nil},
		"with id mappings":          {old, &runtimeapi.Mount{HostPath: "/data", UidMappings: []*runtimeapi.IDMapping{{Length: 1}}}, nil, nil},
		"an image with id mappings": {recent, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}, GidMappings: []*runtimeapi.IDMapping{{Length: 1}}}, nil, nil},
		"a sub-path of no image":    {recent, &runtimeapi.Mount{HostPath: "/data", ImageSubPath: "a"}, nil, nil},
		"a relative source":         {old, &runtimeapi.Mount{HostPath: "data"}, nil, nil},
		"no option of a mount":      {recent, &runtimeapi.Mount{HostPath: "/data", MountOptions: []string{"size=1"}}, nil, nil},
		"options on an old kernel":  {old, &runtimeapi.Mount{HostPath: "/data", MountOptions: []string{"noexec"}}, nil, nil},
		"options": {recent, &runtimeapi.Mount{HostPath: "/data/", MountOptions: []string{"noexec"}}, nil,
			&premount.Mount{Source: "/data", Options: []string{"noexec"}}},
		"options, read-only": {recent, &runtimeapi.Mount{HostPath: "/data", MountOptions: []string{"nosuid"}, Readonly: true, Propagation: slave}, nil,
			&premount.Mount{Source: "/data", Options: []string{"nosuid", "ro"}, Propagation: premount.Slave}},
		"an option that gives": {recent, &runtimeapi.Mount{HostPath: "/data", MountOptions: []string{"exec"}}, nil, nil},
		"deep on an old Engine": {staging, &runtimeapi.Mount{HostPath: "/var/lib", Readonly: true, RecursiveReadOnly: true}, nil,
			&premount.Mount{Source: "/var/lib", Options: []string{"rro"}}},
		"options, deep": {recent, &runtimeapi.Mount{HostPath: "/data", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"nodev"}}, nil,
			&premount.Mount{Source: "/data", Options: []string{"nodev", "rro"}}},
		"an image, staged": {staging, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}, ImageSubPath: "a/b"}, nil,
			&premount.Mount{Layers: []string{"/l/2", "/l/1"}, SubPath: "a/b"}},
		"an image, no layers known": {staging, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "other:1"}}, nil, nil},
		"an image with options":     {recent, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}, MountOptions: []string{"noexec"}}, nil, nil},
		"an image": {recent, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}, ImageSubPath: "a/b"}, &mount.Mount{
			Type: mount.TypeImage, Source: "sha256:f", Target: "/d", ReadOnly: true, ImageOptions: &mount.ImageOptions{Subpath: "a/b"},
		}, nil},
		"an image on an old Engine":  {old, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}}, nil, nil},
		"an image to write to":       {recent, &runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: "files:1"}}, nil, nil},
		"a sub-path out of an image": {recent, &runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}, ImageSubPath: "../x"}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			tt.in.ContainerPath = "/d"
			ask := asked(tt.can, func(c config, _ security) { c.Mounts = []*runtimeapi.Mount{tt.in} })
			ask.Files, ask.Stage, ask.Stages = nil, stage, premount.New("/stages")
			ask.Volumes = map[string]Volume{"files:1": {ID: "sha256:f", Layers: []string{"/l/2", "/l/1"}}, "other:1": {ID: "sha256:o"}}
			got, err := Container(ask)
			if tt.tree != nil && err == nil {
				tt.want = bindOf(&mount.BindOptions{Propagation: propagations[tt.in.Propagation].engine}, false)
				tt.want.Source = "/stages/" + stage.String() + "/0"
				if diff := cmp.Diff([]premount.Mount{*tt.tree}, got.Staged); diff != "" || recorded(got).Stage != stage {
					t.Errorf("staged (-want +got):\n%s", diff)
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

// The API server compares the words of mountPath only, so charts with extra mounts have two
// at one place; runtimes that mount in order have the later one on top.
func TestOfTwoMountsAtOnePathTheLaterOneWins(t *testing.T) {
	image := &runtimeapi.ImageSpec{Image: "files:1"}
	for name, tt := range map[string]struct {
		in     []*runtimeapi.Mount
		want   []string // source:target of the container's own, in order
		staged []string // options of what is staged
	}{
		"the same words":     {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/d"}, {HostPath: "/b", ContainerPath: "/d"}}, []string{"/b:/d"}, nil},
		"a slash at the end": {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/d"}, {HostPath: "/b", ContainerPath: "/d/"}}, []string{"/b:/d"}, nil},
		"other spellings": {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/x/../d"}, {HostPath: "/b", ContainerPath: "d"},
			{HostPath: "/c", ContainerPath: "//d"}, {HostPath: "/e", ContainerPath: "/./d/."}, {HostPath: "/f", ContainerPath: "/../d"}}, []string{"/f:/d"}, nil},
		"with another between": {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/d"}, {HostPath: "/b", ContainerPath: "/d/e"}, {HostPath: "/c", ContainerPath: "/d/"}},
			[]string{"/b:/d/e", "/c:/d"}, nil},
		"a file of the pod": {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/etc/hosts"}, {HostPath: "/b", ContainerPath: "/etc/hosts"}}, []string{"/b:/etc/hosts"}, nil},
		"staged, then not": {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/d", MountOptions: []string{"noexec"}}, {HostPath: "/b", ContainerPath: "/d"},
			{HostPath: "/c", ContainerPath: "/e", MountOptions: []string{"nodev"}}}, []string{"/b:/d", "/stages/" + stage.String() + "/0:/e"}, []string{"nodev"}},
		"not, then staged": {[]*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/d"}, {HostPath: "/b", ContainerPath: "/d", MountOptions: []string{"noexec"}}},
			[]string{"/stages/" + stage.String() + "/0:/d"}, []string{"noexec"}},
		"of an image, which is then mounted once": {[]*runtimeapi.Mount{{ContainerPath: "/d", Readonly: true, Image: image}, {ContainerPath: "/d/", Readonly: true, Image: image}},
			[]string{"sha256:f:/d"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			ask := asked(recent, func(c config, _ security) { c.Mounts = tt.in })
			ask.Stage, ask.Stages = stage, premount.New("/stages")
			got, err := Container(ask)
			if err != nil {
				t.Fatal(err)
			}
			var have, staged []string
			targets := map[string]bool{}
			for _, m := range got.Host.Mounts {
				if targets[m.Target] {
					t.Errorf("Docker is asked for two mounts at %s", m.Target)
				}
				targets[m.Target] = true
				if !strings.HasPrefix(m.Source, "/run/p/") {
					have = append(have, m.Source+":"+m.Target)
				}
			}
			for _, s := range got.Staged {
				staged = append(staged, s.Options...)
			}
			if !slices.Equal(have, tt.want) || !slices.Equal(staged, tt.staged) {
				t.Errorf("mounts %q, staged %q; want %q, %q", have, staged, tt.want, tt.staged)
			}
		})
	}
	bad := asked(old, func(c config, _ security) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: "relative", ContainerPath: "/d"}, {HostPath: "/b", ContainerPath: "/d"}}
	})
	if _, err := Container(bad); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a mount that is not valid below another one: %v", err)
	}
}

// Docker stops containers by itself when it is shut down, systemd when the node is.
func TestGracePeriodAtShutdown(t *testing.T) {
	grace := func(can engine.Features, value string) ContainerParams {
		return asked(can, func(c config, _ security) { c.Annotations = map[string]string{graceAnnotation: value} })
	}
	const property = "org.systemd.property.TimeoutStopUSec"
	noAnnotations := recent
	noAnnotations.Annotations = false
	for name, tt := range map[string]struct {
		ask   ContainerParams
		want  int // seconds; -1 for Docker's default
		scope string
	}{
		"none":                         {asked(recent), -1, ""},
		"of the pod":                   {grace(recent, "60"), 60, "uint64 60000000"},
		"zero":                         {grace(recent, "0"), 0, "uint64 1000000"},
		"with cgroupfs":                {grace(old, "60"), 60, ""},
		"with Docker before API 1.43":  {grace(noAnnotations, "60"), 60, ""},
		"longer than can be reckoned":  {grace(recent, "9223372036854775807"), maxGrace, "uint64 86400000000"},
		"longer than a number can say": {grace(recent, "92233720368547758070"), maxGrace, "uint64 86400000000"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Container(tt.ask)
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

func TestFilesThatNothingBoundsAreReadOnly(t *testing.T) {
	ask := asked(old)
	ask.Files[1].ReadOnly = true
	got, err := Container(ask)
	if err != nil {
		t.Fatal(err)
	}
	if m := got.Host.Mounts; m[0].ReadOnly || !m[1].ReadOnly {
		t.Errorf("%+v", m)
	}
}

func TestKnobs(t *testing.T) {
	little := func(swap int64, unified map[string]string) *runtimeapi.LinuxContainerResources {
		return &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 4 << 20, MemorySwapLimitInBytes: swap, Unified: unified}
	}
	limitV1 := func(swap string) []CgroupSetting {
		return []CgroupSetting{
			{Controller: "memory", File: "memory.memsw.limit_in_bytes", Value: "-1", Optional: true, AfterStart: true},
			{Controller: "memory", File: "memory.limit_in_bytes", Value: "4194304", AfterStart: true},
			{Controller: "memory", File: "memory.memsw.limit_in_bytes", Value: swap, Optional: true, AfterStart: true},
		}
	}
	limitV2 := func(swap string) []CgroupSetting {
		return []CgroupSetting{
			{File: "memory.max", Value: "4194304", AfterStart: true},
			{File: "memory.swap.max", Value: swap, Optional: true, AfterStart: true},
		}
	}
	enough := func(swap int64) *runtimeapi.LinuxContainerResources {
		return &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: swap}
	}
	bySystemd, byItself := recent, recent
	bySystemd.CgroupDriver, byItself.CgroupDriver = "systemd", "cgroupfs"
	pages := &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB", Limit: 1 << 30}}}
	for name, tt := range map[string]struct {
		in   *runtimeapi.LinuxContainerResources
		can  engine.Features
		want []CgroupSetting
	}{
		"little memory, v1":            {little(0, nil), old, limitV1("4194304")},
		"little memory, some swap, v1": {little(5<<20, nil), old, limitV1("5242880")},
		"little memory, any swap, v1":  {little(-1, nil), old, limitV1("-1")},
		"little memory, v2":            {little(0, nil), recent, limitV2("0")},
		"little memory, some swap, v2": {little(5<<20, nil), recent, limitV2("1048576")},
		"little memory, any swap, v2":  {little(-1, nil), recent, limitV2("max")},
		"little memory, swap in so many words": {little(0, map[string]string{"memory.swap.max": "7"}), recent, []CgroupSetting{
			{File: "memory.max", Value: "4194304", AfterStart: true}, {File: "memory.swap.max", Value: "7"},
		}},
		"pages, v1": {pages, old, []CgroupSetting{
			{Controller: "hugetlb", File: "hugetlb.2MB.limit_in_bytes", Value: "0", Optional: true},
			{Controller: "hugetlb", File: "hugetlb.2MB.rsvd.limit_in_bytes", Value: "0", Optional: true},
			{Controller: "hugetlb", File: "hugetlb.1GB.limit_in_bytes", Value: "1073741824"},
			{Controller: "hugetlb", File: "hugetlb.1GB.rsvd.limit_in_bytes", Value: "1073741824", Optional: true},
		}},
		"pages, v2": {pages, recent, []CgroupSetting{
			{File: "hugetlb.2MB.max", Value: "0", Optional: true}, {File: "hugetlb.2MB.rsvd.max", Value: "0", Optional: true},
			{File: "hugetlb.1GB.max", Value: "1073741824"}, {File: "hugetlb.1GB.rsvd.max", Value: "1073741824", Optional: true},
		}},
		"no swap, with cgroupfs": {enough(0), byItself, nil},
		"no swap, with systemd":  {enough(0), bySystemd, []CgroupSetting{{File: "memory.swap.max", Value: "0", Optional: true}}},
		"some swap":              {enough(96 << 20), bySystemd, nil},
		"any swap":               {enough(-1), bySystemd, nil},
		"unified": {&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.oom.group": "1", "memory.high": "5"}}, recent, []CgroupSetting{
			{File: "memory.high", Value: "5"}, {File: "memory.oom.group", Value: "1"},
		}},
	} {
		got, err := CgroupSettings(tt.in, tt.can)
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}

func TestEverySignalHasAName(t *testing.T) {
	for n, name := range runtimeapi.Signal_name {
		got, err := SignalName(runtimeapi.Signal(n))
		if err != nil || (got == "") != (name == "SIGNAL_RUNTIME_DEFAULT") || strings.Contains(got, "PLUS") || strings.Contains(got, "MINUS") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := SignalName(9999); !errdefs.IsInvalidArgument(err) {
		t.Errorf("9999: %v", err)
	}
}

// The Engine takes no two mounts of an image that is asked for in the same words.
func TestOneImageMountedTwice(t *testing.T) {
	const id = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	ask := asked(recent, func(c config, _ security) {
		for _, target := range []string{"/a", "/b", "/c"} {
			c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: target, Readonly: true, Image: &runtimeapi.ImageSpec{Image: "files:1"}})
		}
	})
	ask.Volumes = map[string]Volume{"files:1": {ID: id}}
	got, err := Container(ask)
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
	if _, err := anotherName(id, 60); err == nil {
		t.Error("an ID of five digits would do")
	}
}
