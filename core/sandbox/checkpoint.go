package sandbox

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/checkpoint"
	"berth/core/todocker"
	"berth/network"
)

// checkpointOf returns what cri-dockerd would keep of a pod.
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

// recalled returns what is still known of the network of the sandbox id where
// libcni has forgotten it: the plugin for host ports takes back only those that
// it is told of. It is nil if nothing is known.
func (s *Service) recalled(id string) *network.Plan {
	c, ok := s.Checkpoints.Read(id)
	if !ok {
		return nil
	}
	pod := network.Pod{ID: id, Name: c.Name, Namespace: c.Namespace}
	for _, p := range c.Ports {
		if p.HostPort > 0 {
			pod.Ports = append(pod.Ports, network.PortMapping{
				HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol, HostIP: p.HostIP,
			})
		}
	}
	return &network.Plan{Pod: pod}
}
