package premounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/names"
	"berth/core/premount"
	"berth/core/todocker"
)

// Check fails if the mounts of a container are not possible on the node.
func Check(pod *cache.Sandbox, params todocker.ContainerParams, spec todocker.Spec) error {
	// The process that starts containers is the parent of the sandbox's. In a mount namespace of its own it has
	// other mounts than those that can be checked here.
	if !premount.InOtherMountNS(premount.ParentPID(pod.Pid)) {
		return checkPropagation(params.CDI.MergeMounts(params.Config.GetMounts()))
	}
	if len(spec.Premounts) > 0 {
		return fmt.Errorf("mount_options, and mounts that the Engine API cannot express, need %s: %w", premount.Lacks(true), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// CreateHostPaths creates the directories of the node that are to be mounted and do not exist, as the kubelet
// expects it of a runtime.
func CreateHostPaths(mounts []*runtimeapi.Mount) error {
	for _, m := range mounts {
		if m.GetImage().GetImage() != "" {
			continue
		}
		_, err := os.Stat(m.GetHostPath())
		if errors.Is(err, fs.ErrNotExist) {
			err = os.MkdirAll(m.GetHostPath(), 0o755)
		}
		if err != nil {
			return fmt.Errorf("host_path of mount %q: %w", m.GetContainerPath(), err)
		}
	}
	return nil
}

// checkPropagation fails if a host path does not propagate mounts as its mount in the container asks for. Docker
// checks it only when the container starts.
func checkPropagation(mounts []*runtimeapi.Mount) error {
	for _, m := range mounts {
		if m.GetImage().GetImage() != "" || strings.Contains(m.GetHostPath(), names.UnknownID) {
			continue // the latter: see premount.Dir.Complete
		}
		if err := premount.CheckPropagation(m.GetHostPath(), todocker.Propagation(m.GetPropagation())); err != nil {
			return fmt.Errorf("propagation of mount %q: %w", m.GetContainerPath(), err)
		}
	}
	return nil
}
