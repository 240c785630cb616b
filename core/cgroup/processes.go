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

// mostGroups bounds how many cgroups below one are read: who has cgroups of its own can
// make any number.
const mostGroups = 4096

// Processes returns the processes in g and in what is below it.
func Processes(g Group) ([]int, error) {
	for _, controller := range []string{"pids", "memory", "cpuacct"} { // any will do
		if dir, ok := g.Dir(controller); ok {
			left := mostGroups
			return processes(nil, dir, &left)
		}
	}
	return nil, errors.New("no cgroup tells its processes: neither the controller pids nor memory is mounted")
}

func processes(all []int, dir string, left *int) ([]int, error) {
	if *left--; *left < 0 {
		return nil, fmt.Errorf("%s: more than %d cgroups", dir, mostGroups)
	}
	data, err := os.ReadFile(dir + "/cgroup.procs")
	if err != nil && !isUnsupported(err) { // a group of threads, whose processes are above
		return nil, err
	}
	for line := range bytes.Lines(data) {
		if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil && pid > 0 {
			all = append(all, pid)
		}
	}
	// Most have nothing below, which the number of links tells for less than a
	// look at all the files does.
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil && st.Nlink == 2 {
		return all, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		below, err := processes(all, dir+"/"+e.Name(), left)
		switch {
		case err == nil:
			all = below
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV): // removed meanwhile
			return nil, err
		}
	}
	return all, nil
}
