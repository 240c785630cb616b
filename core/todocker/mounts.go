package todocker

import (
	"path"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/mount"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/premount"
)

// bindings orders the container's own mounts, then the pod's files. What the
// Engine cannot be asked for is to be staged, and the Engine is asked to bind that.
//
// Of several mounts at one path the last one wins, as where a runtime mounts one over the
// other; the Engine takes no two. All of them must be valid.
func bindings(ask ContainerParams) (out []mount.Mount, staged []premount.Mount, err error) {
	wins := map[string]int{} // which mount is at a path in the end
	for i, m := range ask.Config.GetMounts() {
		if m.GetContainerPath() == "" {
			return nil, nil, invalid("mount of %q without a container_path", m.GetHostPath())
		}
		wins[mountPoint(m)] = i
	}
	named := map[string]int{} // how often an image is mounted natively
	for i, m := range ask.Config.GetMounts() {
		target := mountPoint(m)
		if len(m.GetUidMappings()) > 0 || len(m.GetGidMappings()) > 0 {
			return nil, nil, invalid("id mappings of mount %q: Docker has no user namespaces for single pods", target)
		}
		if m.GetImageSubPath() != "" && m.GetImage().GetImage() == "" {
			return nil, nil, invalid("image_sub_path of mount %q, which is of no image", target)
		}
		var order mount.Mount
		var tree *premount.Mount
		if m.GetImage().GetImage() != "" {
			order, tree, err = imageMount(m, ask)
		} else {
			order, tree, err = bind(m, ask)
		}
		if err != nil {
			return nil, nil, err
		}
		if wins[target] != i {
			continue
		}
		if tree != nil {
			order.Source = ask.Stages.Path(ask.Stage, len(staged))
			staged = append(staged, *tree)
		}
		if order.Type == mount.TypeImage {
			id := order.Source
			if order.Source, err = anotherName(id, named[id]); err != nil {
				return nil, nil, err
			}
			named[id]++
		}
		order.Target = target
		out = append(out, order)
	}
	for _, f := range ask.Files {
		if _, taken := wins[f.Target]; !taken {
			out = append(out, mount.Mount{
				Type: mount.TypeBind, Source: f.Source, Target: f.Target,
				ReadOnly:    f.ReadOnly || ask.Config.GetLinux().GetSecurityContext().GetReadonlyRootfs(),
				BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
			})
		}
	}
	return out, staged, nil
}

// mountPoint returns the path of a mount in the container. A relative path is below the
// root, as with other runtimes.
func mountPoint(m *runtimeapi.Mount) string { return path.Clean("/" + m.GetContainerPath()) }

// propagations are how the CRI's propagations are called.
var propagations = map[runtimeapi.MountPropagation]struct {
	engine mount.Propagation
	staged premount.Propagation
}{
	runtimeapi.MountPropagation_PROPAGATION_PRIVATE:           {mount.PropagationRPrivate, premount.Private},
	runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: {mount.PropagationRSlave, premount.Slave},
	runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:     {mount.PropagationRShared, premount.Shared},
}

// Propagation returns one of the CRI's propagations as it is called where mounts are staged.
func Propagation(p runtimeapi.MountPropagation) premount.Propagation { return propagations[p].staged }

