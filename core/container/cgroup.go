package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"berth/core/cgroup"
	"berth/core/todocker"
)

// turn writes knobs to the cgroup of the process pid.
func turn(knobs []todocker.Knob, pid int) error {
	g, err := cgroup.Of(pid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // over before it could matter
	}
	if err != nil {
		return err
	}
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
