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

// ErrLayers is what every error about a Tree of Layers is.
var ErrLayers = errors.New("files of an image")

// put stages one tree at target.
func put(t Mount, target string) error {
	if len(t.Layers) > 0 {
		if err := assemble(t, target); err != nil {
			return fmt.Errorf("%w: %w", ErrLayers, err)
		}
		return nil
	}
	clone, err := unix.OpenTree(unix.AT_FDCWD, t.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("clone the mounts of %s: %w", t.Source, err)
	}
	tree := os.NewFile(uintptr(clone), t.Source) // a clone that is not put anywhere goes with its file
	defer tree.Close()
	top, all, err := attributes(t.Options)
	if err != nil {
		return err
	}
	switch t.Propagation {
	case Private:
		all.Propagation = unix.MS_PRIVATE
	case Slave:
		all.Propagation = unix.MS_SLAVE
	case Shared:
	}
	err = set(clone, unix.AT_RECURSIVE, all)
	if err == nil {
		err = set(clone, 0, top)
	}
	if err != nil {
		return fmt.Errorf("mount options %s of %s: %w", strings.Join(t.Options, ","), t.Source, err)
	}
	return attach(tree, target)
}

// set changes the attributes of a cloned tree, or of its topmost mount.
func set(clone int, flags uint, attr unix.MountAttr) error {
	if attr == (unix.MountAttr{}) {
		return nil
	}
	return unix.MountSetattr(clone, "", flags|unix.AT_EMPTY_PATH, &attr)
}

// attach puts a cloned tree at target, which it makes of the tree's own kind.
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

// assemble stages the files of an image, read-only.
func assemble(t Mount, target string) error {
	if len(t.Layers) == 1 && t.SubPath == "" {
		return put(Mount{Source: t.Layers[0], Options: []string{"ro"}}, target) // the kernel makes no overlay of one
	}
	whole := t.Layers[0]
	if len(t.Layers) > 1 {
		whole = target + ".image"
		if err := overlay(t.Layers, whole); err != nil {
			return err
		}
		dir, err := os.OpenFile(filepath.Dir(whole), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer dir.Close()
		defer takeDown(dir, filepath.Base(whole)) //nolint:errcheck // Drop will do it
	}
	root, err := os.OpenFile(whole, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	sub, err := unix.Openat2(int(root.Fd()), cmp.Or(t.SubPath, "."), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return fmt.Errorf("image_sub_path %q: %w: %w", t.SubPath, err, errdefs.ErrInvalidArgument)
	}
	defer unix.Close(sub)
	return put(Mount{Source: fmt.Sprintf("/proc/self/fd/%d", sub), Options: []string{"ro"}}, target)
}

// overlay mounts layers, the topmost first, as one at target.
func overlay(layers []string, target string) error {
	if err := os.Mkdir(target, 0o700); err != nil {
		return err
	}
	// By number: the names of 128 layers are longer than what mount(2) takes.
	var lower []string
	for _, l := range layers {
		dir, err := os.OpenFile(l, unix.O_PATH|unix.O_DIRECTORY, 0)
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
