package todocker

import (
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/strslice"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/labels"
	"berth/core/names"
)

// ContainerAsk is what is asked of a container, and what it runs in.
type ContainerAsk struct {
	Pod    *runtimeapi.PodSandboxConfig
	Config *runtimeapi.ContainerConfig

	SandboxID    string
	Runtime      string // of the sandbox, in the Engine's words
	CgroupParent string // of the sandbox, in the Engine's words

	ImageID    string            // resolved from Config.Image
	ImageName  string            // as the user wrote it
	ImageRef   string            // with the repository's digest if there is one
	ImageIDs   map[string]string // IDs of images that are mounted, by the words they are asked for with
	HasCommand bool              // whether the image has an entrypoint or command
	ImageUser  string            // whom the image runs as if nobody says otherwise
	Accounts   Accounts          // of the image

	Files   []File // of the pod, mounted where the container brings none of its own
	Seccomp string // content of the profile that SeccompFile names
	Log     container.LogConfig
	Can     engine.Record
}

// A File is one of a pod's own files and where its containers find it.
type File struct {
	Source, Target string
}

// Container orders a container of a pod.
func Container(ask ContainerAsk) (Order, error) {
	c, m, pod := ask.Config, ask.Config.GetMetadata(), ask.Pod.GetMetadata()
	if m.GetName() == "" {
		return Order{}, invalid("container without a name in its metadata")
	}
	sc := c.GetLinux().GetSecurityContext()
	privileged := sc.GetPrivileged()
	if privileged && !ask.Pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return Order{}, invalid("privileged container in a sandbox that is not")
	}
	logPath, err := LogPath(ask.Pod, c)
	if err != nil {
		return Order{}, err
	}
	env, err := environment(c.GetEnvs())
	if err != nil {
		return Order{}, err
	}
	if len(c.GetCommand()) == 0 && len(c.GetArgs()) == 0 && !ask.HasCommand {
		return Order{}, invalid("no command specified: neither by the container nor by image %s", ask.ImageName)
	}
	signal, err := SignalName(c.GetStopSignal())
	if err != nil {
		return Order{}, err
	}
	config, err := containerJSON(c)
	if err != nil {
		return Order{}, err
	}
	who, err := identify(sc, ask.ImageUser, ask.Accounts)
	if err != nil {
		return Order{}, err
	}
	told := ""
	if who.told != nil {
		text, err := protojson.Marshal(who.told)
		if err != nil {
			return Order{}, err
		}
		told = string(text)
	}
	host, err := containerHost(ask)
	if err != nil {
		return Order{}, err
	}
	host.GroupAdd = who.groups

	return Order{
		Name: names.Name{Container: m.GetName(), Pod: pod.GetName(), Namespace: pod.GetNamespace(), UID: pod.GetUid(), Attempt: m.GetAttempt()},
		Config: &container.Config{
			Image:       ask.ImageID,
			Entrypoint:  strslice.StrSlice(c.GetCommand()),
			Cmd:         strslice.StrSlice(c.GetArgs()),
			Env:         env,
			WorkingDir:  c.GetWorkingDir(),
			User:        who.user,
			OpenStdin:   c.GetStdin(),
			StdinOnce:   c.GetStdinOnce(),
			Tty:         c.GetTty(),
			StopSignal:  signal,
			Healthcheck: noHealthcheck(),
			Labels: labels.Set{
				Kind:        labels.Container,
				SandboxID:   ask.SandboxID,
				LogPath:     logPath,
				Labels:      c.GetLabels(),
				Annotations: c.GetAnnotations(),
				Config:      config,
				Image:       ask.ImageName,
				ImageRef:    ask.ImageRef,
				User:        told,
			}.Encode(),
		},
		Host: host,
	}, nil
}

