package exec

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/core/cgroup"
)

const (
	// reapGrace is how long at most the parent of a process that was killed has to reap it.
	// It takes some microseconds, and more where the CPUs are busy.
	reapGrace = 500 * time.Millisecond
	// killRounds is how often processes are looked for that were begun meanwhile.
	killRounds = 3
	// killLimit bounds the time for all that in a container of very many processes.
	killLimit = 2 * time.Second
)

// errEnded is that a process had ended before it could be sent a signal.
var errEnded = errors.New("the process has ended")

// A process is one of a container.
type process struct {
	pid, parent, session int
	ended                bool   // it is a zombie
	started              string // tells it from others that have the number later
}

// signalTree sends a signal to the process pid, which must be one of the
// container id, and to every process that it has begun, whatever session those
// have made their own. If the process itself has ended it returns errEnded.
func signalTree(id string, pid int, signal unix.Signal) error {
	// The handle is on this process, not on the next one with its number.
	handle, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return errEnded
	}
	if err != nil {
		return fmt.Errorf("pidfd: %w", err)
	}
	defer unix.Close(handle)
	group, err := cgroup.Of(pid, id)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return errEnded
	}
	if err != nil {
		return err
	}
	if id == "" || !strings.Contains(group.Path(), id) {
		return fmt.Errorf("process %d is none of this container", pid)
	}
	t := &tree{id: id, pid: pid, handle: handle, group: group, until: time.Now().Add(killLimit), stopped: map[process]bool{}}
	if signal == unix.SIGKILL {
		t.kill()
	} else {
		t.signal(signal)
	}
	return errors.Join(t.errs...)
}

// A tree is a process and all that it has begun.
type tree struct {
	id      string // of the container
	pid     int
	handle  int // pidfd of pid
	group   cgroup.Group
	until   time.Time // when there is no more time to look for processes
	stopped map[process]bool
	errs    []error
}

// signal sends a signal to all, which they may take as they like.
func (t *tree) signal(signal unix.Signal) {
	for _, level := range slices.Backward(t.levels()) {
		for _, p := range level {
			t.send(p, signal)
		}
	}
	t.sendFirst(signal)
}

// kill kills all, the children before their parents, which have a moment to reap
// them. A process whose parent has ended is given to the first one of the container,
// which may never reap it: each probe that runs out of time would leave a zombie,
// until the limit of processes is reached.
//
// All are stopped meanwhile, so that they begin nothing that is not seen. A parent
// goes on only until it has reaped, and a shell gets no further than to begin its
// next command.
func (t *tree) kill() {
	t.sendFirst(unix.SIGSTOP)
	levels := t.stop()
	for round := 0; round < killRounds && len(levels) > 0 && time.Now().Before(t.until); round++ {
		for _, level := range slices.Backward(levels) {
			for _, p := range level {
				t.send(p, unix.SIGKILL)
			}
			t.letReap(level)
		}
		levels = t.stop()
	}
	t.sendFirst(unix.SIGKILL)
	for _, level := range t.levels() {
		for _, p := range level {
			t.send(p, unix.SIGKILL)
		}
	}
}

// stop stops all that the first process has begun, and returns it.
func (t *tree) stop() (levels [][]process) {
	for range killRounds {
		levels = t.levels()
		news := false
		for _, level := range levels {
			for _, p := range level {
				if !t.stopped[p] {
					t.stopped[p], news = true, true
					t.send(p, unix.SIGSTOP)
				}
			}
		}
		if !news || time.Now().After(t.until) {
			break
		}
	}
	return levels
}

// letReap has the parents of processes that were killed go on until they have
// reaped them. Only those are touched that are of the tree.
func (t *tree) letReap(level []process) {
	parents := map[int]process{}
	first := false
	for _, p := range level {
		first = first || p.parent == t.pid
		for parent := range t.stopped {
			if parent.pid == p.parent {
				parents[parent.pid] = parent
			}
		}
	}
	each := func(signal unix.Signal) {
		for _, p := range parents {
			t.send(p, signal)
		}
		if first {
			t.sendFirst(signal)
		}
	}
	if len(parents) == 0 && !first {
		return // the container's first process reaps them, or does not
	}
	each(unix.SIGCONT)
	reaped(level)
	each(unix.SIGSTOP)
}

