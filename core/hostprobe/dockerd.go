package hostprobe

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A Process is a running dockerd.
type Process struct {
	PID  int
	Args []string // without its name
	Root string   // the directory that is / for it
	Unit string   // the systemd service that it belongs to, or ""
}

// Dockerd returns the dockerd of this node that listens on the Unix socket at path. proc is the mount point of proc(5).
//
// The credentials of the peer do not have it: a socket that systemd has opened for docker.service is systemd's. A
// dockerd in a container has a socket of the same name, but not the same file.
func Dockerd(proc, path string) (Process, error) {
	socket, err := os.Stat(path)
	if err != nil {
		return Process{}, err
	}
	executables, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "exe"))
	if err != nil {
		return Process{}, err
	}
	for _, exe := range executables {
		// After an upgrade exe is "/usr/bin/dockerd (deleted)": proc_pid_exe(5).
		target, err := os.Readlink(exe)
		dir := filepath.Dir(exe)
		if err != nil || !strings.Contains(filepath.Base(target), "dockerd") || !listens(dir, socket) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		pid, _ := strconv.Atoi(filepath.Base(dir)) // the pattern matches few others
		args := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
		return Process{PID: pid, Args: args[1:], Root: filepath.Join(dir, "root"), Unit: unitOf(dir)}, nil
	}
	return Process{}, fmt.Errorf("no dockerd of this node listens on %s", path)
}

// listens reports whether the process with the directory dir in proc(5) listens on that Unix socket.
func listens(dir string, socket os.FileInfo) bool {
	text, err := os.ReadFile(filepath.Join(dir, "net", "unix"))
	if err != nil {
		return false
	}
	const acceptsConnections = 0x10000 // __SO_ACCEPTCON of the kernel
	inodes := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		// Num RefCount Protocol Flags Type St Inode Path
		fields := strings.Fields(line)
		if len(fields) < 8 || !strings.HasPrefix(fields[7], "/") {
			continue
		}
		flags, err := strconv.ParseUint(fields[3], 16, 32)
		if err != nil || flags&acceptsConnections == 0 {
			continue
		}
		name := strings.TrimSuffix(line[strings.Index(line, " /")+1:], "\n")
		if info, err := os.Stat(filepath.Join(dir, "root", name)); err == nil && os.SameFile(info, socket) {
			inodes[fields[6]] = true
		}
	}
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil || len(inodes) == 0 {
		return false
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
		inode, isSocket := strings.CutPrefix(target, "socket:[")
		if err == nil && isSocket && inodes[strings.TrimSuffix(inode, "]")] {
			return true
		}
	}
	return false
}

// unitOf returns the last service in the cgroups of a process.
func unitOf(dir string) (unit string) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		for part := range strings.SplitSeq(strings.TrimSpace(line), "/") {
			if strings.HasSuffix(part, ".service") {
				unit = part
			}
		}
	}
	return unit
}