// containerHost is the part of an order that concerns the node.
func containerHost(ask ContainerAsk) (*container.HostConfig, error) {
	c, can := ask.Config, ask.Can
	sc := c.GetLinux().GetSecurityContext()
	privileged := sc.GetPrivileged()
	ns := sc.GetNamespaceOptions()
	if err := namespaces(ns, false); err != nil {
		return nil, err
	}
	add, drop, err := capabilities(sc.GetCapabilities())
	if err != nil {
		return nil, err
	}
	options, err := securityOptions(sc, privileged, can, ask.Seccomp)
	if err != nil {
		return nil, err
	}
	if sc.GetNoNewPrivs() {
		options = append(options, "no-new-privileges=true")
	} else {
		options = append(options, "no-new-privileges=false")
	}
	res, err := resources(c.GetLinux().GetResources(), can)
	if err != nil {
		return nil, err
	}
	if _, err := Knobs(c.GetLinux().GetResources(), can); err != nil {
		return nil, err
	}
	res.CgroupParent = ask.CgroupParent
	mounts, err := mounts(ask)
	if err != nil {
		return nil, err
	}
	host := &container.HostConfig{
		NetworkMode:    network("container:" + ask.SandboxID),
		IpcMode:        container.IpcMode("container:" + ask.SandboxID),
		CgroupnsMode:   cgroupns(can, privileged),
		Runtime:        ask.Runtime,
		RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
		LogConfig:      ask.Log,
		OomScoreAdj:    max(int(c.GetLinux().GetResources().GetOomScoreAdj()), can.LowestOOMScore),
		Privileged:     privileged,
		SecurityOpt:    options,
		CapAdd:         add,
		CapDrop:        drop,
		ReadonlyRootfs: sc.GetReadonlyRootfs(),
		Mounts:         mounts,
		Resources:      res,
		Init:           new(bool),
		UsernsMode:     userns(can),
	}
	switch ns.GetPid() {
	case runtimeapi.NamespaceMode_POD:
		host.PidMode = container.PidMode("container:" + ask.SandboxID)
	case runtimeapi.NamespaceMode_NODE:
		host.PidMode = hostMode
	case runtimeapi.NamespaceMode_TARGET:
		host.PidMode = container.PidMode("container:" + ns.GetTargetId())
	case runtimeapi.NamespaceMode_CONTAINER:
	}
	switch ns.GetIpc() {
	case runtimeapi.NamespaceMode_NODE:
		host.IpcMode = hostMode
	case runtimeapi.NamespaceMode_CONTAINER:
		host.IpcMode = container.IPCModePrivate
	default:
	}
	if HostNetwork(ask.Pod) {
		host.UTSMode = hostMode
	}
	if privileged {
		// It has every device, capability and path already. Lists would win
		// over that, and the kubelet sends its default ones always.
		return host, nil
	}
	host.MaskedPaths = list(sc.GetMaskedPaths())
	host.ReadonlyPaths = list(sc.GetReadonlyPaths())
	for _, d := range c.GetDevices() {
		permissions := d.GetPermissions()
		if permissions == "" {
			permissions = "rwm"
		}
		host.Devices = append(host.Devices, container.DeviceMapping{
			PathOnHost: d.GetHostPath(), PathInContainer: d.GetContainerPath(), CgroupPermissions: permissions,
		})
	}
	if len(c.GetCDIDevices()) > 0 {
		if !can.CDI {
			return nil, failed("CDI devices need Docker 28.2 or newer, or features.cdi in daemon.json: this one has none")
		}
		request := container.DeviceRequest{Driver: "cdi"}
		for _, d := range c.GetCDIDevices() {
			request.DeviceIDs = append(request.DeviceIDs, d.GetName())
		}
		host.DeviceRequests = append(host.DeviceRequests, request)
	}
	return host, nil
}

// list makes an empty list an empty one: the Engine reads nil as its defaults.
func list(paths []string) []string {
	if paths == nil {
		return []string{}
	}
	return paths
}

