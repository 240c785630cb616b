package registryauth

import (
	"encoding/base64"
	"log/slog"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/registry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCredentialsAreForTheirRegistryOnly(t *testing.T) {
	r := &Resolver{Log: slog.New(slog.DiscardHandler)}
	for _, tt := range []struct {
		ref, server string
		shown       bool
	}{
		{"r.test/a:1", "r.test", true},
		{"r.test/a:1", "https://r.test/v2/", true},
		{"r.test:5000/a:1", "r.test:5000", true},
		{"r.test/a:1", "", true},
		{"busybox", "https://index.docker.io/v1/", true},
		{"busybox", "docker.io", true},
		{"r.test/a:1", "other.test", false},
		{"busybox", "r.test", false},
	} {
		got, err := r.Credentials(t.Context(), tt.ref, &runtimeapi.AuthConfig{Username: "u", Password: "p", ServerAddress: tt.server}, true)
		if err != nil || (got.Username == "u") != tt.shown {
			t.Errorf("%s with credentials of %q: shown %v, %v; want %v", tt.ref, tt.server, got.Username == "u", err, tt.shown)
		}
	}
}

func TestAuthInEveryForm(t *testing.T) {
	packed := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for name, tt := range map[string]struct {
		given *runtimeapi.AuthConfig
		want  registry.AuthConfig
	}{
		"none":              {nil, registry.AuthConfig{}},
		"an address alone":  {&runtimeapi.AuthConfig{ServerAddress: "r.io"}, registry.AuthConfig{}},
		"user and password": {&runtimeapi.AuthConfig{Username: "u", Password: "p", ServerAddress: "r.io"}, registry.AuthConfig{Username: "u", Password: "p", ServerAddress: "r.io"}},
		"packed":            {&runtimeapi.AuthConfig{Auth: packed("u:p:with:colons")}, registry.AuthConfig{Username: "u", Password: "p:with:colons"}},
		"packed, with NULs": {&runtimeapi.AuthConfig{Auth: packed("u:p\x00\x00")}, registry.AuthConfig{Username: "u", Password: "p"}},
		"identity token":    {&runtimeapi.AuthConfig{IdentityToken: "t"}, registry.AuthConfig{IdentityToken: "t"}},
		"registry token":    {&runtimeapi.AuthConfig{RegistryToken: "t"}, registry.AuthConfig{RegistryToken: "t"}},
		"Docker Hub":        {&runtimeapi.AuthConfig{Username: "u", Password: "p", ServerAddress: "https://docker.io/"}, registry.AuthConfig{Username: "u", Password: "p", ServerAddress: hubServer}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := authConfig(tt.given); err != nil || got != tt.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
	for _, bad := range []string{"%%%", packed("no-colon-secret")} {
		_, err := authConfig(&runtimeapi.AuthConfig{Auth: bad})
		if !errdefs.IsInvalidArgument(err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, want an invalid argument that quotes no secret", bad, err)
		}
	}
}

func TestServerKey(t *testing.T) {
	for ref, want := range map[string]string{
		"busybox": hubServer, "docker.io/library/busybox:1": hubServer, "r.io:5000/a/b@sha256:" + strings.Repeat("a", 64): "r.io:5000", "localhost/x": "localhost",
	} {
		if got, err := serverKey(ref); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", ref, got, err, want)
		}
	}
	for _, bad := range []string{"UPPER", "a b"} {
		if got, err := serverKey(bad); err == nil {
			t.Errorf("%s: %q, want an error", bad, got)
		}
	}
}
