// Package cgroup finds the cgroups of containers and processes and reads their files, on both cgroup versions.
//
// Group is the cgroup of a process: one directory on v2, one per controller on v1. Of finds it by the ID of a container and
// its first process, Make creates one. ReadUint, ReadNumbers, ReadPressure and ReadDeviceIO read files; they are on the path of every stats
// request and faster than the cgroup libraries of the field (contrib/docs/decisions.md).
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Root is where cgroups are mounted.
const Root = "/sys/fs/cgroup"

// isV2 reports whether the node has cgroup v2 for all controllers ("unified mode").
var isV2 = sync.OnceValue(func() bool {
	_, err := os.Stat(filepath.Join(Root, "cgroup.controllers"))
	return err == nil
})

// A Group is the cgroup of a process.
type Group struct {
	// V2 is its directory on cgroup v2, "" on v1.
	V2 string
	// V1 are its directories on cgroup v1 by controller, nil on v2.
	V1 map[string]string
}

// ErrMoved is returned by Of if the first process of a container is not in the container's cgroup.
var ErrMoved = errors.New("not in the cgroup of its container")

// ForContainer returns the cgroup of the container id, whose first process is pid. The error is fs.ErrNotExist if there is no such
// process, or it has exited, and ErrMoved if it is in a cgroup without the ID in its path: a privileged container may move
// its processes to any cgroup, and limits must not be written there.
func ForContainer(pid int, id string) (Group, error) {
	current, err := ForPID(pid)
	if err != nil {
		return Group{}, err
	}
	g, ok := current.ofContainer(id)
	if !ok {
		return Group{}, fmt.Errorf("process %d of container %s: %w: it is in %s", pid, id, ErrMoved, current.Path())
	}
	return g, nil
}

// ForPID returns the cgroup that the process pid is in. The error is fs.ErrNotExist if there is no such process, or it has
// exited.
func ForPID(pid int) (Group, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	text, err := os.ReadFile(dir + "/cgroup")
	if err != nil {
		return Group{}, err
	}
	// This has to follow: on v1 the kernel reports a process that is exiting, or a zombie, in the root cgroup, and the
	// limits of a container would be written there.
	process, err := procfs.NewProc(pid)
	if err != nil {
		return Group{}, err
	}
	stat, err := process.Stat()
	if err != nil {
		return Group{}, err
	}
	if exited(stat) {
		return Group{}, &fs.PathError{Op: "find cgroup", Path: dir, Err: fs.ErrNotExist}
	}
	return parse(string(text), isV2()), nil
}

// exited reports whether a process has exited, or is exiting.
func exited(stat procfs.ProcStat) bool {
	const exiting = 0x4 // PF_EXITING in include/linux/sched.h
	return stat.State == "Z" || stat.State == "X" || stat.Flags&exiting != 0
}

// parse parses /proc/PID/cgroup (cgroups(7)).
func parse(text string, v2 bool) Group {
	var g Group
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(fields) != 3:
		case v2 && fields[0] == "0" && fields[1] == "":
			g.V2 = joinRoot(fields[2])
		case !v2 && fields[1] != "":
			for controller := range strings.SplitSeq(fields[1], ",") {
				if g.V1 == nil {
					g.V1 = map[string]string{}
				}
				g.V1[controller] = joinRoot(strings.TrimPrefix(controller, "name="), fields[2])
			}
		}
	}
	return g
}

// joinRoot joins elements to a path below Root. The kernel shows a cgroup outside of the reader's cgroup namespace with
// leading "..", which must not lead out of Root.
func joinRoot(elem ...string) string {
	return filepath.Join(Root, filepath.Join(append([]string{"/"}, elem...)...))
}

// ofContainer returns the cgroup of the container id that g is, or is below, and whether there is one. On v1 it lacks the
// controllers for which g is elsewhere: runtimes do not create a cgroup for every controller that the kernel has.
func (g Group) ofContainer(id string) (Group, bool) {
	var own Group
	own.V2, _ = trimBelowContainer(g.V2, id)
	for controller, dir := range g.V1 {
		if dir, ok := trimBelowContainer(dir, id); ok {
			if own.V1 == nil {
				own.V1 = map[string]string{}
			}
			own.V1[controller] = dir
		}
	}
	return own, own.V2 != "" || len(own.V1) > 0
}

