// Package registryauth chooses the credentials for a registry: those that the kubelet sends with a
// pull or, if it is allowed, those in root's Docker configuration on the node. Credentials are
// never sent to another registry than their own and never appear in errors or logs.
package registryauth

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

	"berth/core/kmutex"
)

// credentialHelperTimeout is how long a pull waits for a credential helper before it
// continues without credentials.
const credentialHelperTimeout = 15 * time.Second

// hubServer is the key of credentials for Docker Hub in Docker's configuration.
const hubServer = "https://index.docker.io/v1/"

// A Resolver finds credentials. Its methods may be called concurrently.
type Resolver struct {
	Log *slog.Logger

	helpers kmutex.Mutex // by server
}

// Credentials returns the credentials for the registry of ref: those of the kubelet or, if it
// sent none and node is set, those in root's Docker configuration on the node.
func (r *Resolver) Credentials(ctx context.Context, ref string, given *runtimeapi.AuthConfig, node bool) (registry.AuthConfig, error) {
	auth, err := authConfig(given)
	if err != nil {
		return auth, err
	}
	server, err := serverKey(ref)
	if err != nil {
		return registry.AuthConfig{}, fmt.Errorf("image %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	switch {
	case auth == (registry.AuthConfig{}) && node:
		return r.nodeCredentials(ctx, server)
	case auth == (registry.AuthConfig{}):
		return auth, nil
	case auth.ServerAddress != "" && hostOf(auth.ServerAddress) != hostOf(server):
		// As in containerd, credentials are never sent to another registry.
		r.Log.Warn("credentials are for another registry, pulling without credentials", slog.String("image", ref), slog.String("registry", hostOf(auth.ServerAddress)))
		return registry.AuthConfig{}, nil
	default:
		// The containerd image store of Docker before 25 uses credentials without an address
		// for Docker Hub only (daemon/containerd/resolver.go), and the kubelet sends none.
		auth.ServerAddress = cmp.Or(auth.ServerAddress, server)
		return auth, nil
	}
}

// hostOf returns the host in a server address, and "docker.io" for all hosts of Docker Hub.
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

// nodeCredentials returns the credentials for a server in Docker's configuration on the
// node: from its file or from a credential helper. If they cannot be read it logs a warning
// and returns none, because the pull may succeed without. The error is that of ctx.
func (r *Resolver) nodeCredentials(ctx context.Context, server string) (registry.AuthConfig, error) {
	bounded, cancel := context.WithTimeout(ctx, credentialHelperTimeout)
	defer cancel()
	// One helper at a time for each server, or each retry of the kubelet would start another
	// one while the first hangs.
	unlock, err := r.helpers.Lock(bounded, server)
	var auth types.AuthConfig
	if err == nil {
		defer unlock()
		auth, err = readCredentials(bounded, server)
	}
	switch {
	case ctx.Err() != nil:
		return registry.AuthConfig{}, ctx.Err()
	case err != nil:
		r.Log.Warn("credentials in the configuration of docker cannot be read, pulling without credentials", slog.String("registry", server), slog.Any("err", err))
		return registry.AuthConfig{}, nil
	case auth.Username == "" && auth.IdentityToken == "" && auth.RegistryToken == "" && auth.Auth == "":
		return registry.AuthConfig{}, nil
	}
	return registry.AuthConfig{
		Username: auth.Username, Password: auth.Password, Auth: auth.Auth, ServerAddress: auth.ServerAddress,
		IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
	}, nil
}

// readCredentials is configfile.GetAuthConfig, but it kills a credential helper when ctx is
// done.
func readCredentials(ctx context.Context, server string) (types.AuthConfig, error) {
	file, err := config.Load("")
	if err != nil {
		return types.AuthConfig{}, err
	}
	name, ok := file.CredentialHelpers[server]
	if !ok {
		name = file.CredentialsStore
	}
	// Without helpers GetAuthConfig only reads the file and the environment.
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

// tokenUser is the user name that a helper returns with an identity token
// (cli/config/credentials/native_store.go of docker/cli).
const tokenUser = "<token>"

// A helperProgram is a credential helper that is killed, with all processes of its process
// group, when its context is done.
type helperProgram struct{ *exec.Cmd }

func newHelperProgram(ctx context.Context, name string, args []string) helperProgram {
	cmd := exec.CommandContext(ctx, "docker-credential-"+name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // closes the output if a process outside the group still has it open
	return helperProgram{cmd}
}

// Input sets the standard input of the helper.
func (p helperProgram) Input(r io.Reader) { p.Stdin = r }

// serverKey returns the key of credentials for the registry of ref in Docker's configuration.
func serverKey(ref string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", err
	}
	if domain := reference.Domain(named); domain != "docker.io" {
		return domain, nil
	}
	return hubServer, nil
}

// authConfig translates the kubelet's credentials, in any of their forms, to the Engine API.
func authConfig(given *runtimeapi.AuthConfig) (registry.AuthConfig, error) {
	auth := registry.AuthConfig{
		Username: given.GetUsername(), Password: given.GetPassword(),
		IdentityToken: given.GetIdentityToken(), RegistryToken: given.GetRegistryToken(),
	}
	if encoded := given.GetAuth(); encoded != "" && auth == (registry.AuthConfig{}) {
		text, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			// The error of base64 is left out, because it quotes the secret.
			return auth, fmt.Errorf("credentials: auth must be base64: %w", errdefs.ErrInvalidArgument)
		}
		user, password, ok := strings.Cut(string(text), ":")
		if !ok {
			return auth, fmt.Errorf("credentials: auth must be base64 of user:password: %w", errdefs.ErrInvalidArgument)
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
