// Package securityprofile reads and checks the seccomp and AppArmor profiles of the node that
// a request names. Docker checks them when a container starts; the CRI's clients expect the
// error from CreateContainer or RunPodSandbox.
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

// loadedProfiles is the file in which the kernel lists the loaded AppArmor profiles.
const loadedProfiles = "/sys/kernel/security/apparmor/profiles"

// dockerDefault is the profile that Docker loads itself when it needs it.
const dockerDefault = "docker-default"

// Load returns the content of the seccomp profile that sc names, or "" if it names none. The
// error is of kind FailedPrecondition if that file is missing or not a profile, or if the
// AppArmor profile that sc names is not loaded.
func Load(sc todocker.SecurityContext, privileged bool) (seccomp string, err error) {
	return load(sc, privileged, loadedProfiles)
}

// load is Load with the path of the list of AppArmor profiles.
func load(sc todocker.SecurityContext, privileged bool, appArmorList string) (seccomp string, err error) {
	name, err := todocker.AppArmorProfile(sc)
	if err != nil {
		return "", err
	}
	if err := checkAppArmor(name, appArmorList); err != nil {
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
	if err := checkSeccomp(content); err != nil {
		return "", fmt.Errorf("seccomp profile %s: %w: %w", file, err, errdefs.ErrFailedPrecondition)
	}
	return string(content), nil
}

// checkSeccomp refuses content that Docker would not apply as a profile: it treats an empty
// file as its default profile, accepts the words unconfined and builtin, and ignores a
// profile without defaultAction.
func checkSeccomp(content []byte) error {
	var profile struct {
		DefaultAction string `json:"defaultAction"`
	}
	if err := json.Unmarshal(content, &profile); err != nil {
		return fmt.Errorf("must be a JSON object: %w", err)
	}
	if profile.DefaultAction == "" {
		return errors.New("must have a defaultAction")
	}
	return nil
}

// checkAppArmor refuses a profile, or a stack of profiles, that is not loaded. If the list
// cannot be read it refuses none: then the start of the container fails.
func checkAppArmor(name, list string) error {
	if name == "" || name == dockerDefault {
		return nil
	}
	loaded, err := os.ReadFile(list)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list AppArmor profiles: %w", err)
	}
	for _, part := range todocker.AppArmorStack(name) {
		// Lines have the form "name (mode)"; a name may contain blanks.
		if !strings.Contains("\n"+string(loaded), "\n"+part+" (") {
			return fmt.Errorf("AppArmor profile %q is not loaded on this node, load it with apparmor_parser -r FILE: %w", part, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
