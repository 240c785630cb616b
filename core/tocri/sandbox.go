package tocri

import (
	"fmt"
	"net/netip"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/labels"
	"berth/core/names"
)

// A Network is the state of a sandbox's network.
type Network struct {
	// Ready is set if the sandbox is attached to its network. A pod in the node's network
	// namespace is always ready.
	Ready bool
	// Addrs are the pod's own addresses, the primary one first. A pod in the node's
	// network namespace has none.
	Addrs []netip.Addr
}

// Sandbox translates an inspected pause container, with its metadata and the config that SandboxConfig has returned, to a row of a
// list and to a status.
func Sandbox(c container.InspectResponse, set labels.Set, config *runtimeapi.PodSandboxConfig, network Network) (*runtimeapi.PodSandbox, *runtimeapi.PodSandboxStatus, error) {
	at, err := parseTimestamps(c)
	if err != nil {
		return nil, nil, fmt.Errorf("timestamps of sandbox %s: %w", c.ID, err)
	}
	state := runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	if s := c.State; s.Running && !s.Paused && !s.Restarting && !s.Dead && network.Ready {
		state = runtimeapi.PodSandboxState_SANDBOX_READY
	}
	status := &runtimeapi.PodSandboxStatus{
		Id:        c.ID,
		Metadata:  config.GetMetadata(),
		State:     state,
		CreatedAt: at.created,
		Network:   &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{
			Namespaces: &runtimeapi.Namespace{Options: config.GetLinux().GetSecurityContext().GetNamespaceOptions()},
		},
		Labels:         set.Labels,
		Annotations:    set.Annotations,
		RuntimeHandler: set.Handler,
	}
	if status.Linux.Namespaces.Options == nil {
		status.Linux.Namespaces.Options = &runtimeapi.NamespaceOption{}
	}
	if state == runtimeapi.PodSandboxState_SANDBOX_READY {
		setAddresses(status.Network, network.Addrs)
	}
	row := &runtimeapi.PodSandbox{
		Id:             c.ID,
		Metadata:       status.Metadata,
		State:          state,
		CreatedAt:      at.created,
		Labels:         set.Labels,
		Annotations:    set.Annotations,
		RuntimeHandler: set.Handler,
	}
	return row, status, nil
}

func setAddresses(status *runtimeapi.PodSandboxNetworkStatus, addrs []netip.Addr) {
	for i, addr := range addrs {
		if i == 0 {
			status.Ip = addr.String()
		} else {
			status.AdditionalIps = append(status.AdditionalIps, &runtimeapi.PodIP{Ip: addr.String()})
		}
	}
}

// SandboxConfig returns the config of a sandbox with the given metadata, without its labels and annotations: from its
// label or, if cri-dockerd has created it, restored from what Docker knows.
func SandboxConfig(c container.InspectResponse, set labels.Set) (*runtimeapi.PodSandboxConfig, error) {
	if err := checkComplete(c); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", id(c), err)
	}
	config := &runtimeapi.PodSandboxConfig{}
	if set.CreatedByBerth() {
		return config, unmarshalLabel(c.ID, set.Config, config)
	}
	name, err := names.Parse(c.Name)
	if err != nil {
		return nil, err
	}
	config.Metadata = &runtimeapi.PodSandboxMetadata{Name: name.Pod, Namespace: name.Namespace, Uid: name.UID, Attempt: name.Attempt}
	config.Hostname = c.Config.Hostname
	options := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	if c.HostConfig.NetworkMode.IsHost() {
		options.Network = runtimeapi.NamespaceMode_NODE
	}
	if c.HostConfig.PidMode.IsHost() {
		options.Pid = runtimeapi.NamespaceMode_NODE
	}
	if c.HostConfig.IpcMode.IsHost() {
		options.Ipc = runtimeapi.NamespaceMode_NODE
	}
	config.Linux = &runtimeapi.LinuxPodSandboxConfig{
		CgroupParent:    c.HostConfig.CgroupParent,
		SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options, Privileged: true},
	}
	return config, nil
}
