package todocker

import (
	"cmp"
	"maps"
	"path"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/bandwidth"
	"berth/core/engine"
	"berth/core/identity"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/podpolicy"
	"berth/core/specedit"
	"berth/core/userns"
)

// SandboxParams are the parameters of Sandbox.
type SandboxParams struct {
	Pod      *runtimeapi.PodSandboxConfig
	Handler  string // runtime_handler of the request
	Image    string // ID of the pause image
	Features engine.Features
	Policy   podpolicy.Policy
	UserNS   userns.Support
	Files    specedit.Files // that the operator has for the handler
	Seccomp  string         // content of the profile that SeccompFile returns
	// ShimGroup is a new name for the containers that share a process of containerd's shim.
	ShimGroup string
	// Bridge attaches the pod to Docker's own bridge instead of a CNI network.
	Bridge bool
	// OOMScore is the oom_score_adj of the pause process.
	OOMScore int
	// NodeSysctls are the node's values of the settings in the variable NodeSysctls. A
	// pod with its own network gets those that it does not set itself.
	NodeSysctls map[string]string
}

// NodeSysctls are the names of the settings that a pod with its own network inherits from
// the node. A new network namespace has IPv6 even if the node disables it, so that ::1
// would be there, and before 127.0.0.1 (containerd#8958). In a network of its own, Docker
// 20.10 disables IPv6 itself (libnetwork/osl).
var NodeSysctls = []string{"net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"}

// PauseOOMScore is the preferred oom_score_adj of a pause process. containerd and CRI-O
// use the same value; -999 and -1000 are for processes that must never be killed.
const PauseOOMScore = -998

// pauseCPUShares is the minimum of cpu.shares: the pause process only sleeps.
const pauseCPUShares = 2

// Sandbox translates a pod sandbox to the pause container that holds its namespaces.
func Sandbox(p SandboxParams) (Spec, error) {
	pod, meta := p.Pod, p.Pod.GetMetadata()
	if err := checkSandbox(pod); err != nil {
		return Spec{}, err
	}
	host, err := sandboxHost(p)
	if err != nil {
		return Spec{}, err
	}
	id, err := identity.ForSandbox(pod.GetLinux().GetSecurityContext())
	if err != nil {
		return Spec{}, err
	}
	host.GroupAdd = id.Groups
	config, err := sandboxJSON(pod)
	if err != nil {
		return Spec{}, err
	}
	spec := Spec{
		Name: names.Name{Container: names.Pod, Pod: meta.GetName(), Namespace: meta.GetNamespace(), UID: meta.GetUid(), Attempt: meta.GetAttempt()},
		Config: &container.Config{
			Image:       p.Image,
			User:        id.User,
			Hostname:    truncateHostname(pod.GetHostname()),
			Healthcheck: noHealthcheck(),
			Labels: labels.Set{
				Kind:        labels.Sandbox,
				Labels:      pod.GetLabels(),
				Annotations: pod.GetAnnotations(),
				Config:      config,
				Handler:     p.Handler,
			}.Encode(),
		},
		Host: host,
	}
	setSandboxNamespaces(spec, p)
	return withInstructions(spec, p)
}

// checkSandbox validates the fields of a pod that are not translated one by one.
func checkSandbox(pod *runtimeapi.PodSandboxConfig) error {
	meta := pod.GetMetadata()
	if meta.GetName() == "" || meta.GetNamespace() == "" || meta.GetUid() == "" {
		return invalid("metadata of a sandbox: name, namespace and uid must be set")
	}
	if dir := pod.GetLogDirectory(); dir != "" && !path.IsAbs(dir) {
		return invalid("log_directory %q: must be an absolute path", dir)
	}
	if err := checkOneLine("hostname", pod.GetHostname()); err != nil {
		return err
	}
	if err := checkNoWindows(pod.GetWindows()); err != nil {
		return err
	}
	if err := checkPorts(pod.GetPortMappings()); err != nil {
		return err
	}
	_, err := PodBandwidth(pod)
	return err
}

