package live

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/image/pullprogress"
)

// slowRegistry returns the name of an image in a registry that sends each layer over that time. The image
// is new with each call.
func slowRegistry(t *testing.T, layers int, size int, each time.Duration) string {
	t.Helper()
	digest := func(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }
	const kind = "application/vnd.docker.distribution.manifest.v2+json"
	files, slow := map[string][]byte{}, map[string]bool{}
	var descriptors, ids []string
	for i := range layers {
		content := make([]byte, size)
		_, _ = rand.Read(content)
		var layer bytes.Buffer
		w := tar.NewWriter(&layer)
		for _, err := range []error{w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Mode: 0o644, Size: int64(size)}), second(w.Write(content)), w.Close()} {
			if err != nil {
				t.Fatal(err)
			}
		}
		path := "/v2/slow/blobs/" + digest(layer.Bytes())
		files[path], slow[path] = layer.Bytes(), true
		descriptors = append(descriptors, fmt.Sprintf(`{"mediaType": "application/vnd.docker.image.rootfs.diff.tar", "size": %d, "digest": %q}`, layer.Len(), digest(layer.Bytes())))
		ids = append(ids, fmt.Sprintf("%q", digest(layer.Bytes())))
	}
	config := fmt.Appendf(nil, `{"architecture": %q, "os": "linux", "config": {"Cmd": ["/none"]}, "rootfs": {"type": "layers", "diff_ids": [%s]}}`, runtime.GOARCH, strings.Join(ids, ","))
	manifest := fmt.Appendf(nil, `{"schemaVersion": 2, "mediaType": %q, "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": %d, "digest": %q}, "layers": [%s]}`,
		kind, len(config), digest(config), strings.Join(descriptors, ","))
	files["/v2/"], files["/v2/slow/manifests/1"], files["/v2/slow/manifests/"+digest(manifest)], files["/v2/slow/blobs/"+digest(config)] = nil, manifest, manifest, config
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", kind)
			w.Header().Set("Docker-Content-Digest", digest(data))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		if r.Method == http.MethodHead || !slow[r.URL.Path] {
			_, _ = w.Write(data)
			return
		}
		const steps = 40
		for i := range steps {
			if _, err := w.Write(data[len(data)*i/steps : len(data)*(i+1)/steps]); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(each / steps):
			}
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://") + "/slow:1"
}

// pulls runs the command berthd pulls.
func (n *node) pulls(flags ...string) string {
	n.t.Helper()
	out, err := exec.Command(*program, append([]string{"pulls", "--run-dir", n.path("run")}, flags...)...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("berthd pulls: %v\n%s", err, out)
	}
	return string(out)
}

// TestPullProgressIsShown pulls an image from a slow registry: it is in the log, in berthd pulls and in the
// error of a caller whose deadline passes.
func TestPullProgressIsShown(t *testing.T) {
	const layers, size = 3, 4 << 20
	n := newNode(t)
	ref := slowRegistry(t, layers, size, 13*time.Second)
	if info, err := os.Stat(n.path("run", "debug.sock")); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("debug socket: %v, %v", info, err)
	}
	if got := n.pulls(); got != "no image is being pulled\n" {
		t.Errorf("without a pull: %q", got)
	}
	pull := func(ctx context.Context) error {
		_, err := n.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, SandboxConfig: n.pod("puller")})
		return err
	}
	done := make(chan error, 1)
	go func() { done <- pull(t.Context()) }()
	expired, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	err := pull(expired)
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a caller whose deadline has passed: %v, want DeadlineExceeded", err)
	}
	// The client may give up a moment before berthd responds to it, which then sees it cancel; the log has
	// the response.
	n.until(5*time.Second, "the error does not say how far the pull was", func() bool {
		return strings.Contains(n.log.String(), ": 0 of 3 layers, ")
	})
	// The containerd image store reports bytes a few seconds late.
	var got pullprogress.Status
	n.until(10*time.Second, "no byte has arrived", func() bool {
		var list []pullprogress.Status
		if err := json.Unmarshal([]byte(n.pulls("--json")), &list); err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v; want one pull", list, err)
		}
		got = list[0]
		return got.TotalBytes >= layers*size
	})
	if got.Image != ref || got.Layers != layers || got.LayersDone != 0 || got.Callers != 1 || len(got.Pods) != 1 || got.Pods[0].Name != "puller" || got.State != pullprogress.Downloading ||
		got.Bytes <= 0 || got.Bytes > got.TotalBytes || got.TotalBytes > 2*layers*size || got.TotalIsMinimum || got.BytesPerSecond <= 0 {
		t.Errorf("%+v", got)
	}
	t.Logf("\n%s", n.pulls())
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := n.pulls(); got != "no image is being pulled\n" {
		t.Errorf("after the pull: %q", got)
	}
	lines := 0
	for line := range strings.SplitSeq(n.log.String(), "\n") {
		if strings.Contains(line, "image pull in progress") {
			t.Log(line)
			lines++
		}
		if strings.Contains(line, ": 0 of 3 layers, ") {
			t.Log(line)
		}
	}
	if lines == 0 {
		t.Error("no line in the log after 10s")
	}
	if _, err := n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Error(err)
	}

	// The socket of a berthd that was killed is replaced, and a stop removes it.
	n.kill()
	if out, err := exec.Command(*program, "pulls", "--run-dir", n.path("run")).CombinedOutput(); err == nil || !strings.Contains(string(out), "berthd is not running") {
		t.Errorf("without a daemon: %v, %s", err, out)
	}
	n.start()
	if got := n.pulls(); got != "no image is being pulled\n" {
		t.Errorf("after a crash: %q", got)
	}
	_ = n.cmd.Process.Signal(os.Interrupt)
	<-n.done
	if _, err := os.Lstat(n.path("run", "debug.sock")); !os.IsNotExist(err) {
		t.Errorf("after a stop the socket is still there: %v", err)
	}
}
