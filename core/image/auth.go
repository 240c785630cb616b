package image

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config"
	"github.com/docker/docker/api/types/registry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// helperLimit is how long a credential helper may take.
const helperLimit = 15 * time.Second

// hubServer is what credentials for Docker Hub are kept under.
const hubServer = "https://index.docker.io/v1/"

// credentials returns what to show the registry of ref: what the kubelet has
// given or, if that is nothing, what Docker's own configuration has.
func (s *Service) credentials(ctx context.Context, ref string, given *runtimeapi.AuthConfig) (registry.AuthConfig, error) {
	auth, err := authConfig(given)
	if err != nil {
		return auth, err
	}
	server, err := serverOf(ref)
	if err != nil {
		return registry.AuthConfig{}, fmt.Errorf("image %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	switch {
	case auth == (registry.AuthConfig{}):
	case auth.ServerAddress != "" && hostOf(auth.ServerAddress) != hostOf(server):
		// As with containerd: what is one registry's secret is not shown to another.
		s.log.Warn("credentials are another registry's, pulling without", slog.String("image", ref), slog.String("registry", hostOf(auth.ServerAddress)))
		return registry.AuthConfig{}, nil
	default:
		// The containerd image store before Docker 25 takes those without an address for
		// Docker Hub's (daemon/containerd/resolver.go), and the kubelet gives none.
		auth.ServerAddress = cmp.Or(auth.ServerAddress, server)
		return auth, nil
	}
	// A helper is a program, which may hang; a pull without credentials is
	// better than none.
	found := make(chan registry.AuthConfig, 1)
	go func() { found <- s.nodeCredentials(server) }()
	select {
	case auth := <-found:
		return auth, nil
	case <-time.After(helperLimit):
		s.log.Warn("the credential helper does not answer, pulling without credentials", slog.String("registry", server))
		return registry.AuthConfig{}, nil
	case <-ctx.Done():
		return registry.AuthConfig{}, ctx.Err()
	}
}

// hostOf returns the host that a server address names. Docker Hub has several.
func hostOf(server string) string {
	if _, rest, ok := strings.Cut(server, "://"); ok {
		server = rest
	}
	host, _, _ := strings.Cut(server, "/")
	switch host {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	default:
		return host
	}
}

// nodeCredentials asks Docker's own configuration, with its helpers.
func (s *Service) nodeCredentials(server string) registry.AuthConfig {
	file, err := config.Load("")
	if err != nil {
		s.log.Warn("docker's own configuration cannot be read, pulling without credentials", slog.Any("err", err))
		return registry.AuthConfig{}
	}
	auth, err := file.GetAuthConfig(server)
	if err != nil {
		s.log.Warn("docker's own configuration has no usable credentials", slog.String("registry", server), slog.Any("err", err))
		return registry.AuthConfig{}
	}
	if auth.Username == "" && auth.IdentityToken == "" && auth.RegistryToken == "" && auth.Auth == "" {
		return registry.AuthConfig{}
	}
	return registry.AuthConfig{
		Username: auth.Username, Password: auth.Password, Auth: auth.Auth, ServerAddress: auth.ServerAddress,
		IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
	}
}

// serverOf returns what credentials for the registry of ref are kept under.
func serverOf(ref string) (string, error) {
	if isID(ref) {
		return "", fmt.Errorf("an image ID cannot be pulled")
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", err
	}
	if domain := reference.Domain(named); domain != "docker.io" {
		return domain, nil
	}
	return hubServer, nil
}

// authConfig says in the Engine's words what credentials the kubelet has given,
// in any of their forms.
func authConfig(given *runtimeapi.AuthConfig) (registry.AuthConfig, error) {
	auth := registry.AuthConfig{
		Username: given.GetUsername(), Password: given.GetPassword(),
		IdentityToken: given.GetIdentityToken(), RegistryToken: given.GetRegistryToken(),
	}
	if packed := given.GetAuth(); packed != "" && auth == (registry.AuthConfig{}) {
		text, err := base64.StdEncoding.DecodeString(packed)
		if err != nil {
			// Not with the error: it would quote what is a secret.
			return auth, fmt.Errorf("credentials: auth is not base64: %w", errdefs.ErrInvalidArgument)
		}
		user, password, ok := strings.Cut(string(text), ":")
		if !ok {
			return auth, fmt.Errorf("credentials: auth has no colon between user and password: %w", errdefs.ErrInvalidArgument)
		}
		auth.Username, auth.Password = user, strings.TrimRight(password, "\x00")
	}
	if auth == (registry.AuthConfig{}) {
		return auth, nil
	}
	auth.ServerAddress = given.GetServerAddress()
	switch strings.TrimSuffix(strings.TrimPrefix(auth.ServerAddress, "https://"), "/") {
	case "docker.io", "index.docker.io", "registry-1.docker.io", "index.docker.io/v1":
		auth.ServerAddress = hubServer
	}
	return auth, nil
}
