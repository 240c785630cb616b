package tocri

import (
	"fmt"
	"net/netip"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/labels"
	"berth/core/names"
)

// A Network is what is known of a sandbox's network.
type Network struct {
	// Ready tells that the sandbox is attached to the network it was created
	// for. That of a pod on its node's network always is.
	Ready bool
	// Addrs are the pod's own addresses, the first one first. None for a pod
	// on its node's network.
	Addrs []netip.Addr
}

// Sandbox translates an inspected pause container into a row of a list and
// into a status.
func Sandbox(c container.InspectResponse, network Network) (*runtimeapi.PodSandbox, *runtimeapi.PodSandboxStatus, error) {
	if c.ContainerJSONBase == nil || c.State == nil || c.Config == nil || c.HostConfig == nil {
		return nil, nil, fmt.Errorf("sandbox %s: the Engine's answer is not whole", id(c))
	}
	said, err := labels.Read(c)
	if err != nil {
		return nil, nil, fmt.Errorf("sandbox %s: %w", c.ID, err)
	}
	config, err := SandboxConfig(c)
	if err != nil {
		return nil, nil, err
	}
	at, err := parseTimes(c)
	if err != nil {
		return nil, nil, fmt.Errorf("times of sandbox %s: %w", c.ID, err)
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
		Labels:         said.Labels,
		Annotations:    said.Annotations,
		RuntimeHandler: said.Handler,
	}
	if status.Linux.Namespaces.Options == nil {
		status.Linux.Namespaces.Options = &runtimeapi.NamespaceOption{}
	}
	if state == runtimeapi.PodSandboxState_SANDBOX_READY {
		for i, addr := range network.Addrs {
			if i == 0 {
				status.Network.Ip = addr.String()
			} else {
				status.Network.AdditionalIps = append(status.Network.AdditionalIps, &runtimeapi.PodIP{Ip: addr.String()})
			}
		}
	}
	row := &runtimeapi.PodSandbox{
		Id:             c.ID,
		Metadata:       status.Metadata,
		State:          state,
		CreatedAt:      at.created,
		Labels:         said.Labels,
		Annotations:    said.Annotations,
		RuntimeHandler: said.Handler,
	}
	return row, status, nil
}

// SandboxConfig reads back, but for labels and annotations, what the kubelet
// asked for. Of a sandbox that cri-dockerd has made it is put together from
// what Docker knows.
func SandboxConfig(c container.InspectResponse) (*runtimeapi.PodSandboxConfig, error) {
	config := &runtimeapi.PodSandboxConfig{}
	said, err := labels.Read(c)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", c.ID, err)
	}
	if said.Ours() {
		return config, fromJSON(c.ID, said.Config, config)
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
