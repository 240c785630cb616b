package stats

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"
)

// An open is how many files and sockets the processes of a container had open,
// and how long it took to count them.
type open struct {
	at             time.Time
	took           time.Duration
	files, sockets uint64
}

// opened counts what processes of the container id have open. As each one is
// looked at, thousands of processes take a while: then what was counted last
// is told again until there was a rest.
func (s *Service) opened(ctx context.Context, id string, list []int) (files, sockets uint64) {
	s.mu.Lock()
	last := s.opens[id]
	s.mu.Unlock()
	at := time.Now()
	if last != nil && at.Sub(last.at) < restFactor*last.took {
		return last.files, last.sockets
	}
	now := &open{at: at}
	for _, pid := range list {
		if ctx.Err() != nil {
			break
		}
		now.add("/proc/" + strconv.Itoa(pid) + "/fd")
	}
	now.took = time.Since(at)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opens[id] = now
	return now.files, now.sockets
}

// add counts what a process has open; nothing if it has ended.
func (o *open) add(dir string) {
	d, err := os.Open(dir)
	if err != nil {
		return
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1) // those that were read count
	for _, name := range names {
		if target, err := os.Readlink(dir + "/" + name); err == nil {
			o.files++
			if strings.HasPrefix(target, "socket:") {
				o.sockets++
			}
		}
	}
}
