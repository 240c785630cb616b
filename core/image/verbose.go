package image

import (
	"encoding/json"
	"fmt"

	"github.com/docker/docker/api/types/image"
)

// verboseInfo returns the properties of an image for which the CRI has no field, in the form
// that containerd uses and templates of crictl inspecti read: JSON under the key "info".
func verboseInfo(found image.InspectResponse) (map[string]string, error) {
	text, err := json.Marshal(map[string]any{
		"imageSpec": map[string]any{
			"created": found.Created, "author": found.Author, "architecture": found.Architecture,
			"os": found.Os, "config": found.Config, "rootfs": found.RootFS,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("info of image %s: %w", found.ID, err)
	}
	return map[string]string{"info": string(text)}, nil
}
