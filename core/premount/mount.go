package premount

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ErrImageLayers is wrapped by every error about a Mount with Layers.
var ErrImageLayers = errors.New("files of an image")

// create creates one mount at target.
func create(m Mount, target string) error {
	if len(m.Layers) > 0 {
		if err := createFromLayers(m, target); err != nil {
			return fmt.Errorf("%w: %w", ErrImageLayers, err)
		}
		return nil
	}
	var flags uint = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE
	if m.NonRecursive {
		flags &^= unix.AT_RECURSIVE
	}
	clone, err := unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
	if err != nil {
		return fmt.Errorf("clone the mounts of %s: %w", m.Source, err)
	}
	tree := os.NewFile(uintptr(clone), m.Source) // closing it unmounts a clone that is not attached
	defer tree.Close()
	top, all, err := attributes(m.Options)
	if err != nil {
		return err
	}
	switch m.Propagation {
	case Private:
		all.Propagation = unix.MS_PRIVATE
	case Slave:
		all.Propagation = unix.MS_SLAVE
	case Shared:
	}
	err = setAttributes(clone, unix.AT_RECURSIVE, all)
	if err == nil {
		err = setAttributes(clone, 0, top)
	}
	if err != nil {
		return fmt.Errorf("mount options %s of %s: %w", strings.Join(m.Options, ","), m.Source, err)
	}
	return attach(tree, target)
}

// setAttributes changes the attributes of a cloned tree (AT_RECURSIVE), or of its topmost mount.
func setAttributes(clone int, flags uint, attr unix.MountAttr) error {
	if attr == (unix.MountAttr{}) {
		return nil
	}
	return unix.MountSetattr(clone, "", flags|unix.AT_EMPTY_PATH, &attr)
}

// attach mounts a cloned tree at target, which it creates as a directory or a file, like the root of the tree.
func attach(tree *os.File, target string) error {
	info, err := tree.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.Mkdir(target, 0o700)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return err
	}
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s at %s: %w", tree.Name(), target, err)
	}
	return nil
}

// createFromLayers mounts the files of an image at target, read-only.
func createFromLayers(m Mount, target string) error {
	if len(m.Layers) == 1 && m.SubPath == "" {
		return create(Mount{Source: m.Layers[0], Options: []string{"ro"}}, target) // overlayfs refuses a single lower directory without an upper one
	}
	image := m.Layers[0]
	if len(m.Layers) > 1 {
		image = target + ".image"
		if err := mountOverlay(m.Layers, image); err != nil {
			return err
		}
		dir, err := os.OpenFile(filepath.Dir(image), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer dir.Close()
		defer unmountAndRemove(dir, filepath.Base(image)) //nolint:errcheck // Remove does it otherwise
	}
	root, err := os.OpenFile(image, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	sub, err := unix.Openat2(int(root.Fd()), cmp.Or(m.SubPath, "."), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return fmt.Errorf("image_sub_path %q: %w: %w", m.SubPath, err, errdefs.ErrInvalidArgument)
	}
	defer unix.Close(sub)
	return create(Mount{Source: fmt.Sprintf("/proc/self/fd/%d", sub), Options: []string{"ro"}}, target)
}

// mountOverlay mounts an overlay of layers, the topmost first, at target.
func mountOverlay(layers []string, target string) error {
	if err := os.Mkdir(target, 0o700); err != nil {
		return err
	}
	// Paths by descriptor: those of 128 layers, the most that Docker allows, exceed the page that mount(2) accepts.
	var lower []string
	for _, layer := range layers {
		dir, err := os.OpenFile(layer, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer dir.Close()
		lower = append(lower, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	}
	if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
		return fmt.Errorf("overlay of %d layers: %w", len(layers), err)
	}
	return nil
}
