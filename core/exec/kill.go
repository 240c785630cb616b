package exec

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// signalTree sends a signal to the process pid, which must be one of the
// container id, and to every process that it has begun, whatever session those
// have made their own.
func signalTree(id string, pid int, signal unix.Signal) error {
	// The handle is on this process, not on the next one with its number.
	handle, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd: %w", err)
	}
	defer unix.Close(handle)
	cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil //nolint:nilerror // it is gone
	}
	if !strings.Contains(string(cgroup), id) {
		return fmt.Errorf("process %d is none of this container", pid)
	}
	tree := begunBy(pid)
	err = unix.PidfdSendSignal(handle, signal, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for _, p := range tree {
		text, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p))
		if readErr == nil && string(text) == string(cgroup) {
			if killErr := unix.Kill(p, signal); killErr != nil && !errors.Is(killErr, unix.ESRCH) {
				err = killErr
			}
		}
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// begunBy returns the processes that descend from pid or are of its session.
func begunBy(pid int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	parents, sessions := map[int]int{}, map[int]int{}
	for _, e := range entries {
		p, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// pid (name) state ppid pgrp session; the name may hold anything.
		_, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 4 {
			continue
		}
		parents[p], _ = strconv.Atoi(fields[1])
		sessions[p], _ = strconv.Atoi(fields[3])
	}
	var tree []int
	for p := range parents {
		for at := p; at > 1; at = parents[at] {
			if at == pid || sessions[at] == pid {
				if p != pid {
					tree = append(tree, p)
				}
				break
			}
		}
	}
	return tree
}
