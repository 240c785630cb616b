package live

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	dockerimage "github.com/docker/docker/api/types/image"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// row returns the list entry of the image with the name, nil if there is none.
func (n *node) row(name string) *runtimeapi.Image {
	n.t.Helper()
	list, err := n.images.ListImages(n.t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, img := range list.GetImages() {
		if slices.Contains(img.GetRepoTags(), name) {
			return img
		}
	}
	return nil
}

// imageCalls returns the calls of Docker about images for a list and the status of an image, by name and by
// ID. ok is false if one of them fails, as right after the end of an event stream.
func (n *node) imageCalls() (calls string, ok bool) {
	n.t.Helper()
	n.proxy.reset()
	list, err := n.images.ListImages(n.t.Context(), &runtimeapi.ListImagesRequest{})
	ref := *image
	for range 2 {
		var got *runtimeapi.ImageStatusResponse
		if err == nil {
			got, err = n.images.ImageStatus(n.t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
			ref = got.GetImage().GetId()
		}
	}
	if status.Code(err) == codes.Unavailable {
		return "", false
	}
	if err != nil || !slices.ContainsFunc(list.GetImages(), func(i *runtimeapi.Image) bool { return i.GetId() == ref }) {
		n.t.Fatalf("%s (%s): %v, list %v", *image, ref, err, list)
	}
	n.proxy.mu.Lock()
	defer n.proxy.mu.Unlock()
	for call := range n.proxy.calls {
		if strings.Contains(call, "/images/") {
			calls += call + "\n"
		}
	}
	return calls, true
}

// untilImagesFromMemory waits until no call of Docker is needed.
func (n *node) untilImagesFromMemory() {
	n.t.Helper()
	n.until(30*time.Second, "images are not answered from memory", func() bool { calls, ok := n.imageCalls(); return ok && calls == "" })
}

// untilNamed waits until the list and the status of a name have the same image, "" for none.
func (n *node) untilNamed(id, name, after string) {
	n.t.Helper()
	begin := time.Now()
	n.until(5*time.Second, "after "+after+" the list or the status of "+name+" is wrong", func() bool {
		return n.row(name).GetId() == id && n.status(name) == id
	})
	n.t.Logf("%s: seen after %v", after, time.Since(begin).Round(time.Millisecond))
}

// dockerTag, dockerRemove and dockerPull change images without berthd.
func (n *node) dockerTag(source, name string) {
	n.t.Helper()
	if err := n.docker.ImageTag(n.t.Context(), source, name); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		_, _ = n.docker.ImageRemove(context.Background(), name, dockerimage.RemoveOptions{Force: true})
	})
}

