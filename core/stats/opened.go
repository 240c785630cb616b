package stats

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"
)

var (
	// openedSlice is how long the open files of one container are counted at most.
	openedSlice = 100 * time.Millisecond
	// openedBudget is how long those of all containers are counted at most, for one who
	// collects samples. Then those that were not reached keep their last numbers.
	openedBudget = 2 * time.Second
	// openedRest is how long a container is left alone that has more open than can be
	// counted in a slice, so that it takes no time from others.
	openedRest = 5 * time.Minute
)

// linksAtOnce is how many names of open files are read at a time.
const linksAtOnce = 512

// An open is how many files and sockets the processes of a container had open.
type open struct {
	files, sockets uint64
	due            time.Time // when they are to be counted again
}

// opened counts what processes of the container id have open, until the given time and
// for no longer than a slice: then it is what was found until then. As each file is looked
// at, thousands take a while; the last numbers are told again until there was a rest.
// It returns nil if nothing has been counted yet.
func (s *Service) opened(ctx context.Context, id string, list []int, until time.Time) *open {
	s.mu.Lock()
	last := s.opens[id]
	s.mu.Unlock()
	begin := time.Now()
	if last != nil && begin.Before(last.due) || !begin.Before(until) {
		return last
	}
	if end := begin.Add(openedSlice); end.Before(until) {
		until = end
	}
	now, complete := &open{}, true
	for _, pid := range list {
		if complete = ctx.Err() == nil && now.add("/proc/"+strconv.Itoa(pid)+"/fd", until); !complete {
			break
		}
	}
	took := time.Since(begin)
	now.due = begin.Add(restFactor * took)
	if !complete {
		now.due = begin.Add(openedRest)
		if last != nil {
			now.files, now.sockets = max(now.files, last.files), max(now.sockets, last.sockets)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opens[id] = now
	return now
}

// add counts what a process has open, nothing if it has ended, and reports whether it
// could count all of it until the given time.
func (o *open) add(dir string, until time.Time) bool {
	d, err := os.Open(dir)
	if err != nil {
		return time.Now().Before(until)
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(linksAtOnce)
		for _, name := range names {
			if target, err := os.Readlink(dir + "/" + name); err == nil {
				o.files++
				if strings.HasPrefix(target, "socket:") {
					o.sockets++
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
