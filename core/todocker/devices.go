package todocker

import (
	"path"
	"strings"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
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

// cdiRequest requests devices by their CDI names (https://tags.cncf.io/container-device-interface) from an Engine
// that resolves them.
func cdiRequest(names []string) []container.DeviceRequest {
	if len(names) == 0 {
		return nil
	}
	return []container.DeviceRequest{{Driver: "cdi", DeviceIDs: names}}
}
