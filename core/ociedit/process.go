package ociedit

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// FindProcess returns the process that has the PID now.
func FindProcess(pid int) (Process, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Process{}, err
	}
	// The name of the program, in parentheses, may have spaces and parentheses. The state, field 3, follows it.
	after := strings.LastIndexByte(string(text), ')')
	if after < 0 {
		return Process{}, fmt.Errorf("/proc/%d/stat has no name", pid)
	}
	fields := strings.Fields(string(text[after+1:]))
	const startTime = 22 - 3
	if len(fields) <= startTime {
		return Process{}, fmt.Errorf("/proc/%d/stat has too few fields", pid)
	}
	ticks, err := strconv.ParseUint(fields[startTime], 10, 64)
	if err == nil && (fields[0] == "Z" || fields[0] == "X") {
		err = errors.New("the process has exited")
	}
	if err != nil {
		return Process{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return Process{PID: pid, StartTime: ticks}, nil
}

// Check returns an error if p is not running any more.
func (p Process) Check() error {
	now, err := FindProcess(p.PID)
	if err != nil {
		return fmt.Errorf("process %d of the sandbox: %w", p.PID, err)
	}
	if now != p {
		return fmt.Errorf("process %d is not the one of the sandbox any more", p.PID)
	}
	return nil
}
