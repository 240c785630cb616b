package image_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/system"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"berth/core/engine/enginetest"
	"berth/core/image"
	"berth/core/image/pinning"
	"berth/core/image/verify"
)

// keep is the default configuration of berthd.
var keep = image.PinConfig{Policy: pinning.Policy{KeepLocal: true, Labels: pinning.LabelsOfBuilt}}

// pinnedImages returns the IDs of the images that are pinned in a list, and checks that their
// status says the same.
func pinnedImages(t *testing.T, images *image.Service) map[string]bool {
	t.Helper()
	list, err := images.List(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	pinned := map[string]bool{}
	for _, i := range list {
		status, info, err := images.Status(t.Context(), i.GetId(), true)
		if err != nil || status.GetPinned() != i.GetPinned() {
			t.Errorf("%s: status says pinned: %v, %v; the list: %v", i.GetId(), status.GetPinned(), err, i.GetPinned())
		}
		if strings.Contains(info["info"], `"because"`) != i.GetPinned() {
			t.Errorf("%s: info %s", i.GetId(), info["info"])
		}
		if i.GetPinned() {
			pinned[i.GetId()] = true
		}
	}
	return pinned
}

func TestImagesThatNoRegistryHasArePinned(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		api        string
		containerd bool
	}{"own store": {"1.41", false}, "containerd": {"1.51", true}, "containerd, with identities": {"1.54", true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := enginetest.New(t, enginetest.API(tt.api))
			if tt.containerd {
				e.SetInfo(func(i *system.Info) {
					i.DriverStatus = append(i.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
				})
			}
			images := newService(t, e, image.Config{Pin: keep})
			built := e.AddImage(enginetest.Image{}, "app:1")
			e.AddImage(enginetest.Image{}) // what a later build has replaced
			e.Registry("r.test/a:1", enginetest.Remote{})
			pulled, err := images.Pull(t.Context(), "r.test/a:1", "", nil, verify.Pod{})
			if err != nil {
				t.Fatal(err)
			}
			if got := pinnedImages(t, images); len(got) != 1 || !got[built] {
				t.Errorf("pinned: %v, want %s alone", got, built)
			}
			if err := e.Client(t).ImageTag(t.Context(), pulled, "mine:1"); err != nil {
				t.Fatal(err)
			}
			if got := pinnedImages(t, images); !got[pulled] {
				t.Error("a pulled image with another name of this node is not pinned")
			}
			if err := images.Remove(t.Context(), "mine:1"); err != nil || !e.HasImage(pulled) {
				t.Errorf("removal of that name: %v; the image is there: %v", err, e.HasImage(pulled))
			}
			if err := images.Remove(t.Context(), pulled); err != nil || e.HasImage(pulled) {
				t.Errorf("removal of a pulled image: %v", err)
			}
		})
	}
}

func TestPinnedImagesAreRemovedByNameOnly(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	images := newService(t, e, image.Config{Pin: keep})
	id := e.AddImage(enginetest.Image{}, "app:1", "app:2")
	digits := strings.TrimPrefix(id, "sha256:")
	for _, ref := range []string{id, digits, digits[:12], id[:len("sha256:")+12]} {
		err := images.Remove(t.Context(), ref)
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "keep-local-images") {
			t.Errorf("by %s: %v, want FailedPrecondition with the option", ref, err)
		}
	}
	if err := images.Remove(t.Context(), "docker.io/library/app:1"); err != nil || e.HasImage("app:1") || !e.HasImage("app:2") {
		t.Errorf("by name: %v; app:1 is left: %v, app:2 is left: %v", err, e.HasImage("app:1"), e.HasImage("app:2"))
	}
	if err := images.Remove(t.Context(), "app:2"); err != nil || e.HasImage(id) {
		t.Errorf("by the last name: %v; the image is left: %v", err, e.HasImage(id))
	}
}

