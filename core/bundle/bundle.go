// Package bundle reads the OCI runtime specification of a running container, and finds the OCI runtime that runs it.
//
// It is the one place that knows where containerd keeps the bundles of Docker's containers:
//
//	<state>/io.containerd.runtime.v2.task/<namespace>/<container ID>/config.json
//
// <state> depends on Docker's exec-root (/run/docker/containerd/daemon by default) if Docker has started containerd
// itself, and on containerd's configuration (/run/containerd) if it uses that of the system. The namespace is an option of
// dockerd, moby by default. No API reports any of it, but containerd starts each shim with a bundle as its working
// directory, and the shim is the parent of the container's first process.
package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"berth/core/cgroup"
)

const (
	// taskDir is the directory of all bundles of containerd 1.3 and later (runtime v2).
	taskDir = "io.containerd.runtime.v2.task"
	// MaxSpec bounds a config.json, in bytes. It has the environment and all mounts of the container, and becomes a part of one
	// message of the CRI, which has 16 MiB at most.
	MaxSpec = 4 << 20
)

// Spec returns the config.json of the container id, whose first process is pid.
//
// The file belongs to root, and nothing in its path to the container. A process that has the pid of one that has exited is not
// believed: it must be in the container's cgroup.
func Spec(pid int, id string) (json.RawMessage, error) {
	if pid <= 0 {
		return nil, errors.New("the container does not run")
	}
	if _, err := cgroup.ForContainer(pid, id); err != nil {
		return nil, err
	}
	shim, err := parent(pid)
	if err != nil {
		return nil, err
	}
	return read(filepath.Join("/proc", strconv.Itoa(shim), "cwd"), id)
}

// parent returns the parent of the process pid.
func parent(pid int) (int, error) {
	process, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	stat, err := process.Stat()
	return stat.PPID, err
}

// read returns the config.json of the container id. cwd is a link to the bundle of a container of the same shim: with
// some annotations the containers of a pod share one.
func read(cwd, id string) (json.RawMessage, error) {
	dir, _, err := openBundle(cwd, id)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	text, err := readFile(dir, "config.json", MaxSpec)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	if !json.Valid(text) {
		return nil, fmt.Errorf("config.json of %s is not JSON", id)
	}
	return text, nil
}
