package mounts

import (
	"bytes"
	"os"
	"strconv"
)

// Foreign reports whether the process pid has mounts of its own, and so does not see
// the mounts that berth makes. It is true as well if that cannot be read: a process in
// another mount namespace would be given the empty directory below a staged mount, and
// not a restricted one.
func Foreign(pid int) bool {
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return true
	}
	theirs, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	return err != nil || theirs != ours
}

// Parent returns the parent of the process pid, 0 if it cannot be told.
func Parent(pid int) int {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything.
	_, rest, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	fields := bytes.Fields(rest) // state, parent, ...
	if len(fields) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0
	}
	return parent
}