func (n *node) dockerRemove(name string) {
	n.t.Helper()
	if _, err := n.docker.ImageRemove(n.t.Context(), name, dockerimage.RemoveOptions{PruneChildren: true}); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) dockerPull(ref string) {
	n.t.Helper()
	body, err := n.docker.ImagePull(n.t.Context(), ref, dockerimage.PullOptions{})
	if err == nil {
		_, err = io.Copy(io.Discard, body)
		err = errors.Join(err, body.Close())
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) inspect(ref string) dockerimage.InspectResponse {
	n.t.Helper()
	found, err := n.docker.ImageInspect(n.t.Context(), ref)
	if err != nil {
		n.t.Fatal(err)
	}
	return found
}

// TestImagesFromMemorySeeChangesOfOthers changes images with Docker's own client.
func TestImagesFromMemorySeeChangesOfOthers(t *testing.T) {
	n := newNode(t)
	n.untilImagesFromMemory()
	base := n.status(*image)
	n.dockerTag(*image, "berth-tag:1")
	n.untilNamed(base, "berth-tag:1", "docker tag")
	n.untilImagesFromMemory()
	n.dockerRemove("berth-tag:1")
	n.untilNamed("", "berth-tag:1", "docker rmi of a tag")

	n.build("berth-built:1", "FROM "+*image+"\nLABEL for=first\nUSER 7\n")
	first := n.inspect("berth-built:1").ID
	n.untilNamed(first, "berth-built:1", "docker build")
	if uid := n.row("berth-built:1").GetUid().GetValue(); uid != 7 {
		t.Errorf("UID %d, want 7", uid)
	}
	n.build("berth-built:1", "FROM "+*image+"\nLABEL for=second\nUSER 8\n")
	second := n.inspect("berth-built:1").ID
	n.untilNamed(second, "berth-built:1", "another docker build of the tag")
	if uid := n.row("berth-built:1").GetUid().GetValue(); uid != 8 {
		t.Errorf("UID %d, want 8", uid)
	}
	if _, err := n.docker.ImagesPrune(t.Context(), filters.NewArgs(filters.Arg("dangling", "true"))); err != nil {
		t.Fatal(err)
	}
	n.until(5*time.Second, "an image is listed after docker image prune", func() bool { return !n.listed(first) })

	archive, err := n.docker.ImageSave(t.Context(), []string{"berth-built:1"})
	if err != nil {
		t.Fatal(err)
	}
	saved, err := io.ReadAll(archive)
	if err := errors.Join(err, archive.Close()); err != nil {
		t.Fatal(err)
	}
	n.dockerRemove("berth-built:1")
	n.untilNamed("", "berth-built:1", "docker rmi of an image")
	loaded, err := n.docker.ImageLoad(t.Context(), strings.NewReader(string(saved)))
	if err == nil {
		_, err = io.Copy(io.Discard, loaded.Body)
		err = errors.Join(err, loaded.Body.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	n.untilNamed(n.inspect("berth-built:1").ID, "berth-built:1", "docker load")

	ref := strings.TrimPrefix(newShop(t, "").URL, "http://") + "/private:1"
	n.dockerPull(ref)
	n.untilNamed(n.inspect(ref).ID, ref, "docker pull")
	for _, digest := range n.row(ref).GetRepoDigests() {
		if n.status(digest) != n.status(ref) {
			t.Errorf("status of %s: %q", digest, n.status(digest))
		}
	}
	n.dockerRemove(ref)
	n.untilNamed("", ref, "docker rmi of a pulled image")
	n.untilImagesFromMemory()
	n.clean()
}

// TestImagesFromMemoryHaveOwnChanges pulls and removes through the CRI: the next answer has the change.
func TestImagesFromMemoryHaveOwnChanges(t *testing.T) {
	n := newNode(t)
	n.untilImagesFromMemory()
	ref := strings.TrimPrefix(newShop(t, "").URL, "http://") + "/private:1"
	for range 20 {
		pulled, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		if err != nil {
			t.Fatal(err)
		}
		if id := pulled.GetImageRef(); n.row(ref).GetId() != id || n.status(ref) != id || n.status(id) != id {
			t.Fatalf("after a pull: listed %q, status %q; want %q", n.row(ref).GetId(), n.status(ref), id)
		}
		remove := ref
		if n.status(ref) == pulled.GetImageRef() {
			remove = pulled.GetImageRef()
		}
		if err := n.rmi(remove); err != nil {
			t.Fatal(err)
		}
		if n.row(ref) != nil || n.status(ref) != "" || n.status(pulled.GetImageRef()) != "" {
			t.Fatalf("after the removal: listed %v, status %q", n.row(ref), n.status(ref))
		}
	}
	n.untilImagesFromMemory()
	n.clean()
}

// TestImagesFromMemoryWithoutEvents changes images while there is no event stream, and while Docker cannot be reached.
func TestImagesFromMemoryWithoutEvents(t *testing.T) {
	n := newNode(t)
	n.untilImagesFromMemory()
	base := n.status(*image)
	n.proxy.inject(&fault{path: endpoint("/events"), kind: faultHang})
	n.until(5*time.Second, "images are answered from memory without events", func() bool { calls, ok := n.imageCalls(); return ok && calls != "" })
	for range 10 {
		n.dockerTag(*image, "berth-tag:1")
		if n.row("berth-tag:1").GetId() != base || n.status("berth-tag:1") != base {
			t.Fatalf("a tag is missing: listed %v, status %q", n.row("berth-tag:1"), n.status("berth-tag:1"))
		}
		n.dockerRemove("berth-tag:1")
		if n.row("berth-tag:1") != nil || n.status("berth-tag:1") != "" {
			t.Fatalf("a name that was removed: listed %v, status %q", n.row("berth-tag:1"), n.status("berth-tag:1"))
		}
	}
	n.dockerTag(*image, "berth-tag:2")
	n.proxy.lift()
	n.untilImagesFromMemory()
	n.untilNamed(base, "berth-tag:2", "the return of the events")

	n.proxy.close()
	n.until(10*time.Second, "images are answered while Docker is away", func() bool {
		_, err := n.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
		return status.Code(err) == codes.Unavailable
	})
	n.dockerRemove("berth-tag:2")
	n.dockerTag(*image, "berth-tag:3")
	n.proxy.open()
	n.until(10*time.Second, "Docker is not found again", n.ready)
	if n.row("berth-tag:2") != nil || n.row("berth-tag:3").GetId() != base || n.status("berth-tag:2") != "" || n.status("berth-tag:3") != base {
		t.Errorf("listed %v and %v after Docker was away", n.row("berth-tag:2"), n.row("berth-tag:3"))
	}
	n.untilImagesFromMemory()
	n.clean()
}