// bind orders a mount of a path of the node, by way of a stage if tree is not
// nil.
func bind(m *runtimeapi.Mount, ask ContainerParams) (out mount.Mount, tree *premount.Mount, err error) {
	private := m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	propagation, known := propagations[m.GetPropagation()]
	switch {
	case !path.IsAbs(m.GetHostPath()):
		return out, nil, invalid("host_path %q of mount %q is not absolute", m.GetHostPath(), m.GetContainerPath())
	case !known:
		return out, nil, invalid("propagation %v of mount %q", m.GetPropagation(), m.GetContainerPath())
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return out, nil, invalid("mount %q is recursive_read_only but not readonly", m.GetContainerPath())
	case m.GetRecursiveReadOnly() && !private:
		return out, nil, invalid("mount %q is recursive_read_only but not private", m.GetContainerPath())
	}
	if err := premount.Check(m.GetMountOptions()); err != nil {
		return out, nil, invalid("mount_options of %q: %v", m.GetContainerPath(), err)
	}
	out = mount.Mount{
		Type: mount.TypeBind, Source: path.Clean(m.GetHostPath()), BindOptions: &mount.BindOptions{Propagation: propagation.engine},
	}
	native := nativeRecursive(ask.Runtime, ask.Can)
	if len(m.GetMountOptions()) > 0 || m.GetRecursiveReadOnly() && !native {
		if !ask.Can.StagedMounts {
			return out, nil, failed("mount %q: mount_options, and recursive_read_only before Docker 25, need Linux 5.12 or newer", m.GetContainerPath())
		}
		tree = &premount.Mount{Source: out.Source, Propagation: propagation.staged, Options: slices.Clone(m.GetMountOptions())}
		// The Engine is not asked to make it read-only: that would take away
		// the options that the stage has given.
		switch {
		case m.GetRecursiveReadOnly():
			tree.Options = append(tree.Options, "rro")
		case m.GetReadonly():
			tree.Options = append(tree.Options, "ro")
		}
		return out, tree, nil
	}
	// The Engine refuses to have its own data mounted private; unsaid, it
	// chooses what it can bear.
	if private && aboutRoot(out.Source, ask.Can.RootDir) {
		out.BindOptions.Propagation = ""
	}
	out.ReadOnly = m.GetReadonly()
	switch {
	case m.GetRecursiveReadOnly():
		out.BindOptions.ReadOnlyForceRecursive = true
	case m.GetReadonly() && ask.Can.ReadOnlyNonRecursive:
		out.BindOptions.ReadOnlyNonRecursive = true // from 25 on the Engine would go deeper
	}
	return out, nil, nil
}

// nativeRecursive reports whether the Engine and a runtime, "" for its default,
// can make a mount read-only with all below it.
func nativeRecursive(runtime string, can engine.Features) bool {
	if runtime == "" {
		runtime = can.DefaultRuntime
	}
	return can.Runtimes[runtime].RecursiveReadOnly
}

// imageMount orders a mount of an image's files, by way of a stage if tree is not
// nil.
func imageMount(m *runtimeapi.Mount, ask ContainerParams) (out mount.Mount, tree *premount.Mount, err error) {
	volume, sub := ask.Volumes[m.GetImage().GetImage()], m.GetImageSubPath()
	switch {
	case !m.GetReadonly():
		return out, nil, invalid("image volume %q is not readonly", m.GetContainerPath())
	case m.GetHostPath() != "":
		return out, nil, invalid("mount %q is of an image and of host_path %q", m.GetContainerPath(), m.GetHostPath())
	case len(m.GetMountOptions()) > 0:
		return out, nil, invalid("mount_options of image volume %q: Docker mounts images without any", m.GetContainerPath())
	case path.IsAbs(sub), slices.Contains(strings.Split(sub, "/"), ".."):
		return out, nil, invalid("image_sub_path %q leads out of the image", sub)
	case ask.Can.ImageMounts:
		out = mount.Mount{Type: mount.TypeImage, Source: volume.ID, ReadOnly: true}
		if sub != "" {
			out.ImageOptions = &mount.ImageOptions{Subpath: sub}
		}
		return out, nil, nil
	case len(volume.Layers) == 0:
		return out, nil, failed("image volume %q: before Docker 28 they need the storage driver overlay2, and Docker has %s", m.GetContainerPath(), ask.Can.StorageDriver)
	case !ask.Can.StagedMounts:
		return out, nil, failed("image volume %q: before Docker 28 they need Linux 5.12 or newer", m.GetContainerPath())
	}
	out = mount.Mount{Type: mount.TypeBind, BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate}}
	return out, &premount.Mount{Layers: volume.Layers, SubPath: sub}, nil
}

// anotherName returns an image's ID in another form for each mount of it in one
// container: the Engine calls a mount by the words in which its image was asked for, and
// takes none twice (28.5).
func anotherName(id string, times int) (string, error) {
	digits := strings.TrimPrefix(id, "sha256:")
	switch {
	case times == 0:
		return id, nil
	case len(digits)-times+1 < shortID:
		return "", invalid("image %s is mounted more than %d times in one container", id, times)
	default:
		return digits[:len(digits)-times+1], nil
	}
}

// aboutRoot reports whether the Engine takes a source for one that has to do with its
// data root. It compares letters, not elements of paths (20.10 to 28.5): a source that merely
// begins as the root does, or the root as it, is treated alike.
func aboutRoot(source, root string) bool {
	return root != "" && (strings.HasPrefix(source, root) || strings.HasPrefix(root, source))
}
