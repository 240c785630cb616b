package todocker

import (
	"path"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/mount"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/names"
	"berth/core/premount"
)

// containerMounts translates the container's own mounts and those of CDI devices, and adds the pod's files. A mount
// that the Engine API cannot express becomes a premount, which Docker bind-mounts.
//
// All mounts must be valid. If several have the same path the last one is used: that is
// the one on top with runtimes that mount them in order, and Docker refuses duplicates.
func containerMounts(p ContainerParams) (out []mount.Mount, premounts []premount.Mount, err error) {
	own, mounts := len(p.Config.GetMounts()), p.CDI.MergeMounts(p.Config.GetMounts())
	lastAt := map[string]int{} // index of the last mount at a path
	for i, m := range mounts {
		if m.GetContainerPath() == "" {
			return nil, nil, invalid("container_path of the mount of %q: must be set", m.GetHostPath())
		}
		lastAt[mountPath(m)] = i
	}
	timesMounted := map[string]int{} // by image ID
	for i, m := range mounts {
		translated, pre, err := translateMount(m, p)
		if err != nil {
			return nil, nil, err
		}
		translated.Target = mountPath(m)
		if lastAt[translated.Target] != i {
			continue
		}
		nonRecursive := i >= own && p.CDI.Mounts[i-own].NonRecursive
		if pre != nil {
			pre.NonRecursive = nonRecursive
			translated.Source = p.Premounts.Path(p.PremountName, len(premounts))
			premounts = append(premounts, *pre)
		} else if nonRecursive {
			translated.BindOptions.NonRecursive = true
		}
		if translated.Type == mount.TypeImage {
			id := translated.Source
			if translated.Source, err = uniqueImageRef(id, timesMounted[id]); err != nil {
				return nil, nil, err
			}
			timesMounted[id]++
		}
		out = append(out, translated)
	}
	for _, f := range p.Files {
		if _, taken := lastAt[f.Target]; !taken {
			out = append(out, mount.Mount{
				Type: mount.TypeBind, Source: f.Source, Target: f.Target,
				ReadOnly:    f.ReadOnly || p.Config.GetLinux().GetSecurityContext().GetReadonlyRootfs(),
				BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
			})
		}
	}
	return out, premounts, nil
}

// mountPath returns the path of a mount in the container. As in containerd and CRI-O, a
// relative path is relative to the root.
func mountPath(m *runtimeapi.Mount) string { return path.Clean("/" + m.GetContainerPath()) }

// translateMount translates a mount, but for its target. If pre is not nil, it must be
// mounted first, and out lacks the source.
func translateMount(m *runtimeapi.Mount, p ContainerParams) (out mount.Mount, pre *premount.Mount, err error) {
	isImage := m.GetImage().GetImage() != ""
	switch {
	case m.GetImageSubPath() != "" && !isImage:
		return out, nil, invalid("image_sub_path of mount %q: needs an image", m.GetContainerPath())
	case isImage:
		return imageMount(m, p)
	default:
		return bindMount(m, p)
	}
}

// propagations maps the CRI's mount propagations to those of Docker and of premounts.
var propagations = map[runtimeapi.MountPropagation]struct {
	docker   mount.Propagation
	premount premount.Propagation
}{
	runtimeapi.MountPropagation_PROPAGATION_PRIVATE:           {mount.PropagationRPrivate, premount.Private},
	runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: {mount.PropagationRSlave, premount.Slave},
	runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:     {mount.PropagationRShared, premount.Shared},
}

// Propagation translates a mount propagation of the CRI to that of a premount.
func Propagation(p runtimeapi.MountPropagation) premount.Propagation { return propagations[p].premount }

// checkBind validates a mount of a path of the node.
func checkBind(m *runtimeapi.Mount) error {
	_, known := propagations[m.GetPropagation()]
	switch {
	case !path.IsAbs(m.GetHostPath()):
		return invalid("host_path %q of mount %q: must be an absolute path", m.GetHostPath(), m.GetContainerPath())
	case !known:
		return invalid("propagation %v of mount %q: must be PROPAGATION_PRIVATE, PROPAGATION_HOST_TO_CONTAINER or PROPAGATION_BIDIRECTIONAL",
			m.GetPropagation(), m.GetContainerPath())
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return invalid("recursive_read_only mount %q: must be readonly, too", m.GetContainerPath())
	case m.GetRecursiveReadOnly() && m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid("recursive_read_only mount %q: propagation must be PROPAGATION_PRIVATE", m.GetContainerPath())
	}
	if err := premount.CheckOptions(m.GetMountOptions()); err != nil {
		return invalid("mount_options of %q: %v", m.GetContainerPath(), err)
	}
	return nil
}

