package resources

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"berth/core/cgroup"
	"berth/core/limits"
)

// writeSettings writes settings to the files of a cgroup. A file that is missing is skipped if its
// setting is optional; else the error is of kind InvalidArgument.
func writeSettings(settings []limits.CgroupSetting, group cgroup.Group) error {
	for _, s := range settings {
		file, err := locate(s, group)
		if err != nil {
			return err
		}
		if file == "" {
			continue
		}
		if err := writeFile(file, s.Value); err != nil {
			return fmt.Errorf("set %s to %s: %w", s.File, s.Value, err)
		}
	}
	return nil
}

// locate returns the path of the file of a setting, "" if it is missing and the setting is optional. The
// error is of kind InvalidArgument if it is missing and not optional.
func locate(s limits.CgroupSetting, group cgroup.Group) (string, error) {
	dir, ok := group.Dir(s.Controller)
	if ok {
		file := filepath.Join(dir, s.File)
		_, err := os.Stat(file)
		if !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
		// Without its directory the cgroup is gone, because the container has exited.
		if _, err := os.Stat(dir); err != nil {
			return "", err
		}
	}
	if s.Optional {
		return "", nil
	}
	return "", fmt.Errorf("%s: the cgroups of this node have no such file: %w", s.File, errdefs.ErrInvalidArgument)
}

// writeFile writes to a cgroup file. The kernel accepts one line per write(2).
func writeFile(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for line := range strings.Lines(value) {
		if _, err := f.WriteString(line); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

// readSettings returns settings with the values that their files have now. Settings without a value are
// left out, and so are those whose file is missing and which are optional. The error is that of locate.
func readSettings(settings []limits.CgroupSetting, group cgroup.Group) ([]limits.CgroupSetting, error) {
	var current []limits.CgroupSetting
	for _, s := range settings {
		file, err := locate(s, group)
		if err != nil {
			return nil, err
		}
		if file == "" {
			continue
		}
		// A file that can only be written has no value. An empty value (cpuset.cpus above all) cannot be
		// restored: the kernel refuses to empty the file of a cgroup that has processes.
		text, _ := os.ReadFile(file)
		if s.Value = strings.TrimSpace(string(text)); s.Value != "" {
			current = append(current, s)
		}
	}
	return current, nil
}

// restoreSettings writes those of the settings whose files have another value by now. On cgroup v1 the
// kernel refuses a memory limit above that of memory and swap together: of these two, one can only be
// written after the other, so there is a second round.
func restoreSettings(saved []limits.CgroupSetting, group cgroup.Group) error {
	var errs []error
	for range 2 {
		errs = nil
		for _, s := range saved {
			current, err := readSettings([]limits.CgroupSetting{s}, group)
			if err == nil && len(current) == 1 && current[0].Value == s.Value {
				continue
			}
			errs = append(errs, ignoreExited(err), ignoreExited(writeSettings([]limits.CgroupSetting{s}, group)))
		}
	}
	return errors.Join(errs...)
}

// ignoreExited drops an error that means that a process has exited, and its cgroup with it. ENODEV is
// what the kernel returns for a cgroup file whose cgroup was removed after the file was opened.
func ignoreExited(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}
