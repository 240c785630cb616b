package cgroupstats

import (
	"context"
	"errors"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"
)

// OpenFileLimit returns how many files the process pid may open, nil if there is no limit.
func OpenFileLimit(pid int) (*uint64, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return nil, err
	}
	limits, err := p.Limits()
	switch {
	case errors.Is(err, procfs.ErrFileParse): // a line of another limit, perhaps
		return nil, nil
	case err != nil:
		return nil, err
	case limits.OpenFiles == math.MaxUint64: // "unlimited"
		return nil, nil
	}
	return &limits.OpenFiles, nil
}

// Timing of an FDCounter. A container can open any number of files, so the time that is
// spent on it is bounded.
const (
	// fdSliceTimeout is how long the files of one container are counted in one go.
	fdSliceTimeout = 100 * time.Millisecond
	// fdRestFactor limits the counting for one container to a tenth of a core: after a slice
	// the container is left alone for that many times what the slice took.
	fdRestFactor = 9
	// fdRetryInterval is how long a container is left alone if its files could not be
	// counted within a slice, so that it takes no time from the others.
	fdRetryInterval = 5 * time.Minute
	// fdBatch is how many directory entries are read at a time.
	fdBatch = 512
)

// FDs are the open file descriptors of the processes of a container.
type FDs struct {
	Files   uint64 // all of them
	Sockets uint64
	due     time.Time // when they may be counted again
}

// An FDCounter counts open file descriptors and keeps the last count of each container.
// It reads /proc/PID/fd itself: github.com/prometheus/procfs collects all names and targets
// of a process in memory before it returns and cannot be interrupted, and a container can
// have a million.
type FDCounter struct {
	slice time.Duration // fdSliceTimeout but in tests

	mu   sync.Mutex // guards last
	last map[string]*FDs
}

// NewFDCounter returns an FDCounter that has counted nothing.
func NewFDCounter() *FDCounter {
	return &FDCounter{slice: fdSliceTimeout, last: map[string]*FDs{}}
}

// Count counts the open files of the processes pids of the container id, until the given
// time and for no longer than a slice; what was found until then is the result if that is
// too short. If it is too early or too late to count, it returns the last count, nil if
// there is none.
func (f *FDCounter) Count(ctx context.Context, id string, pids []int, until time.Time) *FDs {
	f.mu.Lock()
	last := f.last[id]
	f.mu.Unlock()
	begin := time.Now()
	if last != nil && begin.Before(last.due) || !begin.Before(until) {
		return last
	}
	if end := begin.Add(f.slice); end.Before(until) {
		until = end
	}
	current, complete := &FDs{}, true
	for _, pid := range pids {
		if complete = ctx.Err() == nil && current.addProcess("/proc/"+strconv.Itoa(pid)+"/fd", until); !complete {
			break
		}
	}
	current.due = begin.Add(fdRestFactor * time.Since(begin))
	if !complete {
		current.due = begin.Add(fdRetryInterval)
		if last != nil {
			current.Files, current.Sockets = max(current.Files, last.Files), max(current.Sockets, last.Sockets)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last[id] = current
	return current
}

// Prune drops the counts of containers for which keep is false.
func (f *FDCounter) Prune(keep func(id string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.last {
		if !keep(id) {
			delete(f.last, id)
		}
	}
}

// addProcess counts the entries of a directory /proc/PID/fd, nothing if the process has
// ended. It reports whether it finished before the given time.
func (c *FDs) addProcess(dir string, until time.Time) bool {
	d, err := os.Open(dir)
	if err != nil {
		return time.Now().Before(until)
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(fdBatch)
		for _, name := range names {
			if target, err := os.Readlink(dir + "/" + name); err == nil {
				c.Files++
				if strings.HasPrefix(target, "socket:") {
					c.Sockets++
				}
			}
		}
		if !time.Now().Before(until) {
			return false
		}
		if err != nil {
			return true
		}
	}
}
