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

	"berth/core/cdi"
	"berth/core/engine"
	"berth/core/identity"
	"berth/core/labels"
	"berth/core/limits"
	"berth/core/names"
	"berth/core/ociedit"
	"berth/core/podpolicy"
	"berth/core/premount"
	"berth/core/specedit"
	"berth/core/userns"
)

// ContainerParams are the parameters of Container.
type ContainerParams struct {
	Pod            *runtimeapi.PodSandboxConfig
	PodAnnotations map[string]string
	Config         *runtimeapi.ContainerConfig

	SandboxID    string
	SandboxLabel string // SELinux label of the pause process, on a node with SELinux
	TargetID     string // of the container in target_id, for the PID namespace mode TARGET
	Runtime      string // HostConfig.Runtime of the sandbox
	Handler      string // runtime handler of the sandbox
	CgroupParent string // HostConfig.CgroupParent of the sandbox
	ShimGroup    string // podpolicy.ShimGroupOf the sandbox

	Image       Image                // resolved from Config.Image
	ImageName   string               // as the user wrote it
	PasswdFiles identity.PasswdFiles // of the image
	Volumes     map[string]Image     // images to mount, by the reference in the request

	CDINames []string  // devices that the Engine resolves
	CDI      cdi.Edits // of devices that the Engine cannot resolve

	Files        []File         // of the pod, mounted where the container has no mount of its own
	PremountName names.Premount // for the container's premounts, if it needs any
	Premounts    Premounts
	Seccomp      string // content of the profile that SeccompFile returns
	Log          container.LogConfig
	Features     engine.Features
	Policy       podpolicy.Policy
	UserNS       userns.Support
	SpecFiles    specedit.Files // that the operator has for this container
	NRIPlugins   []string       // that have changed Config

	Restore      *ociedit.Restore // checkpoint that the container goes on from; nil for none
	RestoredArgs []string         // its command line, which takes the place of all others
}

// Premounts gives the paths of premounts.
type Premounts interface {
	// Path returns the path of mount number i of a container.
	Path(name names.Premount, i int) string
}

// A File is a file of a pod and its path in the pod's containers.
type File struct {
	Source, Target string
	// ReadOnly is set for a file on a file system without a size limit.
	ReadOnly bool
}

// Container translates a container of a pod.
func Container(p ContainerParams) (Spec, error) {
	if err := checkContainer(p); err != nil {
		return Spec{}, err
	}
	grace, err := gracePeriod(p.Config.GetAnnotations())
	if err != nil {
		return Spec{}, err
	}
	id, err := identity.ForContainer(p.CDI.MergeGroups(p.Config.GetLinux().GetSecurityContext()), p.Image.User, p.PasswdFiles)
	if err != nil {
		return Spec{}, err
	}
	if p.CDI, err = p.CDI.ForUser(id.Status); err != nil {
		return Spec{}, err
	}
	config, err := containerConfig(p)
	if err != nil {
		return Spec{}, err
	}
	config.User, config.StopTimeout = id.User, grace
	host, premounts, err := containerHost(p)
	if err != nil {
		return Spec{}, err
	}
	host.GroupAdd, host.Annotations = id.Groups, ociAnnotations(p, grace)
	if err := applyLimits(p, host); err != nil {
		return Spec{}, err
	}
	set, err := containerLabels(p, id)
	if err != nil {
		return Spec{}, err
	}
	if len(premounts) > 0 {
		set.Premount = p.PremountName
	}
	config.Labels = set.Encode()
	var instructions ociedit.Instructions
	if instructions, host.Runtime, err = containerInstructions(p); err != nil {
		return Spec{}, err
	}

	meta, pod := p.Config.GetMetadata(), p.Pod.GetMetadata()
	return Spec{
		Name:         names.Name{Container: meta.GetName(), Pod: pod.GetName(), Namespace: pod.GetNamespace(), UID: pod.GetUid(), Attempt: meta.GetAttempt()},
		Config:       config,
		Host:         host,
		Premounts:    premounts,
		Instructions: instructions,
	}, nil
}

