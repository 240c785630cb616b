package todocker

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/docker/go-connections/nat"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkPorts validates port mappings. A host port of 0 maps nothing.
func checkPorts(list []*runtimeapi.PortMapping) error {
	for _, p := range list {
		if _, known := runtimeapi.Protocol_name[int32(p.GetProtocol())]; !known {
			return invalid("protocol %v of container port %d: must be TCP, UDP or SCTP", p.GetProtocol(), p.GetContainerPort())
		}
		for field, port := range map[string]int32{"host_port": p.GetHostPort(), "container_port": p.GetContainerPort()} {
			if port < 0 || port > math.MaxUint16 {
				return invalid("%s %d: must be between 0 and %d", field, port, math.MaxUint16)
			}
		}
	}
	return nil
}

// publish lets Docker's own bridge map the ports.
func publish(list []*runtimeapi.PortMapping, spec Spec) {
	spec.Config.ExposedPorts, spec.Host.PortBindings = nat.PortSet{}, nat.PortMap{}
	for _, p := range list {
		if p.GetHostPort() == 0 {
			continue
		}
		port := nat.Port(fmt.Sprintf("%d/%s", p.GetContainerPort(), strings.ToLower(p.GetProtocol().String())))
		spec.Config.ExposedPorts[port] = struct{}{}
		spec.Host.PortBindings[port] = append(spec.Host.PortBindings[port], nat.PortBinding{
			HostIP: p.GetHostIp(), HostPort: strconv.Itoa(int(p.GetHostPort())),
		})
	}
}
