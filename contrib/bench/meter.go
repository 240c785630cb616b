package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/procfs"
)

// shimName is how the names of containerd's shims begin, as /proc has them.
const shimName = "containerd-shim"

// workers are the processes that work for a side: those that are named, and the shims of a containerd among them.
type workers struct {
	named     []process
	addresses []string // where that containerd listens: its shims name one of them
}

// newWorkers returns the workers of a side. Processes that could not be determined are not among them.
func newWorkers(named ...process) (w workers, err error) {
	for _, p := range named {
		if p.pid == 0 {
			continue
		}
		w.named = append(w.named, p)
		s, err := p.stat()
		if err != nil {
			return w, err
		}
		if s.Comm != "containerd" {
			continue
		}
		paths, err := listeningPaths(p.pid)
		if err != nil {
			return w, fmt.Errorf("sockets of %s: %w", p.name, err)
		}
		w.addresses = append(w.addresses, paths...)
	}
	return w, nil
}

// listeningPaths returns the paths of the Unix sockets on which a process listens.
func listeningPaths(pid int) (paths []string, err error) {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return nil, err
	}
	open, err := proc.FileDescriptorTargets()
	if err != nil {
		return nil, err
	}
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return nil, err
	}
	sockets, err := fs.NetUNIX()
	if err != nil {
		return nil, err
	}
	for _, s := range sockets.Rows {
		if s.Path != "" && slices.Contains(open, fmt.Sprintf("socket:[%d]", s.Inode)) {
			paths = append(paths, s.Path)
		}
	}
	return paths, nil
}

// shims returns the shims of the containerd among the workers.
func (w workers) shims() (found []process, err error) {
	if len(w.addresses) == 0 {
		return nil, nil
	}
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		name, err := p.Comm()
		if err != nil || !strings.HasPrefix(name, shimName) {
			continue // it has ended, or is something else
		}
		if line, err := p.CmdLine(); err == nil && isShimOf(line, w.addresses) {
			found = append(found, process{"shims", p.PID})
		}
	}
	return found, nil
}

// isShimOf reports whether a command line is that of a shim of a containerd that listens on the addresses, and not
// of one of its commands that only begin or delete a shim.
func isShimOf(line, addresses []string) bool {
	if slices.Contains(line, "start") || slices.Contains(line, "delete") {
		return false
	}
	i := slices.Index(line, "-address")
	return i >= 0 && i+1 < len(line) && slices.Contains(addresses, line[i+1])
}

// A meter adds up the CPU of workers, also of shims that begin or end between its readings.
type meter struct {
	workers
	children    children
	first, last map[process]float64
}

// children are those whose CPU counts once they have ended.
type children int

const (
	noChildren    children = iota
	helpers                // of the adapter, dockerd and containerd, such as CNI plugins and socat
	allOfTheStart          // also of shims: the low-level runtime, and processes of containers that have ended
)

// newMeter makes the first reading.
func newMeter(w workers, c children) (*meter, error) {
	m := &meter{workers: w, children: c, last: map[process]float64{}}
	err := m.read()
	m.first = maps.Clone(m.last)
	return m, err
}

func (m *meter) read() error {
	for _, p := range m.named {
		seconds, err := p.cpu(m.children >= helpers)
		if err != nil {
			return fmt.Errorf("CPU: %w", err)
		}
		m.last[p] = seconds
	}
	shims, err := m.shims()
	if err != nil {
		return err
	}
	for _, p := range shims {
		if seconds, err := p.cpu(m.children == allOfTheStart); err == nil { // an error: it has ended
			m.last[p] = seconds
		}
	}
	return nil
}

// used returns the CPU seconds since the first reading up to the last, by the names of the processes and in total.
func (m *meter) used() (each map[string]float64, sum float64) {
	each = map[string]float64{}
	for p, seconds := range m.last {
		each[p.name] += seconds - m.first[p]
		sum += seconds - m.first[p]
	}
	return each, sum
}
