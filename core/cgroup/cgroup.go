// Package cgroup finds the cgroups of processes, on both versions of cgroups,
// and reads their files.
package cgroup

import (
	"bytes"
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

	"golang.org/x/sys/unix"
)

// Root is where cgroups are mounted.
const Root = "/sys/fs/cgroup"

// unified tells whether the node has cgroup v2 for all controllers.
var unified = sync.OnceValue(func() bool {
	_, err := os.Stat(filepath.Join(Root, "cgroup.controllers"))
	return err == nil
})

// A Group is the cgroup of a process: one directory on v2, one for each
// controller on v1.
type Group struct {
	// V2 is its directory on v2, empty on v1.
	V2 string
	// V1 are its directories by controller on v1, nil on v2.
	V1 map[string]string
}

// ErrMoved is what the error of Of is if the first process of a container is in a cgroup
// that is not the container's.
var ErrMoved = errors.New("not in the cgroup of its container")

// Of returns the cgroup of the container id, whose first process is pid; of kind
// fs.ErrNotExist if there is no such process, or it has ended, and ErrMoved if it is in
// a cgroup that does not have the ID in its path: a privileged container may move its
// processes anywhere, and limits and scores must not be written there.
func Of(pid int, id string) (Group, error) {
	all, err := OfProcess(pid)
	if err != nil {
		return Group{}, err
	}
	g, ok := all.of(id)
	if !ok {
		return Group{}, fmt.Errorf("process %d of container %s: %w: it is in %s", pid, id, ErrMoved, all.Path())
	}
	return g, nil
}

// OfProcess returns the cgroup that the process pid is in; of kind fs.ErrNotExist if
// there is no such process, or it has ended.
func OfProcess(pid int) (Group, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	text, err := os.ReadFile(dir + "/cgroup")
	if err != nil {
		return Group{}, err
	}
	// Looked at last. One that is ending, or that nobody has waited for yet, is
	// said to be in the root on v1, and what is meant for a container would be
	// written there.
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Group{}, err
	}
	if over(string(stat)) {
		return Group{}, &fs.PathError{Op: "find cgroup", Path: dir, Err: fs.ErrNotExist}
	}
	return parse(string(text), unified()), nil
}

// over reports whether the process that /proc/<pid>/stat tells of has ended, or is at it.
func over(stat string) bool {
	// number (name) state parent group session terminal its-group flags ...; the name
	// may have anything in it
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 7 {
		return false
	}
	const exiting = 0x4 // PF_EXITING
	flags, _ := strconv.ParseUint(fields[6], 10, 64)
	return fields[0] == "Z" || fields[0] == "X" || flags&exiting != 0
}

// parse reads the content of /proc/<pid>/cgroup.
func parse(text string, v2 bool) Group {
	var g Group
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(fields) != 3:
		case v2 && fields[0] == "0" && fields[1] == "":
			g.V2 = inRoot(fields[2])
		case !v2 && fields[1] != "":
			for controller := range strings.SplitSeq(fields[1], ",") {
				if g.V1 == nil {
					g.V1 = map[string]string{}
				}
				g.V1[controller] = inRoot(strings.TrimPrefix(controller, "name="), fields[2])
			}
		}
	}
	return g
}

// inRoot joins elements to a path below Root. The kernel shows a cgroup outside of
// the reader's cgroup namespace with leading "..", which must not lead out.
func inRoot(elem ...string) string {
	return filepath.Join(Root, filepath.Join(append([]string{"/"}, elem...)...))
}

// of returns the cgroup of the container id that g is, or is below, and whether there
// is one. On v1 it is without the controllers for which g is elsewhere: runtimes
// do not make a cgroup for each controller that the kernel has.
func (g Group) of(id string) (Group, bool) {
	var own Group
	own.V2, _ = upTo(g.V2, id)
	for controller, dir := range g.V1 {
		if dir, ok := upTo(dir, id); ok {
			if own.V1 == nil {
				own.V1 = map[string]string{}
			}
			own.V1[controller] = dir
		}
	}
	return own, own.V2 != "" || len(own.V1) > 0
}