// containerInstructions returns what berth's OCI runtime has to change in a container, and the HostConfig.Runtime.
func containerInstructions(p ContainerParams) (ociedit.Instructions, string, error) {
	users, err := p.UserNS.Container(p.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions(), p.Config, p.Runtime, p.Features)
	if err != nil {
		return ociedit.Instructions{}, "", err
	}
	return specedit.Container{
		Pod: p.Pod, Config: p.Config, Runtime: p.Runtime, Dir: p.UserNS.Dir, Files: p.SpecFiles, Options: p.Policy.Edits(p.Handler), CDI: p.CDI, UserNS: users, Restore: p.Restore,
	}.Instructions(p.Features)
}

// checkContainer validates the fields of a container that are not translated one by one.
func checkContainer(p ContainerParams) error {
	c := p.Config
	if c.GetMetadata().GetName() == "" {
		return invalid("metadata of a container: name must be set")
	}
	if err := checkNoWindows(c.GetWindows()); err != nil {
		return err
	}
	if _, err := p.Policy.Runtime(c.GetImage().GetRuntimeHandler(), p.Features); err != nil {
		return err
	}
	sc := c.GetLinux().GetSecurityContext()
	if sc.GetPrivileged() && !p.Pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return invalid("privileged container: not allowed in a sandbox that is not privileged")
	}
	if len(c.GetCommand()) == 0 && len(c.GetArgs()) == 0 && !p.Image.HasCommand && p.Restore == nil {
		return invalid("no command specified: neither by the container nor by image %s", p.ImageName)
	}
	ns := sc.GetNamespaceOptions()
	if err := checkNamespaces(ns, false); err != nil {
		return err
	}
	if ns.GetNetwork() == runtimeapi.NamespaceMode_NODE && !HostNetwork(p.Pod) {
		return invalid("network namespace mode NODE: not allowed in a pod with a network of its own")
	}
	return nil
}

// containerConfig returns the Config of a container, but for its user, StopTimeout and
// labels.
func containerConfig(p ContainerParams) (*container.Config, error) {
	c := p.Config
	env, err := environment(p.CDI.MergeEnv(c.GetEnvs()))
	if err != nil {
		return nil, err
	}
	signal, err := stopSignal(c.GetStopSignal())
	if err != nil {
		return nil, err
	}
	entrypoint, cmd := c.GetCommand(), c.GetArgs()
	if p.Restore != nil {
		entrypoint, cmd = p.RestoredArgs, nil
	}
	return &container.Config{
		Image:       p.Image.ID,
		Entrypoint:  strslice.StrSlice(entrypoint),
		Cmd:         strslice.StrSlice(cmd),
		Env:         env,
		WorkingDir:  c.GetWorkingDir(),
		OpenStdin:   c.GetStdin(),
		StdinOnce:   c.GetStdinOnce(),
		Tty:         c.GetTty(),
		StopSignal:  signal,
		Healthcheck: noHealthcheck(),
	}, nil
}

// containerLabels returns what the labels of a container store, but for its premounts.
func containerLabels(p ContainerParams, id identity.Identity) (labels.Set, error) {
	logPath, err := LogPath(p.Pod, p.Config)
	if err != nil {
		return labels.Set{}, err
	}
	config, err := containerJSON(p.Config, p.Volumes)
	if err != nil {
		return labels.Set{}, err
	}
	user, err := protojson.Marshal(id.Status)
	if err != nil {
		return labels.Set{}, err
	}
	return labels.Set{
		Kind:        labels.Container,
		SandboxID:   p.SandboxID,
		LogPath:     logPath,
		Labels:      p.Config.GetLabels(),
		Annotations: p.Config.GetAnnotations(),
		Config:      config,
		Image:       p.ImageName,
		ImageRef:    p.Image.Ref,
		User:        string(user),
		Plugins:     p.NRIPlugins,
	}, nil
}

