package live

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dockerimage "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/versions"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *shop) addr() string { return strings.TrimPrefix(s.URL, "http://") }

// pull pulls an image for a pod of a namespace.
func (n *node) pull(ref, namespace string, auth *runtimeapi.AuthConfig) (string, error) {
	pod := n.pod("web")
	pod.Metadata.Namespace = namespace
	r, err := n.images.PullImage(n.t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth, SandboxConfig: pod})
	return r.GetImageRef(), err
}

// names returns the tags and digests of an image.
func (n *node) names(ref string) (tags, digests []string) {
	n.t.Helper()
	got, err := n.images.ImageStatus(n.t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		n.t.Fatal(err)
	}
	return got.GetImage().GetRepoTags(), got.GetImage().GetRepoDigests()
}

// aliases returns how many names of images from mirrors berthd has on disk.
func (n *node) aliases() int {
	n.t.Helper()
	files, err := filepath.Glob(n.path("root", "berth", "v1", "mirrored-images", "*"))
	if err != nil {
		n.t.Fatal(err)
	}
	return len(files)
}

// hasStore reports whether the Engine has the containerd image store.
func (n *node) hasStore() bool {
	n.t.Helper()
	info, err := n.docker.Info(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return slices.ContainsFunc(info.DriverStatus, func(s [2]string) bool { return s[0] == "driver-type" && strings.HasPrefix(s[1], "io.containerd") })
}

// TestMirrors pulls from mirrors of registries that cannot be reached, that have the image, and that want credentials.
func TestMirrors(t *testing.T) {
	const user = "me:dont-tell-the-mirror"
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(user))
	auth := &runtimeapi.AuthConfig{Auth: base64.StdEncoding.EncodeToString([]byte(user))}
	good, closed, origin := newShop(t, ""), newShop(t, "Basic other"), newShop(t, basic)
	n := newNode(t, "--registry-mirrors", fmt.Sprintf("away.test=%s,%s=%s", good.addr(), origin.addr(), closed.addr()))

	const tag = "away.test/private:1"
	digest := "away.test/private@" + good.digest
	check := func(when, ref string, wantTags ...string) {
		t.Helper()
		tags, digests := n.names(ref)
		if fmt.Sprint(tags) != fmt.Sprint(wantTags) || fmt.Sprint(digests) != fmt.Sprint([]string{digest}) {
			t.Errorf("%s: tags %q, digests %q; want %q and %s", when, tags, digests, wantTags, digest)
		}
		list, err := n.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(list.GetImages(), func(i *runtimeapi.Image) bool { return fmt.Sprint(i.GetRepoDigests()) == fmt.Sprint([]string{digest}) }) {
			t.Errorf("%s: no image in the list has the digest that was requested: %v", when, list)
		}
	}
	id, err := n.pull(tag, "live", nil)
	if err != nil {
		t.Fatal(err)
	}
	check("pulled", tag, tag)
	check("by digest", digest, tag)
	local, err := n.docker.ImageInspect(t.Context(), id)
	if err != nil || slices.ContainsFunc(local.RepoTags, func(ref string) bool { return strings.HasPrefix(ref, good.addr()) && !strings.Contains(ref, "@") }) {
		t.Errorf("docker has tags %v, %v", local.RepoTags, err)
	}
	n.restart()
	n.waitReady(20 * time.Second)
	check("after a restart of berthd", digest, tag)

	pod := n.pod("from-mirror")
	sandbox, err := n.run(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	c := shell("c", "")
	c.Image = &runtimeapi.ImageSpec{Image: id, UserSpecifiedImage: tag}
	made, err := n.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: c, SandboxConfig: pod})
	if err != nil {
		t.Fatal(err)
	}
	seen, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: made.GetContainerId()})
	if err != nil || seen.GetStatus().GetImageRef() != digest {
		t.Errorf("container: %v, %v; want image_ref %s", seen.GetStatus().GetImageRef(), err, digest)
	}
	n.remove(sandbox)

	if err := n.rmi(id); err != nil || n.status(digest) != "" || n.aliases() != 0 {
		t.Errorf("removed: %v, found as %q, %d aliases on disk", err, n.status(digest), n.aliases())
	}
	if again, err := n.pull(digest, "live", nil); err != nil || again != id {
		t.Fatalf("by digest: %s, %v; want %s", again, err, id)
	}
	check("pulled by digest", digest)
	if _, err := n.docker.ImageRemove(t.Context(), id, dockerimage.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if n.listed(id) || n.aliases() != 0 {
		t.Errorf("removed in Docker: listed %v, %d aliases on disk", n.listed(id), n.aliases())
	}

	if _, err := n.pull("away.test/none:1", "live", nil); err == nil || !strings.Contains(err.Error(), "mirror "+good.addr()) || !strings.Contains(err.Error(), "RegistryUnavailable: ") {
		t.Errorf("neither has it: %v", err)
	}
	id, err = n.pull(origin.addr()+"/private:1", "live", auth)
	if err != nil {
		t.Fatalf("from the registry itself: %v", err)
	}
	if seen := closed.seen.String(); seen == "" || strings.Contains(seen, strings.TrimPrefix(basic, "Basic ")) {
		t.Errorf("requests to the mirror, which must not get the credentials for the registry:\n%s", seen)
	}
	if err := n.rmi(id); err != nil {
		t.Error(err)
	}
	n.clean()
}

