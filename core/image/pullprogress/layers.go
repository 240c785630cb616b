package pullprogress

import (
	"strings"

	"github.com/docker/docker/pkg/jsonmessage"
)

const (
	// maxBlobs is how many layers of a pull are followed. Docker's own store allows 125 layers in
	// an image; messages about more than this change no numbers.
	maxBlobs = 1024
	// maxID and maxStatus are how much of the IDs and statuses of messages is kept.
	maxID, maxStatus = 80, 64
	// maxSize bounds the size of a blob, which the registry says, so that sums do not overflow.
	maxSize = 1 << 50
)

// Statuses of layers in Docker's messages (distribution/xfer/download.go, distribution/pull_v2.go and
// daemon/containerd/progress.go of docker 28.5).
const (
	statusQueued      = "Pulling fs layer"
	statusWaiting     = "Waiting"
	statusDownloading = "Downloading"
	statusVerifying   = "Verifying Checksum"
	statusDownloaded  = "Download complete"
	statusExtracting  = "Extracting"
	statusComplete    = "Pull complete"
	statusExists      = "Already exists"
	prefixRetrying    = "Retrying in "
)

// layers is the state of one attempt to pull an image, by the last message about each layer.
type layers struct {
	blobs    map[string]*blob
	received int64 // bytes downloaded; more than the size of the layers if a download began again
}

// A blob is a layer, or another part of the image that Docker reports.
type blob struct {
	last       step
	isLayer    bool
	done, size int64 // bytes downloaded, and of the whole blob as far as Docker knows
}

// A step is what a message says.
type step struct {
	status         string
	current, total int64
}

// update applies a message and reports whether it changes anything. With the containerd
// image store, Docker repeats the state of a download every 100 ms, whether or not a byte
// has arrived (daemon/containerd/progress.go of docker 28.5).
func (l *layers) update(m jsonmessage.JSONMessage) bool {
	now := step{status: clip(m.Status, maxStatus)}
	if m.Progress != nil {
		now.current, now.total = min(max(m.Progress.Current, 0), maxSize), min(max(m.Progress.Total, 0), maxSize)
	}
	id := clip(m.ID, maxID)
	b, ok := l.blobs[id]
	if !ok {
		if len(l.blobs) >= maxBlobs {
			return true
		}
		if l.blobs == nil {
			l.blobs = map[string]*blob{}
		}
		b = &blob{}
		l.blobs[id] = b
	}
	changed := !ok || b.last != now
	b.last = now
	before := b.done
	b.count(now)
	l.received += max(b.done-before, 0)
	return changed
}

// count updates the numbers of b.
func (b *blob) count(now step) {
	switch now.status {
	case statusQueued, statusWaiting, statusExists:
		b.isLayer = true
	case statusDownloading:
		// When Docker resumes a download, it counts the rest of it only.
		b.size = max(b.size, now.total)
		b.done = now.current
		if now.total > 0 {
			b.done += b.size - now.total
		}
	case statusDownloaded:
		b.done = max(b.done, b.size)
		b.size = b.done
	case statusExtracting, statusComplete:
		b.isLayer = true
		b.done = max(b.done, b.size)
		b.size = b.done
	}
}

// downloaded reports whether the registry owes nothing more of b.
func (b *blob) downloaded() bool {
	switch b.last.status {
	case statusVerifying, statusDownloaded, statusExtracting:
		return true
	default:
		return b.complete()
	}
}

// complete reports whether b is on the node.
func (b *blob) complete() bool {
	return b.last.status == statusComplete || b.last.status == statusExists
}

// awaitingRegistry reports whether the next step depends on the registry. If not, Docker
// unpacks or verifies a layer, or a layer waits for the downloads of other pulls: all of
// these may take long without a message.
func (l *layers) awaitingRegistry() bool {
	downloading, local := false, false
	for _, b := range l.blobs {
		switch status := b.last.status; {
		case status == statusExtracting:
			return false
		case status == statusDownloading && b.last.total > 0 && b.last.current >= b.last.total:
			local = true // Docker writes it to the disk
		case status == statusDownloading, status == statusQueued, strings.HasPrefix(status, prefixRetrying):
			downloading = true
		case status == statusWaiting, status == statusVerifying, status == statusDownloaded:
			local = true
		}
	}
	// With no layer in either state, the registry must send a manifest (before the first
	// layer) or the image's configuration (after the last).
	return downloading || !local
}

// sum adds the numbers of all layers to s.
func (l *layers) sum(s *Status) {
	downloaded := 0
	for _, b := range l.blobs {
		s.Bytes += b.done
		s.TotalBytes += max(b.size, b.done)
		if !b.isLayer {
			continue
		}
		s.Layers++
		if b.complete() {
			s.LayersDone++
		}
		if b.downloaded() {
			downloaded++
		} else if b.size == 0 {
			s.TotalIsMinimum = true
		}
	}
	switch {
	case s.Layers == 0:
		s.State = Waiting
	case s.LayersDone == s.Layers:
		s.State = Finishing
	case downloaded == s.Layers:
		s.State = Unpacking
	default:
		s.State = Downloading
	}
}

// clip returns at most n bytes of text, in valid UTF-8.
func clip(text string, n int) string {
	if len(text) > n {
		text = strings.Clone(text[:n]) // the rest is not kept in memory
	}
	return strings.ToValidUTF8(text, "")
}
