package todocker

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/docker/go-connections/nat"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// portMappings refuses mappings that cannot be. A host port of 0 maps nothing.
func portMappings(list []*runtimeapi.PortMapping) error {
	for _, p := range list {
		if _, known := runtimeapi.Protocol_name[int32(p.GetProtocol())]; !known {
			return invalid("protocol %v of port %d", p.GetProtocol(), p.GetContainerPort())
		}
		if p.GetHostPort() < 0 || p.GetHostPort() > math.MaxUint16 || p.GetContainerPort() < 0 || p.GetContainerPort() > math.MaxUint16 {
			return invalid("host port %d to container port %d", p.GetHostPort(), p.GetContainerPort())
		}
	}
	return nil
}

// publish has Docker's own network map ports.
func publish(list []*runtimeapi.PortMapping, order Spec) {
	order.Config.ExposedPorts, order.Host.PortBindings = nat.PortSet{}, nat.PortMap{}
	for _, p := range list {
		if p.GetHostPort() == 0 {
			continue
		}
		port := nat.Port(fmt.Sprintf("%d/%s", p.GetContainerPort(), strings.ToLower(p.GetProtocol().String())))
		order.Config.ExposedPorts[port] = struct{}{}
		order.Host.PortBindings[port] = append(order.Host.PortBindings[port], nat.PortBinding{
			HostIP: p.GetHostIp(), HostPort: strconv.Itoa(int(p.GetHostPort())),
		})
	}
}
