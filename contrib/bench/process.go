package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/prometheus/procfs"
)

// A process is measured for its CPU and memory.
type process struct {
	name string
	pid  int // 0 if it cannot be determined
}

// checkSocket returns a one-line error if a socket cannot be used.
func checkSocket(socket string) error {
	path := strings.TrimPrefix(socket, "unix://")
	conn, err := net.Dial("unix", path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no socket %s", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no process listens on %s", path)
	case err != nil:
		return err
	}
	return conn.Close()
}

// listeningProcess returns the process that listens on a socket.
func listeningProcess(name, socket string) (process, error) {
	conn, err := net.Dial("unix", strings.TrimPrefix(socket, "unix://"))
	if err != nil {
		return process{}, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return process{}, err
	}
	p := process{name: name}
	err = raw.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			p.pid = int(cred.Pid)
		}
	})
	// With socket activation the listener is the service manager.
	if p.pid == 1 {
		p.pid = 0
	}
	return p, err
}

// engineProcesses returns the Engine that listens on a socket and its containerd.
func engineProcesses(socket string) ([]process, error) {
	docker, err := listeningProcess("dockerd", socket)
	if err != nil {
		return nil, err
	}
	if docker.pid == 0 {
		docker.pid = processByName("dockerd", 0)
	}
	// Without the option --containerd Docker may start its own containerd.
	containerd := process{"containerd", processByName("containerd", docker.pid)}
	if containerd.pid == 0 {
		if found, err := listeningProcess("containerd", "/run/containerd/containerd.sock"); err == nil {
			containerd = found
		}
	}
	if containerd.pid == 0 {
		containerd.pid = processByName("containerd", 0)
	}
	return []process{docker, containerd}, nil
}

// processByName finds a process by its name, among the children of parent unless that is 0.
func processByName(name string, parent int) int {
	all, err := procfs.AllProcs()
	if err != nil {
		return 0
	}
	for _, p := range all {
		s, err := p.Stat()
		if err == nil && s.Comm == name && (parent == 0 || s.PPID == parent) { // an error: it has ended
			return p.PID
		}
	}
	return 0
}

// ticks is the number of clock ticks per second in /proc (USER_HZ).
const ticks = 100

// cpu returns the seconds of CPU that a process has used, and its children that have ended if they count too.
func (p process) cpu(withChildren bool) (float64, error) {
	s, err := p.stat()
	sum := s.UTime + s.STime
	if withChildren {
		sum += uint(max(0, s.CUTime) + max(0, s.CSTime))
	}
	return float64(sum) / ticks, err
}

func (p process) stat() (procfs.ProcStat, error) {
	proc, err := procfs.NewProc(p.pid)
	if err != nil {
		return procfs.ProcStat{}, fmt.Errorf("%s has ended: %w", p.name, err)
	}
	s, err := proc.Stat()
	if err != nil {
		return s, fmt.Errorf("%s: %w", p.name, err)
	}
	return s, nil
}

// ended reports whether a process has ended, waited for or not, or just being waited for.
func (p process) ended() bool {
	s, err := p.stat()
	return err != nil || s.State == "Z" || s.State == "X"
}

// threads returns the number of threads of a process.
func (p process) threads() (int, error) {
	s, err := p.stat()
	return s.NumThreads, err
}

const mib = 1 << 20

// resident returns the resident memory of a process, in MiB.
func (p process) resident() (float64, error) {
	s, err := p.stat()
	return float64(s.ResidentMemory()) / mib, err
}

// pss returns the memory of a process in MiB, with its share of pages that others use too.
func (p process) pss() (float64, error) {
	proc, err := procfs.NewProc(p.pid)
	if err != nil {
		return 0, fmt.Errorf("%s has ended: %w", p.name, err)
	}
	maps, err := proc.ProcSMapsRollup()
	if err != nil {
		return 0, fmt.Errorf("memory of %s: %w", p.name, err)
	}
	return float64(maps.Pss) / mib, nil
}

// binary returns the size of a process's program, in MB.
func (p process) binary() (float64, error) {
	info, err := os.Stat(fmt.Sprintf("/proc/%d/exe", p.pid))
	if err != nil {
		return 0, err
	}
	return float64(info.Size()) / 1e6, nil
}

// descriptors counts the open files of a process.
func (p process) descriptors() (int, error) {
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	return len(all), err
}

// processesIn returns the processes in containers, by the names of their cgroups.
func processesIn(ids []string) (found []process, err error) {
	wanted := map[string]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
		if err == nil && slices.ContainsFunc(containerIDs(string(data)), func(id string) bool { return wanted[id] }) { // an error: it has ended
			found = append(found, process{"container", p.PID})
		}
	}
	return found, nil
}

// containerIDs returns the possible container IDs in paths of cgroups:
// /parent/ID with cgroupfs, and prefix-ID.scope with systemd.
func containerIDs(cgroups string) (ids []string) {
	for _, word := range strings.FieldsFunc(cgroups, func(r rune) bool { return strings.ContainsRune("/-.:\n", r) }) {
		if len(word) == 64 {
			ids = append(ids, word)
		}
	}
	return ids
}
