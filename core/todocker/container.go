package todocker

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/strslice"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/premount"
)

// ContainerParams is what is asked of a container, and what it runs in.
type ContainerParams struct {
	Pod    *runtimeapi.PodSandboxConfig
	Config *runtimeapi.ContainerConfig

	SandboxID    string
	SandboxLabel string // of the sandbox's process, on a node with SELinux
	TargetID     string // of the container whose processes it sees, if it asks for that
	Runtime      string // of the sandbox, in the Engine's words
	CgroupParent string // of the sandbox, in the Engine's words

	ImageID    string            // resolved from Config.Image
	ImageName  string            // as the user wrote it
	ImageRef   string            // with the repository's digest if there is one
	Volumes    map[string]Volume // images that are mounted, by the words they are asked for with
	HasCommand bool              // whether the image has an entrypoint or command
	ImageUser  string            // whom the image runs as if nobody says otherwise
	Accounts   Accounts          // of the image

	Files   []File         // of the pod, mounted where the container brings none of its own
	Stage   names.Premount // a name for its staged mounts, if it needs some
	Stages  Premounts
	Seccomp string // content of the profile that SeccompFile names
	Log     container.LogConfig
	Can     engine.Features
}

// Premounts tells where staged mounts will be.
type Premounts interface {
	// Path is where mount i of those called name will be.
	Path(name names.Premount, i int) string
}

// A Volume is an image of which a container mounts the files.
type Volume struct {
	ID  string
	Ref string // with the repository's digest if there is one
	// Layers are where the Engine keeps the files, the topmost first; none if
	// it does not tell.
	Layers []string
}

// A File is one of a pod's own files and where its containers find it.
type File struct {
	Source, Target string
	// ReadOnly is set where nothing bounds what is written to the file.
	ReadOnly bool
}

// Container orders a container of a pod.
func Container(ask ContainerParams) (Spec, error) {
	c, m, pod := ask.Config, ask.Config.GetMetadata(), ask.Pod.GetMetadata()
	if m.GetName() == "" {
		return Spec{}, invalid("container without a name in its metadata")
	}
	if err := noWindows(c.GetWindows()); err != nil {
		return Spec{}, err
	}
	if _, err := Runtime(c.GetImage().GetRuntimeHandler(), ask.Can); err != nil {
		return Spec{}, err
	}
	sc := c.GetLinux().GetSecurityContext()
	privileged := sc.GetPrivileged()
	if privileged && !ask.Pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return Spec{}, invalid("privileged container in a sandbox that is not")
	}
	logPath, err := LogPath(ask.Pod, c)
	if err != nil {
		return Spec{}, err
	}
	env, err := environment(c.GetEnvs())
	if err != nil {
		return Spec{}, err
	}
	if len(c.GetCommand()) == 0 && len(c.GetArgs()) == 0 && !ask.HasCommand {
		return Spec{}, invalid("no command specified: neither by the container nor by image %s", ask.ImageName)
	}
	signal, err := SignalName(c.GetStopSignal())
	if err != nil {
		return Spec{}, err
	}
	grace, err := stopTimeout(c.GetAnnotations())
	if err != nil {
		return Spec{}, err
	}
	config, err := containerJSON(c, ask.Volumes)
	if err != nil {
		return Spec{}, err
	}
	who, err := identify(sc, ask.ImageUser, ask.Accounts)
	if err != nil {
		return Spec{}, err
	}
	told, err := protojson.Marshal(who.told)
	if err != nil {
		return Spec{}, err
	}
	host, staged, err := containerHost(ask)
	if err != nil {
		return Spec{}, err
	}
	host.GroupAdd = who.groups
	host.Annotations = scopeProperties(grace, ask.Can)
	var stage names.Premount
	if len(staged) > 0 {
		stage = ask.Stage
	}

	return Spec{
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
			StopTimeout: grace,
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
				User:        string(told),
				Stage:       stage,
			}.Encode(),
		},
		Host:   host,
		Staged: staged,
	}, nil
}

