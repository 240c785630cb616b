package exec

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"berth/core/cgroup"
)

const (
	// reapTimeout is how long the parent of a killed process may take to reap it. It takes
	// some microseconds, and more if the CPUs are busy.
	reapTimeout = 500 * time.Millisecond
	// killRounds is how often the cgroup is searched for processes that were started meanwhile.
	killRounds = 3
	// killTimeout bounds all that in a container with very many processes.
	killTimeout = 2 * time.Second
)

// errProcessEnded is that a process had ended before it could be sent a signal.
var errProcessEnded = errors.New("the process has ended")

// A process is a process of a container.
type process struct {
	pid, parent, session int
	ended                bool   // it is a zombie, or is just ending
	startTime            uint64 // since boot, in clock ticks; tells it from later processes with its pid
}

// signalTree sends a signal to the process pid, which must be in the cgroup of the container,
// and to all of its descendants, also those in sessions of their own. If the process itself
// has ended, it returns errProcessEnded.
func signalTree(containerID string, pid int, signal unix.Signal) error {
	// A pidfd keeps referring to this process even if the pid is reused.
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return errProcessEnded
	}
	if err != nil {
		return fmt.Errorf("pidfd: %w", err)
	}
	defer unix.Close(pidfd)
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return err
	}
	t := &tree{containerID: containerID, root: pid, rootPidfd: pidfd, proc: proc, deadline: time.Now().Add(killTimeout), stopped: map[process]bool{}}
	if root, err := t.stat(pid); err != nil || root.ended {
		return errProcessEnded // a zombie is not in the cgroup any more with cgroup v1
	}
	t.group, err = cgroup.ForContainer(pid, containerID)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return errProcessEnded
	}
	if err != nil {
		return err
	}
	if containerID == "" || !strings.Contains(t.group.Path(), containerID) {
		return fmt.Errorf("process %d is not in the cgroup of the container", pid)
	}
	if signal == unix.SIGKILL {
		t.kill()
	} else {
		t.signal(signal)
	}
	return errors.Join(t.errs...)
}

// ticksPerSecond is the unit of times in /proc/PID/stat: USER_HZ, which is 100 on all architectures of Go.
const ticksPerSecond = 100

// processAge returns how long ago the process pid was started.
func processAge(pid int) (time.Duration, error) {
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, err
	}
	p, err := (&tree{proc: proc}).stat(pid)
	if err != nil {
		return 0, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, err
	}
	return time.Duration(now.Nano()) - time.Duration(p.startTime)*time.Second/ticksPerSecond, nil
}

// A tree is a process, the root, and its descendants.
type tree struct {
	containerID string
	root        int
	rootPidfd   int
	group       cgroup.Group
	proc        procfs.FS
	deadline    time.Time // of the search for more processes
	stopped     map[process]bool
	errs        []error
}

// signal sends a signal, which the processes may handle or ignore.
func (t *tree) signal(signal unix.Signal) {
	for _, level := range slices.Backward(t.levels()) {
		for _, p := range level {
			t.send(p, signal)
		}
	}
	t.sendRoot(signal)
}

// kill kills all processes, children before their parents, so that the parents can reap
// them. A process whose parent has ended is reparented to the init process of the container,
// which may never reap it: each probe that times out would leave a zombie, until the limit
// of processes is reached.
//
// All processes are stopped meanwhile, so that they cannot start others unseen. A parent is
// continued only until it has reaped its children; a shell gets no further than starting
// its next command.
func (t *tree) kill() {
	t.sendRoot(unix.SIGSTOP)
	levels := t.stop()
	for round := 0; round < killRounds && len(levels) > 0 && time.Now().Before(t.deadline); round++ {
		for _, level := range slices.Backward(levels) {
			for _, p := range level {
				t.send(p, unix.SIGKILL)
			}
			t.letParentsReap(level)
		}
		levels = t.stop()
	}
	t.sendRoot(unix.SIGKILL)
	for _, level := range t.levels() {
		for _, p := range level {
			t.send(p, unix.SIGKILL)
		}
	}
}

// stop stops all descendants of the root, and returns them.
func (t *tree) stop() (levels [][]process) {
	for range killRounds {
		levels = t.levels()
		found := false
		for _, level := range levels {
			for _, p := range level {
				if !t.stopped[p] {
					t.stopped[p], found = true, true
					t.send(p, unix.SIGSTOP)
				}
			}
		}
		if !found || time.Now().After(t.deadline) {
			break
		}
	}
	return levels
}