func (t *tree) sendFirst(signal unix.Signal) {
	if err := gone(unix.PidfdSendSignal(t.handle, signal, nil, 0)); err != nil {
		t.errs = append(t.errs, err)
	}
}

func (t *tree) send(p process, signal unix.Signal) {
	if err := signalOne(p, t.id, signal); err != nil {
		t.errs = append(t.errs, err)
	}
}

// levels returns what the first process has begun, by how far it is from it.
func (t *tree) levels() [][]process {
	all, err := processes(t.group)
	if err != nil {
		t.errs = append(t.errs, err)
	}
	return descendants(all, t.pid)
}

// signalOne sends a signal to a process of the container id unless it has ended.
func signalOne(p process, id string, signal unix.Signal) error {
	handle, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return gone(err)
	}
	defer unix.Close(handle)
	// With the handle, the number is either this process's or nobody's.
	now, err := stat(p.pid)
	if err != nil || now.started != p.started {
		return gone(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.pid))
	if err != nil || !strings.Contains(string(text), id) {
		return gone(err)
	}
	return gone(unix.PidfdSendSignal(handle, signal, nil, 0))
}

// gone returns err unless it is that there is no such process.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// reaped waits until the processes are gone, zombies too, for at most reapGrace.
func reaped(killed []process) {
	left := slices.Clone(killed)
	poll, limit := time.NewTicker(100*time.Microsecond), time.After(reapGrace)
	defer poll.Stop()
	for {
		left = slices.DeleteFunc(left, func(p process) bool {
			now, err := stat(p.pid)
			return err != nil || now.started != p.started
		})
		if len(left) == 0 {
			return
		}
		select {
		case <-limit:
			return
		case <-poll.C:
		}
	}
}

// processes returns the processes of a cgroup that have not ended.
func processes(group cgroup.Group) ([]process, error) {
	pids, err := cgroup.Processes(group)
	if err != nil {
		return nil, gone(err)
	}
	all := make([]process, 0, len(pids))
	for _, pid := range pids {
		if p, err := stat(pid); err == nil && !p.ended {
			all = append(all, p)
		}
	}
	return all, nil
}

// stat reads what the kernel tells of a process.
func stat(pid int) (process, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// pid (name) state ppid pgrp session ... starttime; the name may hold anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	const state, parent, session, started = 0, 1, 3, 19
	if len(fields) <= started {
		return process{}, fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	p := process{pid: pid, started: fields[started], ended: fields[state] == "Z" || fields[state] == "X"}
	p.parent, _ = strconv.Atoi(fields[parent])
	p.session, _ = strconv.Atoi(fields[session])
	return p, nil
}

// descendants returns the processes that descend from pid or are of its session, by
// how far they are from it. The list is not of one moment: by it a process may
// descend from itself, where a number was given again.
func descendants(all []process, pid int) (levels [][]process) {
	parents := make(map[int]process, len(all))
	for _, p := range all {
		parents[p.pid] = p
	}
	type found struct {
		process
		depth int
	}
	var tree []found
	for _, p := range all {
		if p.pid == pid {
			continue
		}
		depth, ours := 0, false
		for at, ok := p, true; ok && depth <= len(all); at, ok = parents[at.parent] {
			depth++
			ours = ours || at.session == pid
			if at.parent == pid {
				ours = true
				break
			}
		}
		if ours {
			tree = append(tree, found{p, depth})
		}
	}
	slices.SortStableFunc(tree, func(a, b found) int { return cmp.Compare(a.depth, b.depth) })
	for i, f := range tree {
		if i == 0 || f.depth != tree[i-1].depth {
			levels = append(levels, nil)
		}
		levels[len(levels)-1] = append(levels[len(levels)-1], f.process)
	}
	return levels
}
