package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"berth/core/todocker"
)

// cgroupRoot is where cgroups are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// turn writes knobs to the cgroup of the process pid.
func turn(knobs []todocker.Knob, pid int) error {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // over before it could matter
	}
	if err != nil {
		return err
	}
	for _, k := range knobs {
		dir, ok := cgroupDir(string(text), k.Controller)
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

// cgroupDir finds the directory of a process's cgroup in what its
// /proc/<pid>/cgroup says; controller is "" for cgroup v2.
func cgroupDir(text, controller string) (string, bool) {
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		switch {
		case controller == "" && fields[0] == "0" && fields[1] == "":
			return filepath.Join(cgroupRoot, fields[2]), true
		case controller != "" && slices.Contains(strings.Split(fields[1], ","), controller):
			return filepath.Join(cgroupRoot, controller, fields[2]), true
		}
	}
	return "", false
}
