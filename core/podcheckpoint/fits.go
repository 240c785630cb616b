package podcheckpoint

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/restore"
	"berth/core/todocker"
)

// fits returns an error if a container is not the one that the checkpoint was taken of: its image, command line, working directory, environment
// or user. The privileges of its processes, its mounts and namespaces are compared when it starts (cmd/berth-oci).
func (s *Service) fits(ctx context.Context, c *runtimeapi.ContainerConfig, checkpoint *restore.Checkpoint) error {
	spec := c.GetImage()
	if spec.GetImage() == "" {
		return fmt.Errorf("container without an image: %w", errdefs.ErrInvalidArgument)
	}
	user := cmp.Or(spec.GetUserSpecifiedImage(), spec.GetImage())
	image, err := s.Images.Resolve(ctx, spec.GetImage(), user)
	if err != nil {
		return err
	}
	own, err := s.Images.Resolve(ctx, checkpoint.Image, checkpoint.Name)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("image %s of the checkpoint is not on the node: pull %s: %w", checkpoint.Image, checkpoint.Name, err)
	}
	if err != nil {
		return err
	}
	if image.ID != own.ID {
		return mismatch("image %.200q is %s on the node, and that of the checkpoint %s", user, image.ID, own.ID)
	}
	if err := fitsProcess(c, image, checkpoint); err != nil {
		return err
	}
	return fitsUser(c.GetLinux().GetSecurityContext(), checkpoint.Process)
}

// fitsProcess compares what a container runs.
func fitsProcess(c *runtimeapi.ContainerConfig, image todocker.Image, checkpoint *restore.Checkpoint) error {
	given := slices.Concat(c.GetCommand(), c.GetArgs())
	// A command replaces both of the image's, arguments only its own; the image has not changed.
	exact := len(c.GetCommand()) > 0 || len(given) > 0 && !image.HasEntrypoint
	if n := len(checkpoint.Args) - len(given); n < 0 || exact && n > 0 || !slices.Equal(checkpoint.Args[n:], given) {
		return mismatch("command and args %.200q: the checkpoint has %.200q", given, checkpoint.Args)
	}
	if dir := c.GetWorkingDir(); dir != "" && path.Clean(dir) != path.Clean(checkpoint.Process.Cwd) {
		return mismatch("working_dir %.200q: the checkpoint has %.200q", dir, checkpoint.Process.Cwd)
	}
	env := map[string]string{}
	for _, variable := range checkpoint.Process.Env {
		key, value, _ := strings.Cut(variable, "=")
		env[key] = value
	}
	wanted := map[string]string{} // the last one counts
	for _, e := range c.GetEnvs() {
		wanted[e.GetKey()] = string(e.GetValue())
	}
	for _, e := range c.GetEnvs() {
		if value, ok := env[e.GetKey()]; !ok || value != wanted[e.GetKey()] {
			return mismatch("environment variable %.100q: the checkpoint has another value or none", e.GetKey()) // which may be a secret
		}
	}
	return nil
}

// fitsUser compares whom the first process of a container runs as.
func fitsUser(sc *runtimeapi.LinuxContainerSecurityContext, process restore.Process) error {
	user := process.User
	if want := sc.GetRunAsUser(); want != nil && want.GetValue() != int64(user.UID) {
		return mismatch("run_as_user %d: the checkpoint has %d", want.GetValue(), user.UID)
	}
	if want := sc.GetRunAsGroup(); want != nil && want.GetValue() != int64(user.GID) {
		return mismatch("run_as_group %d: the checkpoint has %d", want.GetValue(), user.GID)
	}
	for _, group := range sc.GetSupplementalGroups() {
		if group != int64(user.GID) && !slices.ContainsFunc(user.AdditionalGIDs, func(id uint32) bool { return int64(id) == group }) {
			return mismatch("supplemental_groups: the checkpoint does not have %d", group)
		}
	}
	return nil
}

// mismatch returns an error about something that a restore cannot change.
func mismatch(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}
