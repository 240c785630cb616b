package image

import (
	"strings"

	"github.com/docker/docker/pkg/jsonmessage"
)

// A progress is how far the layers of a pull have come, by ID, as the Engine has
// last told.
type progress map[string]step

type step struct {
	status         string
	current, total int64
}

// note takes down a message and reports whether it says anything new. With the
// containerd image store Docker tells of a download every 100 ms, whether or not a
// byte has come (docker v28.5, daemon/containerd/progress.go).
func (p progress) note(m jsonmessage.JSONMessage) bool {
	now := step{status: m.Status}
	if m.Progress != nil {
		now.current, now.total = m.Progress.Current, m.Progress.Total
	}
	before, told := p[m.ID]
	p[m.ID] = now
	return !told || before != now
}

// owed reports whether it is the registry from which the next step must come.
// What Docker itself does with a layer may take long without a word, and so may the
// downloads of others that a layer waits for.
func (p progress) owed() bool {
	downloading, docker := false, false
	for _, layer := range p {
		switch {
		case layer.status == "Extracting":
			return false
		case layer.status == "Downloading" && layer.total > 0 && layer.current >= layer.total:
			docker = true // writes it to the disk
		case layer.status == "Downloading", layer.status == "Pulling fs layer", strings.HasPrefix(layer.status, "Retrying in "):
			downloading = true
		case layer.status == "Waiting", layer.status == "Verifying Checksum", layer.status == "Download complete":
			docker = true
		}
	}
	// Before the first layer there are manifests to come, after the last perhaps
	// the image's configuration.
	return downloading || !docker
}