// trimBelowContainer cuts from path what is below the cgroup that is named after id, as ID or docker-ID.scope, and reports
// whether there is one. The first process may have moved itself further down, where the limits and counters of the container
// are not: systemd moves to init.scope below the container's cgroup, Docker in Docker to init.
func trimBelowContainer(path, id string) (string, bool) {
	end := 0
	for element := range strings.SplitSeq(path, "/") {
		end += len(element)
		unit, isScope := strings.CutSuffix(element, ".scope")
		if id != "" && (element == id || isScope && strings.HasSuffix(unit, "-"+id)) {
			return path[:end], true
		}
		end++ // the slash
	}
	return "", false
}

// Dir returns the directory with the files of a controller, named as on v1, and whether there is one.
func (g Group) Dir(controller string) (string, bool) {
	if g.V2 != "" {
		return g.V2, true
	}
	dir, ok := g.V1[controller]
	return dir, ok
}

// Path returns the path of the cgroup relative to the mount point of its hierarchy, as /kubepods/burstable/pod1/2.
func (g Group) Path() string {
	if g.V2 != "" {
		return "/" + strings.TrimPrefix(strings.TrimPrefix(g.V2, Root), "/")
	}
	for _, controller := range []string{"memory", "cpuacct", "pids"} {
		if dir, ok := g.V1[controller]; ok {
			return "/" + strings.TrimPrefix(strings.TrimPrefix(dir, filepath.Join(Root, controller)), "/")
		}
	}
	return "/"
}

// Parent returns the parent of g.
func (g Group) Parent() Group {
	p := Group{V1: maps.Clone(g.V1)}
	if g.V2 != "" {
		p.V2 = filepath.Dir(g.V2)
	}
	for controller, dir := range p.V1 {
		p.V1[controller] = filepath.Dir(dir)
	}
	return p
}

// Create creates the cgroup at the path name, which may exist, with the given controllers: on v1 in the hierarchy of each, on v2
// with each enabled. A controller that the node does not have is skipped.
func Create(name string, controllers []string) (Group, error) {
	return createIn(Root, name, controllers, isV2())
}

func createIn(root, name string, controllers []string, v2 bool) (g Group, err error) {
	if !v2 {
		g.V1 = map[string]string{}
		for _, c := range controllers {
			if _, err := os.Stat(filepath.Join(root, c)); err != nil {
				continue
			}
			g.V1[c] = filepath.Join(root, c, name)
			if err := os.MkdirAll(g.V1[c], 0o755); err != nil {
				return g, err
			}
		}
		return g, nil
	}
	g.V2 = filepath.Join(root, name)
	if err := os.MkdirAll(g.V2, 0o755); err != nil {
		return g, err
	}
	available, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return g, err
	}
	controllers = slices.DeleteFunc(slices.Clone(controllers), func(c string) bool { return !slices.Contains(strings.Fields(string(available)), c) })
	// From the top down, because a cgroup can only enable for its children what is enabled for itself.
	dir := root
	for element := range strings.SplitSeq(strings.Trim(filepath.Clean("/"+name), "/"), "/") {
		for _, c := range controllers {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
				return g, err
			}
		}
		dir = filepath.Join(dir, element)
	}
	return g, nil
}

// At returns the cgroup with a path relative to the mount point of its hierarchy. It need not exist, on v1 in none of the hierarchies.
func At(name string) (Group, error) {
	own, err := ForPID(os.Getpid())
	if err != nil {
		return Group{}, err
	}
	return own.at(name), nil
}

func (g Group) at(name string) (other Group) {
	if g.V2 != "" {
		other.V2 = joinRoot(name)
		return other
	}
	// systemd mounts v2 without controllers beside v1, and runc uses it.
	other.V1 = map[string]string{"unified": joinRoot("unified", name)}
	for controller := range g.V1 {
		other.V1[controller] = joinRoot(strings.TrimPrefix(controller, "name="), name)
	}
	return other
}

// Remove removes an empty cgroup. One that does not exist is no error.
func (g Group) Remove() error {
	dirs := slices.Collect(maps.Values(g.V1))
	if g.V2 != "" {
		dirs = append(dirs, g.V2)
	}
	var errs []error
	for _, dir := range dirs {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return errors.Join(errs...)
}