// upTo cuts from path what is below the cgroup that is named after id, as <id> or
// docker-<id>.scope, and reports whether there is one. A first process may have moved itself
// further down: systemd goes to init.scope below the container's cgroup, Docker in Docker to
// init, and limits and counters of the container are not there.
func upTo(path, id string) (string, bool) {
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

// Dir returns the directory that has the files of a controller, as v1 names
// it, and whether there is one.
func (g Group) Dir(controller string) (string, bool) {
	if g.V2 != "" {
		return g.V2, true
	}
	dir, ok := g.V1[controller]
	return dir, ok
}

// Path returns what the cgroup is called below where cgroups are mounted, as
// /kubepods/burstable/pod1/2.
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

// Parent returns the cgroup that g is in.
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

// Make makes the cgroup called name, which may be there, where the given
// controllers are; on v2 it is given them. A controller that the node does not
// have is left out.
func Make(name string, controllers []string) (Group, error) {
	return makeIn(Root, name, controllers, unified())
}

func makeIn(root, name string, controllers []string, v2 bool) (g Group, err error) {
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
	there, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return g, err
	}
	controllers = slices.DeleteFunc(slices.Clone(controllers), func(c string) bool { return !slices.Contains(strings.Fields(string(there)), c) })
	// From the top down, for only what a cgroup has itself can it pass on.
	dir := root
	for step := range strings.SplitSeq(strings.Trim(filepath.Clean("/"+name), "/"), "/") {
		for _, c := range controllers {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
				return g, err
			}
		}
		dir = filepath.Join(dir, step)
	}
	return g, nil
}

// Remove removes an empty cgroup; one that is not there is no error.
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

// read reads a file of the kernel's that comes in one piece, as all of a cgroup
// do but the lists of processes: what does not fill the buffer was all of it. These files can be
// polled, so package os would add each to the runtime's poller and take it
// out again: three times what the reading itself costs, and the kubelet asks
// for hundreds at a time. The contents are put into buffer if they fit.
func read(name string, buffer []byte) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	for size := 0; ; {
		n, err := unix.Read(fd, buffer[size:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		}
		if size += n; size < len(buffer) {
			return buffer[:size], nil
		}
		buffer = append(buffer, make([]byte, size)...)
	}
}

// Unlimited is the value of a limit that is none.
const Unlimited = ^uint64(0)

// Number reads a file that holds one number, or "max" for Unlimited.
func Number(dir, file string) (uint64, error) {
	data, err := read(dir+"/"+file, make([]byte, 64))
	if err != nil {
		return 0, err
	}
	text := string(bytes.TrimSpace(data))
	if text == "max" {
		return Unlimited, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s/%s: %w", dir, file, err)
	}
	return n, nil
}

// Numbers reads a file of lines of a name and a number, and returns those with
// the given names. What is no number is left out.
func Numbers(dir, file string, names ...string) (map[string]uint64, error) {
	data, err := read(dir+"/"+file, make([]byte, 4096))
	if err != nil {
		return nil, err
	}
	out := make(map[string]uint64, len(names))
	for line := range bytes.Lines(data) {
		name, number, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		i := slices.IndexFunc(names, func(s string) bool { return s == string(name) })
		if i < 0 {
			continue
		}
		if n, err := strconv.ParseUint(string(number), 10, 64); err == nil {
			out[names[i]] = n
		}
	}
	return out, nil
}

// A Pressure is how long tasks have waited for a resource.
type Pressure struct {
	Avg10, Avg60, Avg300 float64 // % of the time
	Total                uint64  // nanoseconds
}

// Pressures reads a pressure stall file of v2: some and full. Both are nil
// where the kernel does not tell, as it may be switched off.
func Pressures(dir, file string) (some, full *Pressure, err error) {
	data, err := read(dir+"/"+file, make([]byte, 256))
	if errors.Is(err, fs.ErrNotExist) || err != nil && isUnsupported(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(data)) {
		kind, p, err := parsePressure(line)
		if err != nil {
			return nil, nil, fmt.Errorf("%s/%s: %w", dir, file, err)
		}
		switch kind {
		case "some":
			some = &p
		case "full":
			full = &p
		}
	}
	return some, full, nil
}

// parsePressure reads a line: some avg10=0.00 avg60=0.12 avg300=1.50 total=42.
func parsePressure(line string) (kind string, p Pressure, err error) {
	for field := range strings.FieldsSeq(line) {
		name, value, named := strings.Cut(field, "=")
		switch name {
		case "avg10":
			p.Avg10, err = strconv.ParseFloat(value, 64)
		case "avg60":
			p.Avg60, err = strconv.ParseFloat(value, 64)
		case "avg300":
			p.Avg300, err = strconv.ParseFloat(value, 64)
		case "total":
			p.Total, err = strconv.ParseUint(value, 10, 64)
			p.Total *= 1000 // the kernel counts microseconds
		default:
			if !named {
				kind = name
			}
		}
		if err != nil {
			return "", p, err
		}
	}
	return kind, p, nil
}

// isUnsupported reports whether the kernel has the file but not what it tells.
func isUnsupported(err error) bool { return errors.Is(err, unix.EOPNOTSUPP) }