// TestImageVerifiers pulls with a verifier that allows the pods of one namespace.
func TestImageVerifiers(t *testing.T) {
	s, private := newShop(t, ""), newShop(t, "Basic other")
	n := prepareNode(t)
	dir, out := n.path("verifiers"), n.path("out")
	script := fmt.Sprintf("#!/bin/sh\n{ echo \"$@\"; cat; echo; echo $BERTH_POD_NAMESPACE/$BERTH_POD_NAME; } >>%s\n[ $BERTH_POD_NAMESPACE = good ] || { echo not signed for $BERTH_POD_NAMESPACE; exit 1; }\n", out)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "check"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	n.flags = []string{"--image-verifier-dir", dir, "--registry-mirrors", "away.test=" + s.addr()}
	n.start()
	for _, ref := range []string{s.addr() + "/private:1", s.addr() + "/private@" + s.digest, "away.test/private:1", "away.test/private@" + s.digest} {
		t.Run(ref, func(t *testing.T) {
			if id, err := n.pull(ref, "bad", nil); err == nil || !strings.Contains(err.Error(), `SignatureValidationFailed: image "`+ref+`"`) || !strings.Contains(err.Error(), "not signed for bad") {
				t.Errorf("not allowed: %s, %v", id, err)
			}
			if n.status(ref) != "" {
				t.Error("the image is on the node")
			}
			id, err := n.pull(ref, "good", nil)
			if err != nil || id == "" || n.status(ref) != id {
				t.Fatalf("allowed: %s, %v; found as %q", id, err, n.status(ref))
			}
			if again, err := n.pull(ref, "good", nil); err != nil || again != id {
				t.Errorf("again: %s, %v", again, err)
			}
			if _, err := n.pull(ref, "bad", nil); err == nil {
				t.Error("not called because another namespace has pulled the image")
			}
			text, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"-name " + ref + " -digest " + s.digest + " -stdin-media-type application/vnd.oci.descriptor.v1+json\n", `"digest":"` + s.digest + `"`, "\ngood/web\n"} {
				if !strings.Contains(string(text), want) {
					t.Errorf("the verifier was not given %q: %s", want, text)
				}
			}
			if err := n.rmi(id); err != nil || n.aliases() != 0 {
				t.Errorf("removal: %v, %d aliases on disk", err, n.aliases())
			}
		})
	}
	if _, err := n.pull(s.addr()+"/none:1", "good", nil); codeOf(err) != codes.NotFound {
		t.Errorf("an image that does not exist: %v, want NotFound", err)
	}
	if _, err := n.pull(private.addr()+"/private:1", "good", nil); codeOf(err) != codes.Unknown || strings.Contains(err.Error(), "RegistryUnavailable") {
		t.Errorf("without credentials: %v", err)
	}
	private.Close()
	if _, err := n.pull(private.addr()+"/private:1", "good", nil); err == nil || !strings.Contains(err.Error(), "RegistryUnavailable: ") {
		t.Errorf("a registry that is not there: %v", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // what is tested
		t.Fatal(err)
	}
	if _, err := n.pull(s.addr()+"/private:1", "good", nil); err == nil || !strings.Contains(err.Error(), "SignatureValidationFailed: ") {
		t.Errorf("anybody can add a verifier: %v", err)
	}
	n.clean()
}

// TestHostsTOML pulls with a mirror that only Docker knows: Docker >= 28 with the containerd image
// store reads it, others do not.
func TestHostsTOML(t *testing.T) {
	n := newNode(t)
	s := newShop(t, "")
	dir := "/etc/docker/certs.d/away.test"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	text := fmt.Sprintf("server = \"https://away.test\"\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", s.URL)
	if err := os.WriteFile(dir+"/hosts.toml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	version, err := n.docker.ServerVersion(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reads := versions.GreaterThanOrEqualTo(version.APIVersion, "1.48") && n.hasStore()
	id, err := n.pull("away.test/private:1", "live", nil)
	if (err == nil) != reads {
		t.Fatalf("Docker %s, containerd image store %v: %v; requests to the mirror:\n%s", version.Version, n.hasStore(), err, s.seen.String())
	}
	if !reads {
		if s.seen.String() != "" {
			t.Errorf("requests to the mirror: %s", s.seen.String())
		}
		return
	}
	if tags, digests := n.names(id); fmt.Sprint(tags) != "[away.test/private:1]" || fmt.Sprint(digests) != "[away.test/private@"+s.digest+"]" {
		t.Errorf("tags %q, digests %q", tags, digests)
	}
	if err := n.rmi(id); err != nil {
		t.Error(err)
	}
	n.clean()
}
