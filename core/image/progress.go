package image

import (
	"strings"

	"github.com/docker/docker/pkg/jsonmessage"
)

// A progress holds the last reported step of each layer of a pull, by layer ID.
type progress map[string]step

type step struct {
	status         string
	current, total int64
}

// update applies a message and reports whether it changes anything. With the containerd
// image store, Docker repeats the state of a download every 100 ms, whether or not a byte
// has arrived (daemon/containerd/progress.go of docker 28.5).
func (p progress) update(m jsonmessage.JSONMessage) bool {
	now := step{status: m.Status}
	if m.Progress != nil {
		now.current, now.total = m.Progress.Current, m.Progress.Total
	}
	last, ok := p[m.ID]
	p[m.ID] = now
	return !ok || last != now
}

// awaitingRegistry reports whether the next step depends on the registry. If not, Docker
// unpacks or verifies a layer, or a layer waits for the downloads of other pulls: all of
// these may take long without a message.
func (p progress) awaitingRegistry() bool {
	downloading, local := false, false
	for _, layer := range p {
		switch {
		case layer.status == "Extracting":
			return false
		case layer.status == "Downloading" && layer.total > 0 && layer.current >= layer.total:
			local = true // Docker writes it to the disk
		case layer.status == "Downloading", layer.status == "Pulling fs layer", strings.HasPrefix(layer.status, "Retrying in "):
			downloading = true
		case layer.status == "Waiting", layer.status == "Verifying Checksum", layer.status == "Download complete":
			local = true
		}
	}
	// With no layer in either state, the registry must send a manifest (before the first
	// layer) or the image's configuration (after the last).
	return downloading || !local
}
