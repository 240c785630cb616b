package image

import (
	"encoding/json"
	"fmt"

	"github.com/docker/docker/api/types/image"
)

// verboseInfo tells of an image what the CRI has no field for, under the key
// that crictl's templates read.
func verboseInfo(found image.InspectResponse) (map[string]string, error) {
	text, err := json.Marshal(map[string]any{
		"imageSpec": map[string]any{
			"created": found.Created, "author": found.Author, "architecture": found.Architecture,
			"os": found.Os, "config": found.Config, "rootfs": found.RootFS,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", found.ID, err)
	}
	return map[string]string{"info": string(text)}, nil
}