// containerHost is the part of an order that concerns the node, and the mounts
// that it takes to be staged.
func containerHost(ask ContainerParams) (*container.HostConfig, []premount.Mount, error) {
	c, can := ask.Config, ask.Can
	sc := c.GetLinux().GetSecurityContext()
	privileged := sc.GetPrivileged()
	ns := sc.GetNamespaceOptions()
	if err := namespaces(ns, false); err != nil {
		return nil, nil, err
	}
	if ns.GetNetwork() == runtimeapi.NamespaceMode_NODE && !HostNetwork(ask.Pod) {
		return nil, nil, invalid("a container on the node's network in a pod that has its own")
	}
	add, drop, err := capabilities(sc.GetCapabilities())
	if err != nil {
		return nil, nil, err
	}
	options, err := securityOptions(sc, privileged, can, ask.Seccomp, ask.SandboxLabel)
	if err != nil {
		return nil, nil, err
	}
	if sc.GetNoNewPrivs() {
		options = append(options, "no-new-privileges=true")
	} else {
		options = append(options, "no-new-privileges=false")
	}
	res, err := resources(c.GetLinux().GetResources(), can)
	if err != nil {
		return nil, nil, err
	}
	if _, err := CgroupSettings(c.GetLinux().GetResources(), can); err != nil {
		return nil, nil, err
	}
	res.CgroupParent = ask.CgroupParent
	binds, staged, err := bindings(ask)
	if err != nil {
		return nil, nil, err
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
		Mounts:         binds,
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
		host.PidMode = container.PidMode("container:" + ask.TargetID)
	case runtimeapi.NamespaceMode_CONTAINER:
	}
	switch ns.GetIpc() {
	case runtimeapi.NamespaceMode_NODE:
		host.IpcMode = hostMode
	case runtimeapi.NamespaceMode_CONTAINER:
		host.IpcMode, host.ShmSize = container.IPCModePrivate, shmSize
	default:
	}
	if HostNetwork(ask.Pod) {
		host.UTSMode = hostMode
	}
	if !privileged {
		// A privileged container has every path. Lists would win over that, and
		// the kubelet sends its default ones always.
		host.MaskedPaths, host.ReadonlyPaths = list(sc.GetMaskedPaths()), list(sc.GetReadonlyPaths())
	}
	if host.Devices, err = devices(c.GetDevices(), privileged); err != nil {
		return nil, nil, err
	}
	if host.DeviceRequests, err = cdiDevices(c.GetCDIDevices(), can); err != nil {
		return nil, nil, err
	}
	return host, staged, nil
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

// graceAnnotation is where the kubelet tells a pod's terminationGracePeriodSeconds
// (pkg/kubelet/kuberuntime/labels.go podTerminationGracePeriodLabel).
const graceAnnotation = "io.kubernetes.pod.terminationGracePeriod"

// maxGrace bounds a grace period, in seconds. The Engine and systemd multiply it, and a
// shutdown of the node waits for it, for as long as reboot.target allows (30 min) or longer.
const maxGrace = 24 * 60 * 60

// stopTimeout returns how many seconds the Engine is to wait before it kills the container
// when it stops it by itself, as it does when it is shut down; nil for the Engine's default.
// Stops that the kubelet asks for have a timeout of their own.
func stopTimeout(annotations map[string]string) (*int, error) {
	text, ok := annotations[graceAnnotation]
	if !ok {
		return nil, nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) || seconds < 0 {
		return nil, invalid("annotation %s %q: must be a number of seconds, 0 or more", graceAnnotation, text)
	}
	grace := int(min(seconds, maxGrace))
	return &grace, nil
}

// scopeProperties returns the annotations for the low-level runtime that give a container's
// systemd scope its grace period: without one systemd kills what is in the scope 90 s after
// a shutdown of the node has begun (DefaultTimeoutStopSec=). runc and crun pass
// org.systemd.property.* to systemd (runc docs/systemd.md).
func scopeProperties(grace *int, can engine.Features) map[string]string {
	if grace == nil || can.CgroupDriver != "systemd" || !can.Annotations {
		return nil
	}
	seconds := max(*grace, 1) // 0 is no limit to systemd
	return map[string]string{"org.systemd.property.TimeoutStopUSec": fmt.Sprintf("uint64 %d000000", seconds)}
}
