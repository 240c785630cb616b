package todocker

import (
	"path"
	"strings"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

// allAccess is to read and write a device and to create its node.
const allAccess = "rwm"

// devices translates devices of the node. A privileged container has all of them already,
// but only at the node's paths.
func devices(list []*runtimeapi.Device, privileged bool) (out []container.DeviceMapping, err error) {
	for _, d := range list {
		access := d.GetPermissions()
		if access == "" {
			access = allAccess
		}
		switch {
		case !path.IsAbs(d.GetHostPath()):
			return nil, invalid("host_path %q of device %q: must be an absolute path", d.GetHostPath(), d.GetContainerPath())
		case !path.IsAbs(d.GetContainerPath()):
			return nil, invalid("container_path %q of device %q: must be an absolute path", d.GetContainerPath(), d.GetHostPath())
		case strings.Trim(access, allAccess) != "":
			return nil, invalid("permissions %q of device %q: must consist of r, w and m", access, d.GetHostPath())
		case privileged && d.GetHostPath() == d.GetContainerPath():
			continue
		}
		out = append(out, container.DeviceMapping{PathOnHost: d.GetHostPath(), PathInContainer: d.GetContainerPath(), CgroupPermissions: access})
	}
	return out, nil
}

// cdiDevices translates devices that the node's CDI specifications define
// (https://tags.cncf.io/container-device-interface).
func cdiDevices(list []*runtimeapi.CDIDevice, features engine.Features) ([]container.DeviceRequest, error) {
	if len(list) == 0 {
		return nil, nil
	}
	if !features.CDI {
		return nil, failed("CDI devices: Docker reports no support for them; they need Docker 28.2 or newer, or features.cdi in daemon.json")
	}
	request := container.DeviceRequest{Driver: "cdi"}
	for _, d := range list {
		if d.GetName() == "" {
			return nil, invalid("CDI device: name must be set")
		}
		request.DeviceIDs = append(request.DeviceIDs, d.GetName())
	}
	return []container.DeviceRequest{request}, nil
}
