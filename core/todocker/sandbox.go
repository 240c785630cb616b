// Package todocker writes the orders we give the Docker Engine from what the
// kubelet asked for. It is pure: values in, values out, no I/O.
//
// Its counterpart is package tocri.
package todocker

import (
	"fmt"
	"maps"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/premount"
)

// An Spec is what ContainerCreate needs.
type Spec struct {
	Name   names.Name
	Config *container.Config
	Host   *container.HostConfig
	Staged []premount.Mount // to be staged before it is created
}

// SandboxParams is what is asked of a sandbox, and what the Engine can do.
type SandboxParams struct {
	Pod     *runtimeapi.PodSandboxConfig
	Handler string          // as the kubelet names it
	Image   string          // ID of the pause image
	Can     engine.Features // of the Engine that gets the order
	Seccomp string          // content of the profile that SeccompFile names
	// Bridge leaves the pod's network to Docker's own bridge.
	Bridge bool
	// OOMScore is the oom_score_adj of the pause process.
	OOMScore int
	// NodeSysctls are settings of the node that a pod with a network of its own takes
	// over, where it has no other value for them.
	NodeSysctls map[string]string
}

// NodeSysctls are the names of the settings that a pod with a network of its own takes over
// from the node: a new network namespace has IPv6 whatever the node says, so ::1 would be
// there, and before 127.0.0.1 (containerd#8958). In a sandbox that Docker 20.10 gives its own network
// it switches IPv6 off (libnetwork osl).
var NodeSysctls = []string{"net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"}

// PauseOOMScore is the oom_score_adj that a pause process should have: the
// same as other runtimes give, just above what must never be killed.
const PauseOOMScore = -998

// Sandbox orders the pause container that holds a pod's namespaces.
func Sandbox(ask SandboxParams) (Spec, error) {
	pod, m := ask.Pod, ask.Pod.GetMetadata()
	if m.GetName() == "" || m.GetNamespace() == "" || m.GetUid() == "" {
		return Spec{}, invalid("sandbox without a name, namespace or uid in its metadata")
	}
	if dir := pod.GetLogDirectory(); dir != "" && !path.IsAbs(dir) {
		return Spec{}, invalid("log_directory %q is not absolute", dir)
	}
	if err := oneLine("hostname", pod.GetHostname()); err != nil {
		return Spec{}, err
	}
	if err := noWindows(pod.GetWindows()); err != nil {
		return Spec{}, err
	}
	if err := portMappings(pod.GetPortMappings()); err != nil {
		return Spec{}, err
	}
	if _, err := PodBandwidth(pod); err != nil {
		return Spec{}, err
	}
	runtime, err := Runtime(ask.Handler, ask.Can)
	if err != nil {
		return Spec{}, err
	}
	parent, err := cgroupParent(pod.GetLinux().GetCgroupParent(), ask.Can)
	if err != nil {
		return Spec{}, err
	}
	sc := pod.GetLinux().GetSecurityContext()
	ns := sc.GetNamespaceOptions()
	if err := namespaces(ns, true); err != nil {
		return Spec{}, err
	}
	// The pause process itself is never privileged; the field only says that
	// containers of the pod may be.
	options, err := securityOptions(sandboxSeccomp(sc, ask.Can), false, ask.Can, ask.Seccomp, "")
	if err != nil {
		return Spec{}, err
	}
	user, err := pauseUser(sc)
	if err != nil {
		return Spec{}, err
	}
	config, err := sandboxJSON(pod)
	if err != nil {
		return Spec{}, err
	}

	order := Spec{
		Name: names.Name{Container: names.Pod, Pod: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(), Attempt: m.GetAttempt()},
		Config: &container.Config{
			Image:       ask.Image,
			User:        user,
			Hostname:    hostname(pod.GetHostname()),
			Healthcheck: noHealthcheck(),
			Labels: labels.Set{
				Kind:        labels.Sandbox,
				Labels:      pod.GetLabels(),
				Annotations: pod.GetAnnotations(),
				Config:      config,
				Handler:     ask.Handler,
			}.Encode(),
		},
		Host: &container.HostConfig{
			IpcMode:        container.IPCModeShareable,
			ShmSize:        shmSize,
			CgroupnsMode:   cgroupns(ask.Can, false),
			Runtime:        runtime,
			RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
			LogConfig:      container.LogConfig{Type: "none"}, // it prints nothing
			OomScoreAdj:    max(ask.OOMScore, ask.Can.LowestOOMScore),
			SecurityOpt:    append(options, "no-new-privileges=true"),
			ReadonlyRootfs: sc.GetReadonlyRootfs(),
			GroupAdd:       groups(sc.GetSupplementalGroups()),
			Sysctls:        pod.GetLinux().GetSysctls(),
			Resources:      container.Resources{CgroupParent: parent, CPUShares: 2},
			Init:           new(bool),
			UsernsMode:     userns(ask.Can),
		},
	}
	switch {
	case ns.GetNetwork() == runtimeapi.NamespaceMode_NODE:
		order.Host.NetworkMode = network(hostMode)
		order.Host.UTSMode = hostMode
		order.Config.Hostname = "" // the Engine refuses one beside the host's own
	case ask.Bridge:
		order.Host.NetworkMode = "default"
		publish(pod.GetPortMappings(), order)
	default:
		// The fast form: the low-level runtime makes the network namespace, with
		// lo up, and the Engine's own network code stays out of the way.
		order.Config.NetworkDisabled = true
		order.Host.NetworkMode = "none"
		order.Host.Sysctls = sysctls(pod.GetLinux().GetSysctls(), ask.NodeSysctls)
	}
	if ns.GetPid() == runtimeapi.NamespaceMode_NODE {
		order.Host.PidMode = hostMode
	}
	if ns.GetIpc() == runtimeapi.NamespaceMode_NODE {
		order.Host.IpcMode = hostMode
	}
	return order, nil
}

