package todocker

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandboxJSON is the part of a pod's config that is kept as one label: all but
// what has labels of its own.
func sandboxJSON(pod *runtimeapi.PodSandboxConfig) (string, error) {
	kept := proto.CloneOf(pod)
	kept.Labels, kept.Annotations = nil, nil
	return toJSON(kept)
}

// containerJSON is the part of a container's config that is kept as one label:
// all but what has labels of its own, and the environment, which the Engine
// keeps anyway and which may hold secrets. Of images that are mounted it says
// which they turned out to be.
func containerJSON(c *runtimeapi.ContainerConfig, volumes map[string]Volume) (string, error) {
	kept := proto.CloneOf(c)
	for _, m := range kept.GetMounts() {
		if volume, ok := volumes[m.GetImage().GetImage()]; ok && m.GetImage() != nil {
			m.Image.ImageRef = volume.Ref
		}
	}
	kept.Labels, kept.Annotations, kept.Envs, kept.Command, kept.Args = nil, nil, nil, nil, nil
	return toJSON(kept)
}

func toJSON(m proto.Message) (string, error) {
	text, err := protojson.Marshal(m)
	if err != nil {
		return "", invalid("config that cannot be kept as JSON (%v)", fmt.Sprint(err))
	}
	return string(text), nil
}
