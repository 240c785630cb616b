package sandbox

import "berth/network"

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
