package live

import (
	"context"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	dockerimage "github.com/docker/docker/api/types/image"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// status returns the ID of the image that ref names, "" if there is none.
func (n *node) status(ref string) string {
	n.t.Helper()
	got, err := n.images.ImageStatus(n.t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		n.t.Fatalf("status of %s: %v", ref, err)
	}
	return got.GetImage().GetId()
}

// rmi removes an image.
func (n *node) rmi(ref string) error {
	_, err := n.images.RemoveImage(n.t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return err
}

// listed reports whether an image is in the list.
func (n *node) listed(id string) bool {
	n.t.Helper()
	list, err := n.images.ListImages(n.t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, img := range list.GetImages() {
		if img.GetId() == id {
			return true
		}
	}
	return false
}

// TestRemoveImageWithChildren removes images that Docker refuses to remove by their IDs.
func TestRemoveImageWithChildren(t *testing.T) {
	n := newNode(t, "--keep-local-images=false")
	commit := func(from, to string) string {
		t.Helper()
		made, err := n.docker.ContainerCreate(t.Context(), &container.Config{Image: from, Cmd: []string{"true"}, Labels: map[string]string{"for": to}}, nil, nil, nil, "")
		if err != nil {
			t.Fatal(err)
		}
		defer n.docker.ContainerRemove(t.Context(), made.ID, container.RemoveOptions{Force: true})
		got, err := n.docker.ContainerCommit(t.Context(), made.ID, container.CommitOptions{Reference: to})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			n.docker.ImageRemove(context.Background(), to, dockerimage.RemoveOptions{Force: true, PruneChildren: true})
		})
		return got.ID
	}
	start := func(image string) string {
		t.Helper()
		made, err := n.docker.ContainerCreate(t.Context(), &container.Config{Image: image, Cmd: []string{"sleep", "1000"}}, &container.HostConfig{NetworkMode: "none"}, nil, nil, "")
		if err == nil {
			err = n.docker.ContainerStart(t.Context(), made.ID, container.StartOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		return made.ID
	}
	remove := func(id string) { _ = n.docker.ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}) }
	for name, spell := range map[string]func(id string) string{
		"by name":            func(string) string { return "base:1" },
		"by its other name":  func(string) string { return "docker.io/other/base:2" },
		"by ID":              func(id string) string { return id },
		"by digits":          func(id string) string { return strings.TrimPrefix(id, "sha256:") },
		"as docker prints":   func(id string) string { return strings.TrimPrefix(id, "sha256:")[:12] },
		"as crictl prints":   func(id string) string { return strings.TrimPrefix(id, "sha256:")[:13] },
		"short, with sha256": func(id string) string { return id[:len("sha256:")+12] },
	} {
		t.Run(name, func(t *testing.T) {
			base := commit(*image, "base:1")
			if err := n.docker.ImageTag(t.Context(), base, "other/base:2"); err != nil {
				t.Fatal(err)
			}
			child := commit("base:1", "child:1")
			id := start("child:1")
			defer remove(id)
			for range 2 {
				if err := n.rmi(spell(base)); err != nil {
					t.Fatal(err)
				}
			}
			if n.listed(base) || !n.listed(child) {
				t.Errorf("listed: base %v, child %v; want the child alone", n.listed(base), n.listed(child))
			}
			if n.status("base:1") != "" || n.status("other/base:2") != "" {
				t.Error("it has names left")
			}
			remove(id)
			if err := n.rmi("child:1"); err != nil || n.status(child) != "" || n.status(base) != "" {
				t.Errorf("removal of the child: %v; child %q, base %q left", err, n.status(child), n.status(base))
			}
		})
	}
	t.Run("a container runs in it", func(t *testing.T) {
		base := commit(*image, "base:1")
		commit("base:1", "child:1")
		id := start("base:1")
		defer remove(id)
		if err := n.rmi(base); err == nil || n.status("base:1") != base {
			t.Errorf("removed: %v", err)
		}
	})
	n.clean()
}

// TestImagesAreFoundByShortID finds images as docker and crictl print their IDs.
func TestImagesAreFoundByShortID(t *testing.T) {
	n := newNode(t)
	id := n.status(*image)
	digits := strings.TrimPrefix(id, "sha256:")
	for ref, want := range map[string]string{
		digits[:12]: id, digits[:13]: id, digits[:63]: id, digits: id,
		digits[:11]: "", digits[:4]: "", digits[:12] + ":latest": "", "docker.io/library/" + digits[:12]: "",
		"sha256:" + digits[:12]: "", "sha256:" + digits[:63]: "", "sha256:" + digits[:4]: "",
	} {
		if got := n.status(ref); got != want {
			t.Errorf("%s is %q, want %q", ref, got, want)
		}
	}
	for _, ref := range []string{digits[:4], digits[:11], "sha256:" + digits[:4], ""} {
		if err := n.rmi(ref); err == nil {
			t.Errorf("removal of %q is answered with success", ref)
		}
	}
	if n.status(*image) != id {
		t.Fatal("it was removed")
	}
	// A name goes before.
	n.build(digits[:12], "FROM "+*image+"\nLABEL a=b")
	if got := n.status(digits[:12]); got == id || got == "" {
		t.Errorf("an image called by the digits of another is %q", got)
	}
}

// TestBuiltInPauseImageIsKnownByItsContent has another image under its name.
func TestBuiltInPauseImageIsKnownByItsContent(t *testing.T) {
	n := newNode(t)
	const ref = "berth.local/pause:1"
	run := func(name string) string {
		t.Helper()
		pod, err := n.run(t.Context(), n.pod(name))
		if err != nil {
			t.Fatal(err)
		}
		defer n.remove(pod)
		seen, err := n.docker.ContainerInspect(t.Context(), pod)
		if err != nil {
			t.Fatal(err)
		}
		return seen.Image
	}
	genuine := run("first")
	n.kill()
	if err := n.docker.ImageTag(t.Context(), *image, ref); err != nil {
		t.Fatal(err)
	}
	n.start()
	if got := run("second"); got != genuine || n.status(ref) != genuine {
		t.Errorf("sandboxes run %s, %s is %s; want %s", got, ref, n.status(ref), genuine)
	}
	n.kill()
	n.start()
	n.proxy.reset()
	if got := run("third"); got != genuine {
		t.Errorf("sandboxes run %s, want %s", got, genuine)
	}
	n.proxy.mu.Lock()
	defer n.proxy.mu.Unlock()
	for call := range n.proxy.calls {
		if strings.Contains(call, "/images/load") {
			t.Error("the genuine one is loaded again")
		}
	}
	n.removeLeftovers()
}
