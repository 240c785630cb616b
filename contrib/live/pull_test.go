package live

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A shop is a registry that has one image, for those who show what it wants to see.
type shop struct {
	*httptest.Server
	wants   string // in the header Authorization
	refused atomic.Int64
	things  map[string][]byte // by path
	digest  string            // of the manifest
	seen    lockedBuffer      // method, path and Authorization of each request, a line each
}

func newShop(t *testing.T, wants string) *shop {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	// Different contents make different images.
	for _, err := range []error{w.WriteHeader(&tar.Header{Name: "for", Mode: 0o644, Size: int64(len(wants))}), second(w.Write([]byte(wants))), w.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	digest := func(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }
	config := fmt.Appendf(nil, `{"architecture": %q, "os": "linux", "config": {"Cmd": ["/none"]}, "rootfs": {"type": "layers", "diff_ids": [%q]}}`, runtime.GOARCH, digest(layer.Bytes()))
	const kind = "application/vnd.docker.distribution.manifest.v2+json"
	manifest := fmt.Appendf(nil, `{"schemaVersion": 2, "mediaType": %q,
		"config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": %d, "digest": %q},
		"layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar", "size": %d, "digest": %q}]}`,
		kind, len(config), digest(config), layer.Len(), digest(layer.Bytes()))
	s := &shop{wants: wants, things: map[string][]byte{
		"/v2/":                    nil,
		"/v2/private/manifests/1": manifest,
		"/v2/private/manifests/" + digest(manifest):  manifest,
		"/v2/private/blobs/" + digest(config):        config,
		"/v2/private/blobs/" + digest(layer.Bytes()): layer.Bytes(),
	}, digest: digest(manifest)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(&s.seen, "%s %s %s\n", r.Method, r.URL.Path, r.Header.Get("Authorization"))
		data, ok := s.things[r.URL.Path]
		switch {
		case r.Header.Get("Authorization") != s.wants:
			s.refused.Add(1)
			w.Header().Set("WWW-Authenticate", `Basic realm="shop"`)
			http.Error(w, `{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}`, http.StatusUnauthorized)
		case !ok:
			http.NotFound(w, r)
		default:
			w.Header().Set("Content-Type", "application/octet-stream")
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.Header().Set("Content-Type", kind)
				w.Header().Set("Docker-Content-Digest", digest(data))
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func second(_ int, err error) error { return err }

// TestPullsUseGivenCredentials pulls from registries that want a name and password, or a token.
func TestPullsUseGivenCredentials(t *testing.T) {
	n := newNode(t)
	basic := func(user, password string) string {
		return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	}
	const secret = "dont-tell-anybody"
	for name, tt := range map[string]struct {
		wants string
		auth  *runtimeapi.AuthConfig
		ok    bool
	}{
		"name and password":       {"Basic " + basic("me", secret), &runtimeapi.AuthConfig{Username: "me", Password: secret}, true},
		"both in one":             {"Basic " + basic("me", secret+"1"), &runtimeapi.AuthConfig{Auth: basic("me", secret+"1")}, true},
		"a wrong password":        {"Basic " + basic("me", secret+"2"), &runtimeapi.AuthConfig{Username: "me", Password: secret + "3"}, false},
		"nothing":                 {"Basic " + basic("me", secret+"4"), nil, false},
		"those of another server": {"Basic " + basic("me", secret+"5"), &runtimeapi.AuthConfig{Username: "me", Password: secret + "5", ServerAddress: "other.test"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t, tt.wants)
			ref := strings.TrimPrefix(s.URL, "http://") + "/private:1"
			r, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: tt.auth})
			if (err == nil) != tt.ok {
				t.Fatalf("%v, %v", r, err)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the error has the password: %v", err)
			}
			seen, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
			if err != nil || (seen.GetImage() != nil) != tt.ok {
				t.Fatalf("%v, %v", seen, err)
			}
			if !tt.ok {
				if s.refused.Load() == 0 {
					t.Error("the registry got no request")
				}
				return
			}
			if seen.GetImage().GetId() != r.GetImageRef() {
				t.Errorf("pulled %s, there is %s", r.GetImageRef(), seen.GetImage().GetId())
			}
			if _, err := n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: r.GetImageRef()}}); err != nil {
				t.Error(err)
			}
		})
	}
	for _, got := range []string{secret, basic("me", secret)} {
		if strings.Contains(n.log.String(), got) {
			t.Errorf("the log has %s", got)
		}
	}
}
