package exec

import (
	"errors"
	"fmt"
	osexec "os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDescendantsAreOrderedByDepth(t *testing.T) {
	all := []process{
		{pid: 1, parent: 0, session: 1},
		{pid: 10, parent: 9, session: 10}, // the root
		{pid: 11, parent: 10, session: 10},
		{pid: 12, parent: 11, session: 12}, // by setsid
		{pid: 13, parent: 1, session: 10},  // its parent has ended
		{pid: 14, parent: 13, session: 14},
		{pid: 20, parent: 1, session: 1},
		{pid: 21, parent: 20, session: 21},
	}
	depths := map[int]int{}
	for i, level := range descendants(all, 10) {
		for _, p := range level {
			depths[p.pid] = i
		}
	}
	for _, pid := range []int{11, 12, 13, 14} {
		if _, ok := depths[pid]; !ok {
			t.Errorf("process %d was not found", pid)
		}
	}
	if len(depths) != 4 {
		t.Errorf("processes by level: %v, want 11 to 14", depths)
	}
	if depths[12] <= depths[11] || depths[14] <= depths[13] {
		t.Errorf("levels %v, want children after their parents", depths)
	}
}

// With reused pids a process may seem to be its own ancestor.
func TestDescendantsTerminateOnCycle(t *testing.T) {
	t.Parallel()
	done := make(chan [][]process)
	go func() {
		done <- descendants([]process{
			{pid: 5, parent: 6, session: 1}, {pid: 6, parent: 7, session: 1}, {pid: 7, parent: 5, session: 1},
			{pid: 8, parent: 8, session: 1}, {pid: 10, parent: 11, session: 10}, {pid: 11, parent: 10, session: 10},
		}, 10)
	}()
	select {
	case levels := <-done:
		if got := fmt.Sprint(levels); len(levels) != 1 || !slices.ContainsFunc(levels[0], func(p process) bool { return p.pid == 11 }) {
			t.Errorf("got %s, want process 11", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("descendants does not return")
	}
}

// Docker may not know of the end yet: then the process is a zombie.
func TestSignalOfAZombieReportsItsEnd(t *testing.T) {
	cmd := osexec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if err := signalTree("container", cmd.Process.Pid, unix.SIGKILL); !errors.Is(err, errProcessEnded) {
		t.Errorf("a zombie: %v, want errProcessEnded", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := signalTree("container", cmd.Process.Pid, unix.SIGKILL); !errors.Is(err, errProcessEnded) {
		t.Errorf("a reaped process: %v, want errProcessEnded", err)
	}
}

func TestProcessAge(t *testing.T) {
	start := time.Now()
	cmd := osexec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	time.Sleep(300 * time.Millisecond)
	age, err := processAge(cmd.Process.Pid)
	if most := time.Since(start) + 20*time.Millisecond; err != nil || age < 280*time.Millisecond || age > most {
		t.Errorf("age %v, %v, want between 280ms and %v", age, err, most)
	}
}
