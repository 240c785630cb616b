package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"berth/core/cgroup"
	"berth/core/todocker"
)

// turn writes knobs to the cgroup of the container id, whose first process is pid.
func turn(knobs []todocker.Knob, id string, pid int) error {
	g, err := cgroup.Of(pid, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // over before it could matter
	}
	if err != nil {
		return err
	}
	return write(knobs, g)
}

// prepare makes the cgroup that a container will start in and writes knobs there,
// so that its first instruction runs with them already; the low-level runtime
// takes the cgroup as it is. undo removes it if the container did not start.
//
// With systemd as driver there is none before the start.
func prepare(knobs []todocker.Knob, parent, id string) (undo func() error, err error) {
	var early []todocker.Knob
	var controllers []string
	for _, k := range knobs {
		if k.Late {
			continue
		}
		early = append(early, k)
		if c := k.Of(); c != "" && !slices.Contains(controllers, c) {
			controllers = append(controllers, c)
		}
	}
	if len(early) == 0 {
		return func() error { return nil }, nil
	}
	g, err := cgroup.Make(filepath.Join("/", parent, id), controllers)
	if err == nil {
		err = write(early, g)
	}
	return g.Remove, err
}

// write writes knobs to the files of a cgroup.
func write(knobs []todocker.Knob, g cgroup.Group) error {
	for _, k := range knobs {
		dir, ok := g.Dir(k.Controller)
		if !ok {
			if k.Optional {
				continue
			}
			return fmt.Errorf("%s: this node has no cgroup for it", k.File)
		}
		// Without O_CREATE: what a cgroup does not have cannot be written.
		f, err := os.OpenFile(filepath.Join(dir, k.File), os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) && k.Optional {
			continue
		}
		if err != nil {
			return err
		}
		_, err = f.WriteString(k.Value)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("set %s to %s: %w", k.File, k.Value, err)
		}
	}
	return nil
}
