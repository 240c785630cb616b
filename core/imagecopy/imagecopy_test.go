package imagecopy_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth/core/containerd"
	"berth/core/containerd/containerdtest"
	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/imagecopy"
)

const namespace = containerd.KubernetesNamespace

// newCopier returns a copier between a fake Engine and a fake containerd.
func newCopier(t *testing.T, e *enginetest.Engine, s *containerdtest.Server, to bool) (*imagecopy.Copier, *engine.Conn) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	docker, err := engine.New(engine.Config{Host: e.Host}, log)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := docker.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	client, _, err := containerd.Dial(t.Context(), s.Address, namespace)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return imagecopy.New(imagecopy.Config{Docker: conn, Containerd: client, Address: s.Address, To: to, Log: log}), conn
}

// load loads an image with one layer into Docker and returns its ID.
func load(t *testing.T, conn *engine.Conn, layer string, tags ...string) string {
	t.Helper()
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest.FromString(layer).String()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": tags, "Layers": []string{"l/layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, text := range map[string]string{"config.json": string(config), "manifest.json": string(manifest), "l/layer.tar": layer} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	resp, err := conn.ImageLoad(t.Context(), &archive)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return digest.FromBytes(config).String()
}

// run copies the selected images and returns the last report of each.
func run(ctx context.Context, t *testing.T, c *imagecopy.Copier, patterns ...string) (reports []imagecopy.Report, err error) {
	t.Helper()
	images, err := c.Select(ctx, patterns, false)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Run(ctx, images, false, func(r imagecopy.Report) {
		if r.Result != "" {
			reports = append(reports, r)
		}
	})
	return reports, err
}

// wantResult wants one report with that result.
func wantResult(t *testing.T, reports []imagecopy.Report, want imagecopy.Result) {
	t.Helper()
	if len(reports) != 1 || reports[0].Result != want {
		t.Errorf("reports %+v, want one that is %s", reports, want)
	}
}

func TestImageIsCopiedToContainerdAndBack(t *testing.T) {
	t.Parallel()
	e, s := enginetest.New(t), containerdtest.Start(t)
	c, conn := newCopier(t, e, s, true)
	id := load(t, conn, "layer", "app:1", "registry.example.com/team/app:v2")
	reports, err := run(t.Context(), t, c)
	if err != nil {
		t.Fatal(err)
	}
	wantResult(t, reports, imagecopy.Copied)
	if got, want := s.ImageNames(namespace), []string{"docker.io/library/app:1", "registry.example.com/team/app:v2", id}; !slices.Equal(got, want) {
		t.Errorf("names in containerd %q, want %q", got, want)
	}
	if s.Leases(namespace) != 0 || s.Blobs(namespace) != 3 {
		t.Errorf("%d leases and %d blobs, want 0 and 3", s.Leases(namespace), s.Blobs(namespace))
	}
	reports, _ = run(t.Context(), t, c)
	wantResult(t, reports, imagecopy.Present)

	other := enginetest.New(t)
	back, otherConn := newCopier(t, other, s, false)
	reports, err = run(t.Context(), t, back)
	if err != nil {
		t.Fatal(err)
	}
	wantResult(t, reports, imagecopy.Copied)
	for _, name := range []string{"app:1", "registry.example.com/team/app:v2"} {
		if found, err := otherConn.ImageInspect(t.Context(), name); err != nil || found.ID != id {
			t.Errorf("%s in docker: %s, %v; want %s", name, found.ID, err, id)
		}
	}
	reports, _ = run(t.Context(), t, back)
	wantResult(t, reports, imagecopy.Present)
}

func TestNameIsAddedWithoutTransfer(t *testing.T) {
	t.Parallel()
	e, s := enginetest.New(t), containerdtest.Start(t)
	c, conn := newCopier(t, e, s, true)
	load(t, conn, "layer", "app:1")
	if _, err := run(t.Context(), t, c); err != nil {
		t.Fatal(err)
	}
	if err := conn.ImageTag(t.Context(), "app:1", "app:2"); err != nil {
		t.Fatal(err)
	}
	reports, err := run(t.Context(), t, c)
	if err != nil {
		t.Fatal(err)
	}
	wantResult(t, reports, imagecopy.Named)
	if !slices.Contains(s.ImageNames(namespace), "docker.io/library/app:2") {
		t.Errorf("names in containerd %q", s.ImageNames(namespace))
	}
}

func TestFullDiskEndsTheCopyAndLeavesNothing(t *testing.T) {
	t.Parallel()
	e, s := enginetest.New(t), containerdtest.Start(t)
	c, conn := newCopier(t, e, s, true)
	load(t, conn, "one", "one:1")
	load(t, conn, "two", "two:1")
	s.FailWrites(status.Error(codes.Unknown, "write /var/lib/containerd/data: "+unix.ENOSPC.Error()))
	reports, err := run(t.Context(), t, c)
	if err == nil || len(reports) != 1 || !imagecopy.IsDiskFull(reports[0].Err) {
		t.Errorf("%+v, %v; want a failure of the first image only", reports, err)
	}
	if s.Blobs(namespace)+s.Leases(namespace)+len(s.ImageNames(namespace)) != 0 {
		t.Errorf("left: %d blobs, %d leases, names %q", s.Blobs(namespace), s.Leases(namespace), s.ImageNames(namespace))
	}
	s.FailWrites(nil)
	if reports, err := run(t.Context(), t, c); err != nil || len(reports) != 2 || reports[1].Result != imagecopy.Copied {
		t.Errorf("repeated: %+v, %v", reports, err)
	}
}

func TestImageWithoutLayersInContainerdIsAFailure(t *testing.T) {
	t.Parallel()
	e, s := enginetest.New(t), containerdtest.Start(t)
	c, conn := newCopier(t, e, s, true)
	load(t, conn, "layer", "app:1")
	if _, err := run(t.Context(), t, c); err != nil {
		t.Fatal(err)
	}
	s.DeleteBlob(digest.FromString("layer"))
	back, _ := newCopier(t, enginetest.New(t), s, false)
	reports, err := run(t.Context(), t, back)
	if err != nil {
		t.Fatal(err)
	}
	wantResult(t, reports, imagecopy.Failed)
}

func TestSelect(t *testing.T) {
	t.Parallel()
	e, s := enginetest.New(t), containerdtest.Start(t)
	e.AddImage(enginetest.Image{}, "app:1")
	e.AddImage(enginetest.Image{}, "registry.example.com/web:2")
	e.AddImage(enginetest.Image{}) // no name
	c, _ := newCopier(t, e, s, true)
	for _, test := range []struct {
		pattern string
		want    int
	}{
		{"app:1", 1}, {"docker.io/library/app:1", 1}, {"registry.example.com/*", 1}, {"*", 1}, {"registry.example.com/web:2", 1},
	} {
		images, err := c.Select(t.Context(), []string{test.pattern}, false)
		if err != nil || len(images) != test.want {
			t.Errorf("%s selects %v, %v; want %d", test.pattern, images, err, test.want)
		}
	}
	if all, err := c.Select(t.Context(), nil, false); err != nil || len(all) != 2 {
		t.Errorf("without patterns: %v, %v; want 2 images", all, err)
	}
	if used, err := c.Select(t.Context(), nil, true); err != nil || len(used) != 0 {
		t.Errorf("used images: %v, %v; want none", used, err)
	}
	if _, err := c.Select(t.Context(), []string{"app:2"}, false); !errdefs.IsNotFound(err) {
		t.Errorf("a pattern that matches nothing: %v, want NotFound", err)
	}
}