// containerHost returns the HostConfig of a container, but for its groups, annotations
// and runtime, and the premounts that it needs.
func containerHost(p ContainerParams) (*container.HostConfig, []premount.Mount, error) {
	c, sc := p.Config, p.Config.GetLinux().GetSecurityContext()
	privileged := sc.GetPrivileged()
	add, drop, _, err := specedit.Capabilities(sc.GetCapabilities())
	if err != nil {
		return nil, nil, err
	}
	options, err := securityOptions(sc, privileged, p.Features, p.Seccomp, p.SandboxLabel)
	if err != nil {
		return nil, nil, err
	}
	resources, err := containerResources(p)
	if err != nil {
		return nil, nil, err
	}
	mounts, premounts, err := containerMounts(p)
	if err != nil {
		return nil, nil, err
	}
	host := &container.HostConfig{
		CgroupnsMode:   cgroupNamespace(p.Features, privileged),
		RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
		LogConfig:      p.Log,
		OomScoreAdj:    max(int(c.GetLinux().GetResources().GetOomScoreAdj()), p.Features.LowestOOMScore),
		Privileged:     privileged,
		SecurityOpt:    append(options, noNewPrivileges(sc.GetNoNewPrivs())),
		CapAdd:         add,
		CapDrop:        drop,
		ReadonlyRootfs: sc.GetReadonlyRootfs(),
		Mounts:         mounts,
		Resources:      resources,
		Init:           new(bool),
		UsernsMode:     userNamespace(p.Features),
	}
	setContainerNamespaces(host, p)
	if !privileged {
		// A privileged container has no masked and no read-only paths. Docker would apply
		// these lists all the same, and the kubelet always sends its default ones.
		host.MaskedPaths, host.ReadonlyPaths = notNil(sc.GetMaskedPaths()), notNil(sc.GetReadonlyPaths())
	}
	return host, premounts, nil
}

// applyLimits adds what annotations of the pod set.
func applyLimits(p ContainerParams, host *container.HostConfig) error {
	limits, err := p.Policy.ContainerLimits(p.Pod, p.PodAnnotations, p.Config.GetMetadata().GetName(), p.Features)
	if err != nil {
		return err
	}
	host.Ulimits = limits.Ulimits
	if limits.ShmSize > 0 && host.IpcMode.IsPrivate() {
		host.ShmSize = limits.ShmSize // other containers have the /dev/shm of the pause container
	}
	if limits.WritableCgroups && !host.Privileged { // a privileged container has them already
		host.SecurityOpt = append(host.SecurityOpt, "writable-cgroups=true")
	}
	if limits.RootfsSize > 0 {
		host.StorageOpt = map[string]string{"size": strconv.FormatInt(limits.RootfsSize, 10)}
	}
	return nil
}

// containerResources returns the resources of a container, with its devices. What is
// written to cgroup files later is only validated.
func containerResources(p ContainerParams) (out container.Resources, err error) {
	c := p.Config
	if out, err = limits.EngineResources(c.GetLinux().GetResources(), p.Features); err != nil {
		return out, err
	}
	if _, err := limits.CgroupSettings(c.GetLinux().GetResources(), p.Features); err != nil {
		return out, err
	}
	if out.Devices, err = devices(p.CDI.MergeDevices(c.GetDevices()), c.GetLinux().GetSecurityContext().GetPrivileged()); err != nil {
		return out, err
	}
	out.DeviceRequests, out.CgroupParent = cdiRequest(p.CDINames), p.CgroupParent
	return out, nil
}

// CheckUpdate refuses an update of a container that is about more than the resources of
// a Linux container.
func CheckUpdate(r *runtimeapi.UpdateContainerResourcesRequest) error {
	if len(r.GetAnnotations()) > 0 {
		return invalid("annotations of an update: berth supports none, so that they must be empty")
	}
	return checkNoWindows(r.GetWindows())
}

