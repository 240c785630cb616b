package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxGroups bounds how many cgroups are read: a container that may create cgroups can create any number below its own.
const maxGroups = 4096

// Processes returns the PIDs of the processes in g and in the cgroups below it.
func Processes(g Group) ([]int, error) {
	for _, controller := range []string{"pids", "memory", "cpuacct"} { // any of them lists all
		if dir, ok := g.Dir(controller); ok {
			left := maxGroups
			return appendProcesses(nil, dir, &left)
		}
	}
	return nil, errors.New("processes of a cgroup cannot be listed: none of the controllers pids, memory and cpuacct is mounted")
}

func appendProcesses(pids []int, dir string, left *int) ([]int, error) {
	if *left--; *left < 0 {
		return nil, fmt.Errorf("%s: more than %d cgroups", dir, maxGroups)
	}
	data, err := os.ReadFile(dir + "/cgroup.procs")
	if err != nil && !isUnsupported(err) { // in a threaded cgroup; its processes are listed above it
		return nil, err
	}
	for line := range bytes.Lines(data) {
		if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	// Most cgroups have none below. The number of links shows that for less than reading the directory, with all its files.
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil && st.Nlink == 2 {
		return pids, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		below, err := appendProcesses(pids, dir+"/"+e.Name(), left)
		switch {
		case err == nil:
			pids = below
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV): // removed meanwhile
			return nil, err
		}
	}
	return pids, nil
}