// bindMount translates a mount of a path of the node.
func bindMount(m *runtimeapi.Mount, p ContainerParams) (out mount.Mount, pre *premount.Mount, err error) {
	if err := checkBind(m); err != nil {
		return out, nil, err
	}
	propagation := propagations[m.GetPropagation()]
	out = mount.Mount{
		Type: mount.TypeBind, Source: path.Clean(m.GetHostPath()), BindOptions: &mount.BindOptions{Propagation: propagation.docker},
	}
	if len(m.GetMountOptions()) > 0 || strings.Contains(out.Source, names.UnknownID) || m.GetRecursiveReadOnly() && !supportsRecursiveReadOnly(p.Runtime, p.Features) {
		if !p.Features.Premounts {
			return out, nil, failed("mount %q: mount_options, recursive_read_only before Docker 25, and the container's ID in host_path need %s", m.GetContainerPath(), premount.Lacks(p.Features.OtherMountNS != 0))
		}
		pre = &premount.Mount{Source: out.Source, Propagation: propagation.premount, Options: slices.Clone(m.GetMountOptions())}
		// The premount is read-only itself. ReadOnly of Docker would remount it, and the
		// remount would reset the other options.
		switch {
		case m.GetRecursiveReadOnly():
			pre.Options = append(pre.Options, "rro")
		case m.GetReadonly():
			pre.Options = append(pre.Options, "ro")
		}
		return out, pre, nil
	}
	// Docker refuses private propagation for its own data (validateBindDaemonRoot in
	// daemon/volumes_linux.go); without a value it chooses one that it accepts.
	if propagation.docker == mount.PropagationRPrivate && overlapsDataRoot(out.Source, p.Features.RootDir) {
		out.BindOptions.Propagation = ""
	}
	out.ReadOnly = m.GetReadonly()
	switch {
	case m.GetRecursiveReadOnly():
		out.BindOptions.ReadOnlyForceRecursive = true
	case m.GetReadonly() && p.Features.ReadOnlyNonRecursive:
		out.BindOptions.ReadOnlyNonRecursive = true // docker >= 25 would make submounts read-only, too
	}
	return out, nil, nil
}

// supportsRecursiveReadOnly reports whether Docker and a runtime, "" for its default, can
// make a mount and its submounts read-only.
func supportsRecursiveReadOnly(runtime string, features engine.Features) bool {
	if runtime == "" {
		runtime = features.DefaultRuntime
	}
	return features.Runtimes[runtime].RecursiveReadOnly
}

// imageMount translates a mount of an image's files. It is always read-only; a kubelet 1.31 does not say so.
func imageMount(m *runtimeapi.Mount, p ContainerParams) (out mount.Mount, pre *premount.Mount, err error) {
	volume, subPath := p.Volumes[m.GetImage().GetImage()], m.GetImageSubPath()
	switch {
	case m.GetHostPath() != "":
		return out, nil, invalid("mount %q: must have an image or a host_path, not both", m.GetContainerPath())
	case len(m.GetMountOptions()) > 0:
		return out, nil, invalid("mount_options of image volume %q: must be empty, for Docker supports none", m.GetContainerPath())
	case path.IsAbs(subPath), slices.Contains(strings.Split(subPath, "/"), ".."):
		return out, nil, invalid("image_sub_path %q: must be relative to the root of the image and without \"..\"", subPath)
	case p.Features.ImageMounts:
		out = mount.Mount{Type: mount.TypeImage, Source: volume.ID, ReadOnly: true}
		if subPath != "" {
			out.ImageOptions = &mount.ImageOptions{Subpath: subPath}
		}
		return out, nil, nil
	case len(volume.Layers) == 0:
		return out, nil, failed("image volume %q: before Docker 28 they need the storage driver overlay2, and Docker has %s", m.GetContainerPath(), p.Features.StorageDriver)
	case !p.Features.Premounts:
		return out, nil, failed("image volume %q: before Docker 28 they need %s", m.GetContainerPath(), premount.Lacks(p.Features.OtherMountNS != 0))
	}
	out = mount.Mount{Type: mount.TypeBind, BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate}}
	return out, &premount.Mount{Layers: volume.Layers, SubPath: subPath}, nil
}

// uniqueImageRef returns a different reference to an image for each of its mounts in one
// container. Docker 28.5 identifies an image mount by its reference and refuses
// duplicates, so the ID is shortened by one digit for each mount after the first.
func uniqueImageRef(id string, timesMounted int) (string, error) {
	digits := strings.TrimPrefix(id, "sha256:")
	switch {
	case timesMounted == 0:
		return id, nil
	case len(digits)-timesMounted+1 < shortID:
		return "", invalid("image %s: cannot be mounted more than %d times in one container", id, timesMounted)
	default:
		return digits[:len(digits)-timesMounted+1], nil
	}
}

// overlapsDataRoot reports whether Docker considers a source to be within its data root or
// the other way round. Like Docker's check (validateBindDaemonRoot, 20.10 to 28.5) it
// compares prefixes of strings, not path elements: /var/lib/docker2 is in /var/lib/docker.
func overlapsDataRoot(source, root string) bool {
	return root != "" && (strings.HasPrefix(source, root) || strings.HasPrefix(root, source))
}
