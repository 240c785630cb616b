// Package relabel gives volumes the SELinux label of a container.
package relabel

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

// Mounts gives the files of mounts with selinux_relabel the SELinux label of the container id, whose pod has the label podLabel. Docker does this for
// binds with the option Z, but has no such option for mounts of the Mounts API, which berth uses. Without SELinux
// there is nothing to do.
func Mounts(ctx context.Context, docker *engine.Conn, podLabel, id string, mounts []*runtimeapi.Mount) error {
	if !docker.Features.SELinux || len(pathsToRelabel(mounts)) == 0 {
		return nil
	}
	short, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	created, err := docker.ContainerInspect(short, id)
	if err != nil {
		return fmt.Errorf("label of container %s: %w", id, err)
	}
	mountLabel := created.MountLabel
	if created.ProcessLabel == "" {
		// The container is not confined and may read files with any label. Those containers of its pod that share
		// the volume and are confined may not.
		mountLabel = podLabel
	}
	return setLabels(mounts, mountLabel, label.Relabel)
}

// setLabels calls set for the paths of mounts that are to be relabelled, with a label that is not shared with other
// pods.
func setLabels(mounts []*runtimeapi.Mount, label string, set func(path, label string, shared bool) error) error {
	if label == "" {
		return nil
	}
	for _, hostPath := range pathsToRelabel(mounts) {
		path, err := filepath.EvalSymlinks(hostPath)
		if err == nil {
			err = set(path, label, false)
		}
		// A file system that does not store labels has one label for all its files.
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("SELinux label of host_path %q: %w", hostPath, err)
		}
	}
	return nil
}

// pathsToRelabel lists the paths of the node that are to be relabelled.
func pathsToRelabel(mounts []*runtimeapi.Mount) (paths []string) {
	for _, m := range mounts {
		// Docker labels the files of images itself.
		if m.GetSelinuxRelabel() && m.GetImage().GetImage() == "" {
			paths = append(paths, m.GetHostPath())
		}
	}
	return paths
}