// LogPath returns where the kubelet looks for the log of a container, or ""
// if nowhere.
func LogPath(pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (string, error) {
	dir, file := pod.GetLogDirectory(), c.GetLogPath()
	if dir == "" || file == "" {
		return "", nil
	}
	if path.IsAbs(file) || slices.Contains(strings.Split(file, "/"), "..") {
		return "", invalid("log_path %q leads out of the log directory", file)
	}
	return path.Join(dir, file), nil
}

// environment returns the variables as the Engine takes them. Their values are
// bytes to the CRI, but text to the Engine's JSON.
func environment(vars []*runtimeapi.KeyValue) ([]string, error) {
	var out []string
	for _, v := range vars {
		if !utf8.Valid(v.GetValue()) {
			return nil, invalid("environment variable %q is not UTF-8, which Docker cannot carry", v.GetKey())
		}
		if v.GetKey() == "" || strings.ContainsAny(v.GetKey(), "=\x00") || slices.Contains(v.GetValue(), 0) {
			return nil, invalid("environment variable %q cannot be set", v.GetKey())
		}
		out = append(out, v.GetKey()+"="+string(v.GetValue()))
	}
	return out, nil
}

// mounts orders the container's own mounts, then the pod's files.
func mounts(ask ContainerAsk) ([]mount.Mount, error) {
	var out []mount.Mount
	taken := map[string]bool{}
	for _, m := range ask.Config.GetMounts() {
		target := m.GetContainerPath()
		if target == "" {
			return nil, invalid("mount of %q without a container_path", m.GetHostPath())
		}
		if !path.IsAbs(target) {
			target = "/" + target // as other runtimes have it
		}
		target = path.Clean(target)
		if taken[target] {
			return nil, invalid("two mounts at %q", target)
		}
		taken[target] = true
		var order mount.Mount
		var err error
		if m.GetImage().GetImage() != "" {
			order, err = imageMount(m, ask)
		} else {
			order, err = bind(m, ask)
		}
		if err != nil {
			return nil, err
		}
		order.Target = target
		out = append(out, order)
	}
	for _, f := range ask.Files {
		if !taken[f.Target] {
			out = append(out, mount.Mount{
				Type: mount.TypeBind, Source: f.Source, Target: f.Target,
				ReadOnly:    ask.Config.GetLinux().GetSecurityContext().GetReadonlyRootfs(),
				BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
			})
		}
	}
	return out, nil
}

// bind orders a mount of a path of the node.
func bind(m *runtimeapi.Mount, ask ContainerAsk) (mount.Mount, error) {
	if len(m.GetMountOptions()) > 0 {
		return mount.Mount{}, invalid("mount_options of %q are not supported by this version", m.GetContainerPath())
	}
	if len(m.GetUidMappings()) > 0 || len(m.GetGidMappings()) > 0 {
		return mount.Mount{}, invalid("id mappings of mount %q: Docker has no user namespaces for single pods", m.GetContainerPath())
	}
	if !path.IsAbs(m.GetHostPath()) {
		return mount.Mount{}, invalid("host_path %q of mount %q is not absolute", m.GetHostPath(), m.GetContainerPath())
	}
	out := mount.Mount{
		Type: mount.TypeBind, Source: path.Clean(m.GetHostPath()), ReadOnly: m.GetReadonly(),
		BindOptions: &mount.BindOptions{},
	}
	switch p := m.GetPropagation(); p {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		// The Engine refuses to have its own data mounted private; unsaid, it
		// chooses what it can bear.
		if !overlap(out.Source, ask.Can.RootDir) {
			out.BindOptions.Propagation = mount.PropagationRPrivate
		}
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		out.BindOptions.Propagation = mount.PropagationRSlave
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		out.BindOptions.Propagation = mount.PropagationRShared
	default:
		return mount.Mount{}, invalid("propagation %v of mount %q", p, m.GetContainerPath())
	}
	switch {
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return mount.Mount{}, invalid("mount %q is recursive_read_only but not readonly", m.GetContainerPath())
	case m.GetRecursiveReadOnly() && m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return mount.Mount{}, invalid("mount %q is recursive_read_only but not private", m.GetContainerPath())
	case m.GetRecursiveReadOnly() && !RecursiveReadOnly(ask.Runtime, ask.Can):
		return mount.Mount{}, invalid("mount %q is recursive_read_only, which this Docker, its runtime or the kernel cannot do", m.GetContainerPath())
	case m.GetRecursiveReadOnly():
		out.BindOptions.ReadOnlyForceRecursive = true
	case m.GetReadonly() && ask.Can.ReadOnlyNonRecursive:
		out.BindOptions.ReadOnlyNonRecursive = true // from 25 on the Engine would go deeper
	}
	return out, nil
}

// RecursiveReadOnly reports whether a runtime, "" for the Engine's default,
// can make a mount read-only with all below it.
func RecursiveReadOnly(runtime string, can engine.Record) bool {
	if runtime == "" {
		runtime = can.DefaultRuntime
	}
	return can.Runtimes[runtime].RecursiveReadOnly
}

// imageMount orders a mount of an image's files.
func imageMount(m *runtimeapi.Mount, ask ContainerAsk) (mount.Mount, error) {
	switch sub := m.GetImageSubPath(); {
	case !ask.Can.ImageMounts:
		return mount.Mount{}, failed("image volumes need Docker 28 or newer: mount %q", m.GetContainerPath())
	case !m.GetReadonly():
		return mount.Mount{}, invalid("image volume %q is not readonly", m.GetContainerPath())
	case m.GetHostPath() != "":
		return mount.Mount{}, invalid("mount %q is of an image and of host_path %q", m.GetContainerPath(), m.GetHostPath())
	case path.IsAbs(sub), slices.Contains(strings.Split(sub, "/"), ".."):
		return mount.Mount{}, invalid("image_sub_path %q leads out of the image", sub)
	}
	out := mount.Mount{Type: mount.TypeImage, Source: ask.ImageIDs[m.GetImage().GetImage()], ReadOnly: true}
	if sub := m.GetImageSubPath(); sub != "" {
		out.ImageOptions = &mount.ImageOptions{Subpath: sub}
	}
	return out, nil
}

// overlap reports whether one path is or contains the other.
func overlap(a, b string) bool {
	within := func(p, tree string) bool {
		return p == tree || strings.HasPrefix(p, strings.TrimSuffix(tree, "/")+"/")
	}
	return b != "" && (within(a, b) || within(b, a))
}