// letParentsReap continues the parents of killed processes until these have been reaped.
// Parents outside the tree are not signalled.
func (t *tree) letParentsReap(killed []process) {
	parents := map[int]process{}
	isRoot := false
	for _, p := range killed {
		isRoot = isRoot || p.parent == t.root
		for parent := range t.stopped {
			if parent.pid == p.parent {
				parents[parent.pid] = parent
			}
		}
	}
	signalParents := func(signal unix.Signal) {
		for _, p := range parents {
			t.send(p, signal)
		}
		if isRoot {
			t.sendRoot(signal)
		}
	}
	if len(parents) == 0 && !isRoot {
		return // only the init process of the container could reap them
	}
	signalParents(unix.SIGCONT)
	t.waitReaped(killed)
	signalParents(unix.SIGSTOP)
}

func (t *tree) sendRoot(signal unix.Signal) {
	if err := ignoreEnded(unix.PidfdSendSignal(t.rootPidfd, signal, nil, 0)); err != nil {
		t.errs = append(t.errs, err)
	}
}

func (t *tree) send(p process, signal unix.Signal) {
	if err := ignoreEnded(t.signalProcess(p, signal)); err != nil {
		t.errs = append(t.errs, err)
	}
}

// levels returns the descendants of the root, by their distance from it.
func (t *tree) levels() [][]process {
	all, err := t.processes()
	if err != nil {
		t.errs = append(t.errs, err)
	}
	return descendants(all, t.root)
}

// signalProcess sends a signal to a process, if that is still in the container.
func (t *tree) signalProcess(p process, signal unix.Signal) error {
	pidfd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	// While the pidfd is open, the pid is that of this process or of none.
	now, err := t.stat(p.pid)
	if err != nil || now.startTime != p.startTime {
		return err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.pid))
	if err != nil || !strings.Contains(string(text), t.containerID) {
		return err
	}
	return unix.PidfdSendSignal(pidfd, signal, nil, 0)
}

// ignoreEnded returns err unless it is that there is no such process.
func ignoreEnded(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// waitReaped waits until the processes, and their zombies, are gone, for at most reapTimeout.
func (t *tree) waitReaped(killed []process) {
	left := slices.Clone(killed)
	poll, timeout := time.NewTicker(100*time.Microsecond), time.After(reapTimeout)
	defer poll.Stop()
	for {
		left = slices.DeleteFunc(left, func(p process) bool {
			now, err := t.stat(p.pid)
			return err != nil || now.startTime != p.startTime
		})
		if len(left) == 0 {
			return
		}
		select {
		case <-timeout:
			return
		case <-poll.C:
		}
	}
}

// processes returns the processes of the cgroup that have not ended.
func (t *tree) processes() ([]process, error) {
	pids, err := cgroup.Processes(t.group)
	if err != nil {
		return nil, ignoreEnded(err)
	}
	all := make([]process, 0, len(pids))
	for _, pid := range pids {
		if p, err := t.stat(pid); err == nil && !p.ended {
			all = append(all, p)
		}
	}
	return all, nil
}

// stat reads /proc/PID/stat.
func (t *tree) stat(pid int) (process, error) {
	proc, err := t.proc.Proc(pid)
	if err != nil {
		return process{}, err
	}
	stat, err := proc.Stat()
	if err != nil {
		return process{}, err
	}
	return process{
		pid: pid, parent: stat.PPID, session: stat.Session,
		ended: stat.State == "Z" || stat.State == "X", startTime: stat.Starttime,
	}, nil
}

// descendants returns the processes that descend from root, or are in its session, by their
// distance from it. The processes were not read at one instant, so a pid may have been
// reused meanwhile, and a process may seem to be its own ancestor.
func descendants(all []process, root int) (levels [][]process) {
	byPID := make(map[int]process, len(all))
	for _, p := range all {
		byPID[p.pid] = p
	}
	type descendant struct {
		process
		depth int
	}
	var found []descendant
	for _, p := range all {
		if p.pid == root {
			continue
		}
		depth, descends := 0, false
		for ancestor, ok := p, true; ok && depth <= len(all); ancestor, ok = byPID[ancestor.parent] {
			depth++
			descends = descends || ancestor.session == root
			if ancestor.parent == root {
				descends = true
				break
			}
		}
		if descends {
			found = append(found, descendant{p, depth})
		}
	}
	slices.SortStableFunc(found, func(a, b descendant) int { return cmp.Compare(a.depth, b.depth) })
	for i, d := range found {
		if i == 0 || d.depth != found[i-1].depth {
			levels = append(levels, nil)
		}
		levels[len(levels)-1] = append(levels[len(levels)-1], d.process)
	}
	return levels
}