// PodBandwidth returns the bandwidth limits of a pod. A pod in the node's network namespace
// has none.
func PodBandwidth(pod *runtimeapi.PodSandboxConfig) (bandwidth.Limits, error) {
	if HostNetwork(pod) {
		return bandwidth.Limits{}, nil
	}
	return bandwidth.Parse(pod.GetAnnotations())
}

// sandboxHost returns the HostConfig of a pause container, but for its namespaces.
func sandboxHost(p SandboxParams) (*container.HostConfig, error) {
	linux := p.Pod.GetLinux()
	sc := linux.GetSecurityContext()
	runtime, err := p.Policy.Runtime(p.Handler, p.Features)
	if err != nil {
		return nil, err
	}
	limits, err := p.Policy.CheckPod(p.Pod, p.Features)
	if err != nil {
		return nil, err
	}
	parent, err := cgroupParent(linux.GetCgroupParent(), p.Features)
	if err != nil {
		return nil, err
	}
	if err := checkNamespaces(sc.GetNamespaceOptions(), true); err != nil {
		return nil, err
	}
	// The pause process itself is never privileged: the field only allows privileged
	// containers in the pod.
	options, err := securityOptions(sandboxSeccomp(sc, p.Features), false, p.Features, p.Seccomp, "")
	if err != nil {
		return nil, err
	}
	return &container.HostConfig{
		IpcMode:        container.IPCModeShareable,
		ShmSize:        cmp.Or(limits.ShmSize, shmSize),
		CgroupnsMode:   cgroupNamespace(p.Features, false),
		Runtime:        runtime,
		RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
		LogConfig:      container.LogConfig{Type: "none"}, // the pause process prints nothing
		OomScoreAdj:    max(p.OOMScore, p.Features.LowestOOMScore),
		SecurityOpt:    append(options, noNewPrivileges(true)),
		ReadonlyRootfs: sc.GetReadonlyRootfs(),
		Sysctls:        linux.GetSysctls(),
		Resources:      container.Resources{CgroupParent: parent, CPUShares: pauseCPUShares},
		Init:           new(bool),
		UsernsMode:     userNamespace(p.Features),
		Annotations:    p.Policy.SandboxOCIAnnotations(p.Pod, runtime, p.ShimGroup, p.Features),
	}, nil
}

// setSandboxNamespaces sets the network, PID and IPC namespaces of a pause container.
func setSandboxNamespaces(spec Spec, p SandboxParams) {
	ns := p.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	switch {
	case ns.GetNetwork() == runtimeapi.NamespaceMode_NODE:
		spec.Host.NetworkMode = hostMode
		spec.Host.UTSMode = hostMode
		spec.Config.Hostname = "" // Docker refuses a hostname in the host's UTS namespace
	case p.Bridge:
		spec.Host.NetworkMode = "default"
		publish(p.Pod.GetPortMappings(), spec)
	default:
		// The low-level runtime creates the network namespace, with lo up. Docker's own
		// network code does not run, which makes the start faster.
		spec.Config.NetworkDisabled = true
		spec.Host.NetworkMode = "none"
		spec.Host.Sysctls = withNodeSysctls(spec.Host.Sysctls, p.NodeSysctls)
	}
	if ns.GetPid() == runtimeapi.NamespaceMode_NODE {
		spec.Host.PidMode = hostMode
	}
	if ns.GetIpc() == runtimeapi.NamespaceMode_NODE {
		spec.Host.IpcMode = hostMode
	}
}

// withNodeSysctls returns the settings of a pod, and those of the node that the pod does
// not set.
func withNodeSysctls(pod, node map[string]string) map[string]string {
	all := maps.Clone(pod)
	for name, value := range node {
		if _, ok := pod[name]; ok {
			continue
		}
		if all == nil {
			all = map[string]string{}
		}
		all[name] = value
	}
	return all
}
