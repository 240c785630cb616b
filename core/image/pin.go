package image

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/docker/docker/api/types/image"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sys/unix"

	"berth/core/engine"
	"berth/core/image/foreign"
	"berth/core/image/imagecache"
	"berth/core/image/origin"
	"berth/core/image/pinning"
	"berth/core/state"
)

// PinConfig says which images are pinned besides the pause image.
type PinConfig struct {
	// Policy is the one until SetPinPolicy.
	Policy pinning.Policy
	// Pulled holds the images that berth has pulled. It may be nil.
	Pulled *state.Bucket[origin.Pulled]
	// DiskUsage returns how full the file system of path is, in percent; nil asks the kernel.
	DiskUsage func(path string) (int, error)
	// Metrics is where the metrics of pinned images are registered. It may be nil.
	Metrics prometheus.Registerer
}

const (
	// pressurePercent is how full the file system of images is when the pinned images are
	// logged: a little less than the kubelet's imageGCHighThresholdPercent, which is 85.
	pressurePercent = 80
	// pressureInterval is the shortest time between two such lines: the kubelet lists images
	// every 30 seconds.
	pressureInterval = 10 * time.Minute
	// maxPressureNames is how many images such a line names.
	maxPressureNames = 10
)

// pins decides which images are pinned.
type pins struct {
	policy     atomic.Pointer[pinning.Policy]
	origins    *origin.Tracker
	containers *foreign.Containers
	diskUsage  func(path string) (int, error)
	images     *prometheus.GaugeVec // by reason
	bytes      *prometheus.GaugeVec // by reason
	logged     atomic.Int64         // when the pinned images were logged, as UnixNano
}

func newPins(cfg PinConfig, docker *engine.Engine, log *slog.Logger) *pins {
	p := &pins{
		origins: origin.New(cfg.Pulled, log), containers: foreign.New(docker, log), diskUsage: cfg.DiskUsage,
		images: promauto.With(cfg.Metrics).NewGaugeVec(prometheus.GaugeOpts{
			Name: "berthd_images_pinned", Help: "Number of images that the kubelet's garbage collection must not remove, by reason.",
		}, []string{"reason"}),
		bytes: promauto.With(cfg.Metrics).NewGaugeVec(prometheus.GaugeOpts{
			Name: "berthd_images_pinned_bytes", Help: "Size of these images. Layers that images share count once for each.",
		}, []string{"reason"}),
	}
	if p.diskUsage == nil {
		p.diskUsage = diskUsedPercent
	}
	p.setTotals(nil)
	p.policy.Store(&cfg.Policy)
	return p
}

// setTotals sets the metrics.
func (p *pins) setTotals(report pinning.Report) {
	for reason, total := range report.Totals() {
		p.images.WithLabelValues(string(reason)).Set(float64(total.Images))
		p.bytes.WithLabelValues(string(reason)).Set(float64(total.Bytes))
	}
}

// SetPinPolicy changes which images are pinned. Calls that are in progress use either the old
// policy or the new one.
func (s *Service) SetPinPolicy(policy pinning.Policy) { s.pins.policy.Store(&policy) }

// RunForeign keeps track of the containers outside of Kubernetes. It returns nil when ctx is done.
func (s *Service) RunForeign(ctx context.Context) error { return s.pins.containers.Run(ctx) }

// An imageFacts is what a list entry or an inspect result tells of an image.
type imageFacts struct {
	id string
	imagecache.Facts
}

func inspectFacts(found image.InspectResponse) imageFacts {
	return imageFacts{found.ID, *imagecache.InspectedFacts(found)}
}

// trustsDigests reports whether the digests of an image show which registries have it. Docker's own
// store notes a digest when an image is pulled or pushed, and only then.
func trustsDigests(docker *engine.Conn) bool { return !docker.Features.Snapshotter }

// pinReason returns why an image is pinned; inUse are the images that containers outside of
// Kubernetes use.
func (s *Service) pinReason(docker *engine.Conn, i imageFacts, inUse map[string]string) pinning.Reason {
	repos := s.pins.origins.Repositories(i.id)
	if trustsDigests(docker) {
		for _, digest := range i.Digests {
			repos = append(repos, pinning.Repository(digest))
		}
	}
	return s.pins.policy.Load().Reason(pinning.Image{
		Tags: i.Tags, Digests: i.Digests, Labels: i.Labels, Repositories: repos,
		IsPause: s.isPause(i.id, i.Tags, i.Digests), InUse: inUse[i.id] != "",
	})
}

// pinDetails returns what the verbose status of an image says of a reason.
func pinDetails(reason pinning.Reason) map[string]string {
	if reason == pinning.None {
		return nil
	}
	return map[string]string{"reason": string(reason), "because": reason.Explain()}
}

// pinReasonNow is pinReason for one image.
func (s *Service) pinReasonNow(ctx context.Context, docker *engine.Conn, i imageFacts) pinning.Reason {
	s.pins.origins.Refresh(ctx, docker, []string{i.id})
	return s.pinReason(docker, i, s.pins.containers.ByImage())
}

// anyName returns a name of an image, "" if it has none.
func anyName(i imagecache.Facts) string {
	for _, name := range slices.Concat(i.Tags, i.Digests) {
		if !strings.Contains(name, "<none>") {
			return name
		}
	}
	return ""
}

// logPressure logs the pinned images if the file system of images is nearly full: then the kubelet
// removes all images that it may, and an operator wants to know what it may not.
func (s *Service) logPressure(docker *engine.Conn, report pinning.Report) {
	now, last := time.Now(), s.pins.logged.Load()
	if len(report) == 0 || last != 0 && now.Sub(time.Unix(0, last)) < pressureInterval {
		return
	}
	path := docker.Features.ImageFS()
	used, err := s.pins.diskUsage(path)
	if err != nil || used < pressurePercent || !s.pins.logged.CompareAndSwap(last, now.UnixNano()) {
		return // a remote Engine's directory may not exist here
	}
	s.log.Warn("the disk of images is nearly full, and the kubelet must not remove the pinned images",
		slog.String("path", path), slog.Int("used_percent", used), slog.Int("pinned", len(report)),
		slog.Int64("pinned_bytes", report.Bytes()), slog.String("largest", report.Largest(maxPressureNames)))
}

// diskUsedPercent returns how full the file system of path is for processes without root's reserve,
// as the kubelet counts.
func diskUsedPercent(path string) (int, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	if fs.Blocks == 0 {
		return 0, nil
	}
	return 100 - int(fs.Bavail*100/fs.Blocks), nil
}
