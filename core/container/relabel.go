package container

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
)

// relabel gives the files of mounts that ask for it the SELinux label that the
// container id may use, as the Engine would for a volume with :Z; it has no such
// word for mounts of the kind that we order. Where there is no SELinux nothing is
// to be done.
func (s *Service) relabel(ctx context.Context, docker *engine.Conn, pod *cache.Sandbox, id string, mounts []*runtimeapi.Mount) error {
	if !docker.Features.SELinux || len(labelled(mounts)) == 0 {
		return nil
	}
	short, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	made, err := docker.ContainerInspect(short, id)
	if err != nil {
		return fmt.Errorf("label of container %s: %w", id, err)
	}
	use := made.MountLabel
	if made.ProcessLabel == "" {
		// It is not confined and may read anything; the others of its pod, with
		// which it shares the volume, are.
		use = pod.FileLabel
	}
	return setLabels(mounts, use, label.Relabel)
}

// setLabels has set give the paths of mounts that ask for it a label that is not
// shared with other pods.
func setLabels(mounts []*runtimeapi.Mount, label string, set func(path, label string, shared bool) error) error {
	if label == "" {
		return nil
	}
	for _, host := range labelled(mounts) {
		path, err := filepath.EvalSymlinks(host)
		if err == nil {
			err = set(path, label, false)
		}
		// A file system without labels of its own has one for all its files.
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("SELinux label of host_path %q: %w", host, err)
		}
	}
	return nil
}

// labelled lists the paths of the node that are to be relabelled.
func labelled(mounts []*runtimeapi.Mount) (paths []string) {
	for _, m := range mounts {
		// The Engine labels the files of images itself.
		if m.GetSelinuxRelabel() && m.GetImage().GetImage() == "" {
			paths = append(paths, m.GetHostPath())
		}
	}
	return paths
}
