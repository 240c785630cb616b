package live

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pinned reports whether the image ref is pinned, by its status, after comparing that with the list.
func (n *node) pinned(ref string) bool {
	n.t.Helper()
	got, err := n.images.ImageStatus(n.t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Verbose: true})
	if err != nil || got.GetImage() == nil {
		n.t.Fatalf("status of %s: %v, %v", ref, got, err)
	}
	n.t.Logf("%s: pinned %v, tags %q, digests %q", ref, got.GetImage().GetPinned(), got.GetImage().GetRepoTags(), got.GetImage().GetRepoDigests())
	list, err := n.images.ListImages(n.t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, i := range list.GetImages() {
		if i.GetId() == got.GetImage().GetId() && i.GetPinned() != got.GetImage().GetPinned() {
			// A container or a name may have become known between the two.
			n.until(5*time.Second, ref+" is pinned in the list or in the status alone", func() bool {
				got, err = n.images.ImageStatus(n.t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
				if err != nil {
					n.t.Fatal(err)
				}
				again, err := n.images.ListImages(n.t.Context(), &runtimeapi.ListImagesRequest{})
				return err == nil && slices.ContainsFunc(again.GetImages(), func(i *runtimeapi.Image) bool {
					return i.GetId() == got.GetImage().GetId() && i.GetPinned() == got.GetImage().GetPinned()
				})
			})
		}
	}
	return got.GetImage().GetPinned()
}

// wantRefused checks that the removal of a pinned image is refused with an error that names option.
func (n *node) wantRefused(ref, option string) {
	n.t.Helper()
	err := n.rmi(ref)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), option) {
		n.t.Errorf("removal of %s: %v, want FailedPrecondition with %s", ref, err, option)
	}
	n.t.Log(err)
}

// TestBuiltImagesArePinned builds, loads and pulls images, also before a restart of berthd.
func TestBuiltImagesArePinned(t *testing.T) {
	n := newNode(t)
	n.build("berth-app:1", "FROM "+*image+"\nLABEL for=first\n")
	built := n.status("berth-app:1")
	s := newShop(t, "")
	ref := strings.TrimPrefix(s.URL, "http://") + "/private:1"
	pulled, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	for _, restart := range []bool{false, true} {
		if restart {
			n.kill()
			n.start()
		}
		if !n.pinned("berth-app:1") || !n.pinned(*image) || n.pinned(ref) {
			t.Errorf("after a restart: %v: pinned: built %v, imported %v, pulled %v; want all but the last", restart, n.pinned("berth-app:1"), n.pinned(*image), n.pinned(ref))
		}
	}
	n.wantRefused(built, "keep-local-images")
	n.wantRefused(strings.TrimPrefix(built, "sha256:")[:12], "keep-local-images")

	// Another build under the name leaves the first image without one.
	n.build("berth-app:1", "FROM "+*image+"\nLABEL for=second\n")
	var second string
	n.until(5*time.Second, "the second build is not seen", func() bool { second = n.status("berth-app:1"); return second != built })
	if n.status(built) != "" {
		if n.pinned(built) {
			t.Error("what a later build has replaced is pinned")
		}
		if err := n.rmi(built); err != nil || n.status(built) != "" {
			t.Errorf("removal of what a later build has replaced: %v", err)
		}
	}
	if err := n.docker.ImageTag(t.Context(), second, "berth-app:2"); err != nil {
		t.Fatal(err)
	}
	if err := n.rmi("berth-app:2"); err != nil || n.status("berth-app:2") != "" || n.status("berth-app:1") != second {
		t.Errorf("removal of one of two names: %v; left %q and %q", err, n.status("berth-app:2"), n.status("berth-app:1"))
	}
	if err := n.rmi("berth-app:1"); err != nil || n.status(second) != "" {
		t.Errorf("removal of the last name: %v; left %q", err, n.status(second))
	}

	// A name of this node keeps a pulled image.
	if err := n.docker.ImageTag(t.Context(), pulled.GetImageRef(), "berth-mine:1"); err != nil {
		t.Fatal(err)
	}
	n.until(5*time.Second, "a pulled image with a name of this node is not pinned", func() bool { return n.pinned(ref) })
	if err := n.rmi("berth-mine:1"); err != nil || n.pinned(ref) {
		t.Errorf("removal of that name: %v; the image is pinned: %v", err, n.pinned(ref))
	}
	if err := n.rmi(pulled.GetImageRef()); err != nil || n.status(ref) != "" {
		t.Errorf("removal of a pulled image by its ID: %v; left %q", err, n.status(ref))
	}
	n.clean()
}

// TestImagesOfOtherContainersArePinned has a container outside of Kubernetes use a pulled image.
func TestImagesOfOtherContainersArePinned(t *testing.T) {
	n := newNode(t, "--pinned-images", "berth-pattern")
	s := newShop(t, "")
	ref := strings.TrimPrefix(s.URL, "http://") + "/private:1"
	pulled, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	made, err := n.docker.ContainerCreate(t.Context(), &container.Config{Image: ref}, nil, nil, nil, "by-hand")
	if err != nil {
		t.Fatal(err)
	}
	n.until(10*time.Second, "the image of a container that docker has created is not pinned", func() bool { return n.pinned(ref) })
	n.proxy.reset()
	if !n.pinned(ref) {
		t.Error("it is not pinned any more")
	}
	n.proxy.mu.Lock()
	for call := range n.proxy.calls {
		if strings.Contains(call, "/containers/") {
			t.Errorf("a list of images calls %s", call)
		}
	}
	n.proxy.mu.Unlock()
	n.wantRefused(pulled.GetImageRef(), "keep-local-images")
	if err := n.rmi(ref); err == nil || n.status(ref) == "" {
		t.Errorf("removal of the last name of an image that a container uses: %v", err)
	}
	if err := n.docker.ContainerRemove(t.Context(), made.ID, container.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	n.until(10*time.Second, "the image is still pinned", func() bool { return !n.pinned(ref) })
	if err := n.docker.ImageTag(t.Context(), ref, "berth-pattern:1"); err != nil {
		t.Fatal(err)
	}
	n.wantRefused(pulled.GetImageRef(), "pinned-images")
	if err := n.rmi("berth-pattern:1"); err != nil {
		t.Error(err)
	}
	if err := n.rmi(pulled.GetImageRef()); err != nil {
		t.Error(err)
	}
	n.clean()
}