// notNil returns an empty list for nil, for which Docker would use its defaults.
func notNil(paths []string) []string {
	if paths == nil {
		return []string{}
	}
	return paths
}

// LogPath returns the path at which the kubelet expects the log of a container, or "" if
// it expects none.
func LogPath(pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (string, error) {
	dir, file := pod.GetLogDirectory(), c.GetLogPath()
	if dir == "" || file == "" {
		return "", nil
	}
	if path.IsAbs(file) || slices.Contains(strings.Split(file, "/"), "..") {
		return "", invalid("log_path %q: must be relative to the log directory and without \"..\"", file)
	}
	return path.Join(dir, file), nil
}

// environment returns the variables as the Engine API takes them. Their values are bytes
// in the CRI, but text in the JSON of the Engine API.
func environment(vars []*runtimeapi.KeyValue) ([]string, error) {
	var out []string
	for _, v := range vars {
		if !utf8.Valid(v.GetValue()) {
			return nil, invalid("environment variable %q: the value must be UTF-8, for Docker carries it in JSON", v.GetKey())
		}
		if v.GetKey() == "" || strings.ContainsAny(v.GetKey(), "=\x00") || slices.Contains(v.GetValue(), 0) {
			return nil, invalid("environment variable %q: the name must not be empty or contain \"=\", and neither name nor value may contain NUL", v.GetKey())
		}
		out = append(out, v.GetKey()+"="+string(v.GetValue()))
	}
	return out, nil
}

// graceAnnotation is the annotation in which the kubelet sends a pod's
// terminationGracePeriodSeconds (podTerminationGracePeriodLabel in
// pkg/kubelet/kuberuntime/labels.go of Kubernetes).
const graceAnnotation = "io.kubernetes.pod.terminationGracePeriod"

// maxGraceSeconds bounds a grace period. Docker and systemd multiply it, which must not
// overflow, and it is longer than a shutdown of the node waits anyway: reboot.target of
// systemd forces the reboot after 30 minutes (JobTimeoutSec=).
const maxGraceSeconds = 24 * 60 * 60

// gracePeriod returns the time in seconds between Docker's stop signal and the kill when
// the daemon shuts down; nil for Docker's default. A stop that the kubelet requests has a
// timeout of its own.
func gracePeriod(annotations map[string]string) (*int, error) {
	text, ok := annotations[graceAnnotation]
	if !ok {
		return nil, nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) || seconds < 0 {
		return nil, invalid("annotation %s %q: must be a number of seconds, 0 or more", graceAnnotation, text)
	}
	grace := int(min(seconds, maxGraceSeconds))
	return &grace, nil
}

// ociAnnotations returns the annotations of a container for its low-level runtime, with those
// that give its systemd scope the grace period. Without these, systemd kills the processes of
// the scope 90 s after a shutdown of the node has begun (DefaultTimeoutStopSec= in
// systemd-system.conf(5)). runc and crun pass org.systemd.property.* to systemd, see
// https://github.com/opencontainers/runc/blob/main/docs/systemd.md.
func ociAnnotations(p ContainerParams, grace *int) map[string]string {
	all := p.Policy.ContainerOCIAnnotations(podpolicy.Container{
		Pod: p.Pod, PodAnnotations: p.PodAnnotations, Config: p.Config, SandboxID: p.SandboxID,
		Runtime: p.Runtime, ImageName: p.ImageName, PodShimGroup: p.ShimGroup, OwnShimGroup: p.PremountName.String(),
	}, p.Features)
	if grace != nil && p.Features.CgroupDriver == "systemd" && p.Features.Annotations {
		seconds := max(*grace, 1) // systemd reads 0 as no timeout
		all["org.systemd.property.TimeoutStopUSec"] = fmt.Sprintf("uint64 %d000000", seconds)
	}
	return all
}
