package sandbox

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/checkpoint"
	"berth/core/todocker"
	"berth/network"
)

// checkpointOf returns the checkpoint that cri-dockerd would write for a pod.
func checkpointOf(pod *runtimeapi.PodSandboxConfig) checkpoint.Checkpoint {
	c := checkpoint.Checkpoint{
		Name: pod.GetMetadata().GetName(), Namespace: pod.GetMetadata().GetNamespace(), HostNetwork: todocker.HostNetwork(pod),
	}
	for _, p := range pod.GetPortMappings() {
		c.Ports = append(c.Ports, checkpoint.Port{
			Protocol: strings.ToLower(p.GetProtocol().String()), ContainerPort: p.GetContainerPort(), HostPort: p.GetHostPort(), HostIP: p.GetHostIp(),
		})
	}
	return c
}

// planFromCheckpoint returns the plan to release the network of the sandbox id if libcni's
// cache does not have it, as for a pod of cri-dockerd. The portmap plugin removes only
// the host ports that are passed to it. The result is nil without a checkpoint.
func (s *Service) planFromCheckpoint(id string) (*network.Plan, error) {
	c, ok, err := s.checkpoints.Read(id)
	if err != nil || !ok {
		return nil, err
	}
	pod := network.Pod{ID: id, Name: c.Name, Namespace: c.Namespace}
	for _, p := range c.Ports {
		if p.HostPort > 0 {
			pod.Ports = append(pod.Ports, network.PortMapping{
				HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol, HostIP: p.HostIP,
			})
		}
	}
	return &network.Plan{Pod: pod}, nil
}
