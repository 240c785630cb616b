// Package securityprofile looks up the security profiles of the node that a request
// names: what Docker would look for at the start only, CreateContainer has to
// find missing.
package securityprofile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"berth/core/todocker"
)

// loaded is where the kernel lists the AppArmor profiles that it has.
const loaded = "/sys/kernel/security/apparmor/profiles"

// Load returns the content of the seccomp profile that sc names, "" if it names
// none. It fails if there is no such file, or if the kernel does not have the
// AppArmor profile that sc names.
func Load(sc todocker.SecurityContext, privileged bool) (seccomp string, err error) {
	return read(sc, privileged, loaded)
}

func read(sc todocker.SecurityContext, privileged bool, loaded string) (seccomp string, err error) {
	name, err := todocker.AppArmorProfile(sc)
	if err != nil {
		return "", err
	}
	if err := find(name, loaded); err != nil {
		return "", err
	}
	file, err := todocker.SeccompFile(sc, privileged)
	if err != nil || file == "" {
		return "", err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("seccomp profile: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err := isProfile(content); err != nil {
		return "", fmt.Errorf("seccomp profile %s: %w: %w", file, err, errdefs.ErrFailedPrecondition)
	}
	return string(content), nil
}

// isProfile fails if content would not filter anything, or not as a file says. To
// Docker nothing is its own default, the words unconfined and builtin are as good as a
// profile, and one that says neither a default action nor system calls is none.
func isProfile(content []byte) error {
	var profile struct {
		DefaultAction string `json:"defaultAction"`
	}
	if err := json.Unmarshal(content, &profile); err != nil {
		return fmt.Errorf("is no JSON of a profile: %w", err)
	}
	if profile.DefaultAction == "" {
		return errors.New("has no defaultAction")
	}
	return nil
}

// find fails if a profile of name, which may be a stack of several, is not loaded.
// Docker loads its own when it needs it. Where the list cannot be read the start fails
// if the profile is not loaded.
func find(name, loaded string) error {
	if name == "" || name == "docker-default" {
		return nil
	}
	list, err := os.ReadFile(loaded)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("AppArmor profiles: %w", err)
	}
	for _, part := range todocker.AppArmorStack(name) {
		// name (mode)
		if !strings.Contains("\n"+string(list), "\n"+part+" (") {
			return fmt.Errorf("AppArmor profile %q is not loaded on this node; apparmor_parser -r FILE loads it: %w", part, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