// sysctls returns the settings of a pod and those of the node that it does not have.
func sysctls(own, node map[string]string) map[string]string {
	all := maps.Clone(own)
	for name, value := range node {
		if _, said := own[name]; said {
			continue
		}
		if all == nil {
			all = map[string]string{}
		}
		all[name] = value
	}
	return all
}

const hostMode = "host"

// shmSize is how much a pod may have in /dev/shm, in bytes: what all runtimes
// give, whatever daemon.json says.
const shmSize = 64 << 20

func network(mode string) container.NetworkMode { return container.NetworkMode(mode) }

// Runtime returns the Engine's runtime for a runtime handler: empty, which is
// the Engine's default, for "" and, as cri-dockerd has it, "docker".
func Runtime(handler string, can engine.Features) (string, error) {
	if _, ok := can.Runtimes[handler]; ok {
		return handler, nil
	}
	if handler == "" || handler == "docker" {
		return "", nil
	}
	return "", invalid("runtime handler %q is not among the runtimes of Docker: add it to runtimes in daemon.json", handler)
}

// HostNetwork reports whether a pod lives in the network of its node.
func HostNetwork(pod *runtimeapi.PodSandboxConfig) bool {
	return pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// hostname cuts a name to what the kernel takes (HOST_NAME_MAX, 64; sethostname(2)).
func hostname(name string) string {
	const most = 64
	if len(name) > most {
		return strings.TrimRight(name[:most], "-.")
	}
	return name
}

// cgroupParent says where the container's cgroup goes. Under systemd the
// Engine wants the name of a slice and finds its ancestors itself; the kubelet
// sends the whole path.
func cgroupParent(parent string, can engine.Features) (string, error) {
	if parent == "" || can.CgroupDriver != "systemd" {
		return parent, nil
	}
	slice := path.Base(parent)
	if !strings.HasSuffix(slice, ".slice") {
		return "", invalid("cgroup_parent %q is no slice, and Docker uses the systemd cgroup driver: set cgroupDriver: systemd in the kubelet's configuration", parent)
	}
	return slice, nil
}

// cgroupns is said in so many words, so that daemon.json cannot say otherwise.
func cgroupns(can engine.Features, privileged bool) container.CgroupnsMode {
	if can.CgroupVersion == 2 && !privileged {
		return container.CgroupnsModePrivate
	}
	return container.CgroupnsModeHost
}

// userns keeps pods out of the remapped user namespace that an Engine with
// userns-remap would give them: host paths would belong to somebody else.
func userns(can engine.Features) container.UsernsMode {
	if can.UserNSRemap {
		return hostMode
	}
	return ""
}

// namespaces refuses what no Docker container can have.
func namespaces(ns *runtimeapi.NamespaceOption, sandbox bool) error {
	u := ns.GetUsernsOptions()
	if u != nil && u.GetMode() != runtimeapi.NamespaceMode_NODE {
		return invalid("user namespaces for single pods (hostUsers: false) are not to be had from Docker")
	}
	if len(u.GetUids()) > 0 || len(u.GetGids()) > 0 {
		return invalid("id mappings in the node's user namespace")
	}
	switch mode := ns.GetNetwork(); mode {
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE:
	default:
		return invalid("network namespace mode %v", mode)
	}
	switch mode := ns.GetIpc(); {
	case mode == runtimeapi.NamespaceMode_POD, mode == runtimeapi.NamespaceMode_NODE:
	case mode == runtimeapi.NamespaceMode_CONTAINER && !sandbox:
	default:
		return invalid("ipc namespace mode %v", mode)
	}
	mode := ns.GetPid()
	if _, known := runtimeapi.NamespaceMode_name[int32(mode)]; !known {
		return invalid("pid namespace mode %v", mode)
	}
	if mode == runtimeapi.NamespaceMode_TARGET && (sandbox || ns.GetTargetId() == "") {
		return invalid("pid namespace mode TARGET needs a container and the target's id")
	}
	return nil
}

// noHealthcheck turns off the one that the image may have: probes are the
// kubelet's.
func noHealthcheck() *container.HealthConfig {
	return &container.HealthConfig{Test: []string{"NONE"}}
}

// noWindows refuses what is meant for Windows: berth runs on Linux.
func noWindows(m proto.Message) error {
	if proto.Size(m) > 0 {
		return invalid("fields for Windows (%s) in a request to a node that runs Linux", m.ProtoReflect().Descriptor().Name())
	}
	return nil
}

// oneLine refuses text that would break out of the file it is written to.
func oneLine(what, text string) error {
	if strings.ContainsAny(text, "\n\r\x00") {
		return invalid("%s %q has a line break in it", what, text)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func failed(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}