func TestImagesOfContainersOutsideOfPodsAreKept(t *testing.T) {
	t.Parallel()
	for name, pin := range map[string]image.PinConfig{"pinned": keep, "not pinned": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := enginetest.New(t)
			images := newService(t, e, image.Config{Pin: pin})
			e.Registry("r.test/a:1", enginetest.Remote{})
			id, err := images.Pull(t.Context(), "r.test/a:1", "", nil, verify.Pod{})
			if err != nil {
				t.Fatal(err)
			}
			docker := e.Client(t)
			made, err := docker.ContainerCreate(t.Context(), &container.Config{Image: "r.test/a:1"}, nil, nil, nil, "by-hand")
			if err != nil {
				t.Fatal(err)
			}
			enginetest.Background(t, images.RunForeign)
			if pin.Policy.KeepLocal {
				enginetest.Until(t, "the image is not pinned", func() bool {
					status, _, err := images.Status(t.Context(), id, false)
					return err == nil && status.GetPinned()
				})
				if !pinnedImages(t, images)[id] {
					t.Error("pinned in its status, and not in the list")
				}
			}
			for _, ref := range []string{id, "r.test/a:1"} {
				if err := images.Remove(t.Context(), ref); err == nil || !e.HasImage("r.test/a:1") {
					t.Errorf("removal by %s of an image that a container uses which was never started: %v", ref, err)
				}
			}
			if err := docker.ContainerRemove(t.Context(), made.ID, container.RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
			enginetest.Until(t, "the image cannot be removed", func() bool { return images.Remove(t.Context(), id) == nil && !e.HasImage(id) })
		})
	}
}

func TestPinnedImagesAreReplaced(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	patterns, err := pinning.ParsePatterns([]string{"r.test/*"})
	if err != nil {
		t.Fatal(err)
	}
	images := newService(t, e, image.Config{Pin: image.PinConfig{Policy: pinning.Policy{Patterns: patterns}}})
	a, b := e.AddImage(enginetest.Image{}, "r.test/a:1"), e.AddImage(enginetest.Image{}, "b:1")
	if got := pinnedImages(t, images); len(got) != 1 || !got[a] {
		t.Errorf("pinned: %v, want %s", got, a)
	}
	if patterns, err = pinning.ParsePatterns([]string{"b"}); err != nil {
		t.Fatal(err)
	}
	images.SetPinPolicy(pinning.Policy{Patterns: patterns})
	if got := pinnedImages(t, images); len(got) != 1 || !got[b] {
		t.Errorf("pinned: %v, want %s", got, b)
	}
}

func TestPinnedImagesAreCountedAndLoggedWhenTheDiskIsFull(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	registry, used, log := prometheus.NewRegistry(), 79, &bytes.Buffer{}
	pin := keep
	pin.Metrics, pin.DiskUsage = registry, func(string) (int, error) { return used, nil }
	images := image.New(image.Config{PauseImage: func() string { return "" }, Pin: pin}, e.Connect(t), slog.New(slog.NewTextHandler(log, nil)))
	e.AddImage(enginetest.Image{Size: 5e6}, "app:1")
	e.AddImage(enginetest.Image{Size: 7e6}, "app:2")
	pinnedImages(t, images)
	if log.Len() != 0 {
		t.Errorf("logged with a disk that is not full: %s", log)
	}
	used = 80
	for range 3 {
		pinnedImages(t, images)
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, `pinned=2 pinned_bytes=12000000 largest="app:2 (local), app:1 (local)"`) {
		t.Errorf("logged %s", text)
	}
	for want, err := range map[string]error{
		"berthd_images_pinned": testutil.GatherAndCompare(registry, strings.NewReader(`# HELP berthd_images_pinned Number of images that the kubelet's garbage collection must not remove, by reason.
# TYPE berthd_images_pinned gauge
berthd_images_pinned{reason="container"} 0
berthd_images_pinned{reason="label"} 0
berthd_images_pinned{reason="local"} 2
berthd_images_pinned{reason="pattern"} 0
berthd_images_pinned{reason="pause"} 0
`), "berthd_images_pinned"),
		"berthd_images_pinned_bytes": testutil.GatherAndCompare(registry, strings.NewReader(`# HELP berthd_images_pinned_bytes Size of these images. Layers that images share count once for each.
# TYPE berthd_images_pinned_bytes gauge
berthd_images_pinned_bytes{reason="container"} 0
berthd_images_pinned_bytes{reason="label"} 0
berthd_images_pinned_bytes{reason="local"} 1.2e+07
berthd_images_pinned_bytes{reason="pattern"} 0
berthd_images_pinned_bytes{reason="pause"} 0
`), "berthd_images_pinned_bytes"),
	} {
		if err != nil {
			t.Errorf("%s: %v", want, err)
		}
	}
}
