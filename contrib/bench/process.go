package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
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
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0
	}
	for _, file := range stats {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		s, err := parseStat(data)
		if err == nil && s.name == name && (parent == 0 || s.parent == parent) {
			return s.pid
		}
	}
	return 0
}

// A stat is the content of /proc/PID/stat.
type stat struct {
	pid, parent int
	name        string
	cpu         float64 // seconds
}

// ticks is the number of clock ticks per second in /proc (USER_HZ).
const ticks = 100

func parseStat(data []byte) (s stat, err error) {
	begin, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if begin < 0 || end < begin {
		return s, fmt.Errorf("parse /proc/PID/stat: no name in parentheses: %.80q", data)
	}
	s.name = string(data[begin+1 : end])
	fields := strings.Fields(string(data[end+1:]))
	if len(fields) < 13 {
		return s, fmt.Errorf("parse /proc/PID/stat: too few fields: %.80q", data)
	}
	var errs [4]error
	s.pid, errs[0] = strconv.Atoi(strings.TrimSpace(string(data[:begin])))
	s.parent, errs[1] = strconv.Atoi(fields[1])
	user, err := strconv.ParseFloat(fields[11], 64)
	errs[2] = err
	system, err := strconv.ParseFloat(fields[12], 64)
	errs[3] = err
	s.cpu = (user + system) / ticks
	return s, errors.Join(errs[:]...)
}

// cpu returns the seconds of CPU that a process has used.
func (p process) cpu() (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0, fmt.Errorf("CPU of %s: %w", p.name, err)
	}
	s, err := parseStat(data)
	return s.cpu, err
}

// cpuSeconds returns the seconds of CPU that processes have used, without processes that
// could not be determined.
func cpuSeconds(all []process) (map[string]float64, error) {
	sum := map[string]float64{}
	for _, p := range all {
		if p.pid == 0 {
			continue
		}
		seconds, err := p.cpu()
		if err != nil {
			return nil, err
		}
		sum[p.name] += seconds
	}
	return sum, nil
}

// difference returns after minus before, for each process and in total.
func difference(before, after map[string]float64) (each map[string]float64, sum float64) {
	each = map[string]float64{}
	for name, s := range after {
		each[name] = s - before[name]
		sum += each[name]
	}
	return each, sum
}

// resident returns the resident memory of a process, in MiB.
func (p process) resident() (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("/proc has no VmRSS of %s", p.name)
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

// processesIn counts the processes in containers, by the names of their cgroups.
func processesIn(ids []string) (int, error) {
	wanted := map[string]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return 0, err
	}
	n := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		if containsAny(containerIDs(string(data)), wanted) {
			n++
		}
	}
	return n, nil
}

func containsAny(words []string, wanted map[string]bool) bool {
	for _, w := range words {
		if wanted[w] {
			return true
		}
	}
	return false
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
