package todocker

import (
	"path"
	"strings"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

// allAccess is to read and write a device and to make its node.
const allAccess = "rwm"

// devices orders devices of the node. A privileged container has all of them
// already, but by the node's names only.
func devices(list []*runtimeapi.Device, privileged bool) (out []container.DeviceMapping, err error) {
	for _, d := range list {
		access := d.GetPermissions()
		if access == "" {
			access = allAccess
		}
		if !path.IsAbs(d.GetHostPath()) || !path.IsAbs(d.GetContainerPath()) || strings.Trim(access, allAccess) != "" {
			return nil, invalid("device %q at %q with permissions %q", d.GetHostPath(), d.GetContainerPath(), access)
		}
		if privileged && d.GetHostPath() == d.GetContainerPath() {
			continue
		}
		out = append(out, container.DeviceMapping{PathOnHost: d.GetHostPath(), PathInContainer: d.GetContainerPath(), CgroupPermissions: access})
	}
	return out, nil
}

// cdiDevices orders devices that the node's CDI specifications describe.
func cdiDevices(list []*runtimeapi.CDIDevice, can engine.Features) ([]container.DeviceRequest, error) {
	if len(list) == 0 {
		return nil, nil
	}
	if !can.CDI {
		return nil, failed("CDI devices need Docker 28.2 or newer, or features.cdi in daemon.json: this one has none")
	}
	request := container.DeviceRequest{Driver: "cdi"}
	for _, d := range list {
		if d.GetName() == "" {
			return nil, invalid("CDI device without a name")
		}
		request.DeviceIDs = append(request.DeviceIDs, d.GetName())
	}
	return []container.DeviceRequest{request}, nil
}
