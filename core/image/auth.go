package image

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	helper "github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
	"github.com/docker/docker/api/types/registry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// helperTimeout is how long a pull waits for a credential helper before it goes on without.
const helperTimeout = 15 * time.Second

// hubServer is what credentials for Docker Hub are kept under.
const hubServer = "https://index.docker.io/v1/"

// credentials returns what to show the registry of ref: what the kubelet has given or, if
// that is nothing and node is set, what root's Docker configuration on this node has.
func (s *Service) credentials(ctx context.Context, ref string, given *runtimeapi.AuthConfig, node bool) (registry.AuthConfig, error) {
	auth, err := authConfig(given)
	if err != nil {
		return auth, err
	}
	server, err := serverOf(ref)
	if err != nil {
		return registry.AuthConfig{}, fmt.Errorf("image %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	switch {
	case auth == (registry.AuthConfig{}) && node:
		return s.nodeCredentials(ctx, server)
	case auth == (registry.AuthConfig{}):
		return auth, nil
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

// nodeCredentials returns what Docker's configuration on this node has for a server, from
// its file or from a credential helper. Without usable credentials it returns none, with
// a warning: a pull without them may still work. The error is that of ctx.
func (s *Service) nodeCredentials(ctx context.Context, server string) (registry.AuthConfig, error) {
	limited, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	// One helper at a time for each server: a helper that hangs is started again by each
	// retry of the kubelet.
	done, err := s.helpers.Lock(limited, server)
	var auth types.AuthConfig
	if err == nil {
		defer done()
		auth, err = readCredentials(limited, server)
	}
	switch {
	case ctx.Err() != nil:
		return registry.AuthConfig{}, ctx.Err()
	case err != nil:
		s.log.Warn("no usable credentials in docker's configuration, pulling without", slog.String("registry", server), slog.Any("err", err))
		return registry.AuthConfig{}, nil
	case auth.Username == "" && auth.IdentityToken == "" && auth.RegistryToken == "" && auth.Auth == "":
		return registry.AuthConfig{}, nil
	}
	return registry.AuthConfig{
		Username: auth.Username, Password: auth.Password, Auth: auth.Auth, ServerAddress: auth.ServerAddress,
		IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
	}, nil
}

// readCredentials is configfile.GetAuthConfig, but a credential helper ends with ctx.
func readCredentials(ctx context.Context, server string) (types.AuthConfig, error) {
	file, err := config.Load("")
	if err != nil {
		return types.AuthConfig{}, err
	}
	name, ok := file.CredentialHelpers[server]
	if !ok {
		name = file.CredentialsStore
	}
	// Without them it reads the file and the environment, and starts no program.
	file.CredentialHelpers, file.CredentialsStore = nil, ""
	auth, err := file.GetAuthConfig(server)
	if name == "" || os.Getenv(configfile.DockerEnvConfigKey) != "" && auth.Username != "" {
		return auth, err
	}
	found, err := helper.Get(func(args ...string) helper.Program { return newHelperProgram(ctx, name, args) }, server)
	switch {
	case ctx.Err() != nil:
		return types.AuthConfig{}, fmt.Errorf("credential helper %s: %w", name, ctx.Err())
	case credentials.IsErrCredentialsNotFound(err):
		return types.AuthConfig{}, nil
	case err != nil:
		return types.AuthConfig{}, fmt.Errorf("credential helper %s: %w", name, err)
	case found.Username == tokenUser:
		return types.AuthConfig{IdentityToken: found.Secret, ServerAddress: server}, nil
	}
	return types.AuthConfig{Username: found.Username, Password: found.Secret, ServerAddress: server}, nil
}

// tokenUser is what a helper calls the user of an identity token
// (docker/cli/cli/config/credentials/native_store.go).
const tokenUser = "<token>"

// A helperProgram is a credential helper that is killed, with all that it has started, when
// its context ends.
type helperProgram struct{ *exec.Cmd }

func newHelperProgram(ctx context.Context, name string, args []string) helperProgram {
	cmd := exec.CommandContext(ctx, "docker-credential-"+name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for a process that has left the group with the output open
	return helperProgram{cmd}
}

// Input sets what the helper reads.
func (p helperProgram) Input(r io.Reader) { p.Stdin = r }

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
