package sandbox

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/checkpoint"
	"berth/core/names"
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

// unfinished returns the intent that has led to pod and no further, nil if there
// is none.
func (s *Service) unfinished(pod *cache.Sandbox) *intent {
	left, ok := s.state.intents.Get(names.Plain(pod.Name))
	if !ok || left.ID != pod.ID() {
		return nil
	}
	return &left
}

// plan returns what is known of how to take the network of pod back, nil if
// nothing is. Of a pod that was never finished there is more than the checkpoint.
func (s *Service) plan(pod *cache.Sandbox) *network.Plan {
	if left := s.unfinished(pod); left != nil && left.Plan != nil {
		return left.Plan
	}
	return s.recalled(pod.ID())
}

// recalled returns what is still known of the network of the sandbox id where
// libcni has forgotten it: the plugin for host ports takes back only those that
// it is told of. It is nil if nothing is known.
func (s *Service) recalled(id string) *network.Plan {
	c, ok := s.checkpoints.Read(id)
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
