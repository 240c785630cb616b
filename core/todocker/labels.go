package todocker

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/labels"
	"berth/core/names"
)

// sandboxJSON returns the config of a pod that is stored in one label, without the fields
// that have labels of their own.
func sandboxJSON(pod *runtimeapi.PodSandboxConfig) (string, error) {
	stored := proto.CloneOf(pod)
	stored.Labels, stored.Annotations = nil, nil
	return toJSON(stored)
}

// containerJSON returns the config of a container that is stored in one label, without the
// fields that have labels of their own and without the environment, which Docker stores
// anyway and which may hold secrets. Image volumes get the reference that their image was
// resolved to, and are read-only as imageMount makes them.
func containerJSON(c *runtimeapi.ContainerConfig, volumes map[string]Image) (string, error) {
	stored := proto.CloneOf(c)
	for _, m := range stored.GetMounts() {
		m.HostPath = strings.ReplaceAll(m.GetHostPath(), names.UnknownID, labels.OwnID)
		if volume, ok := volumes[m.GetImage().GetImage()]; ok && m.GetImage() != nil {
			m.Image.ImageRef, m.Readonly = volume.Ref, true
		}
	}
	stored.Labels, stored.Annotations, stored.Envs, stored.Command, stored.Args = nil, nil, nil, nil, nil
	return toJSON(stored)
}

func toJSON(m proto.Message) (string, error) {
	text, err := protojson.Marshal(m)
	if err != nil {
		return "", invalid("config cannot be stored as JSON (%v)", fmt.Sprint(err))
	}
	return string(text), nil
}
