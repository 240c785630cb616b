package stats

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/view"
)

const (
	// measureEvery is how often a container's writable layer is measured at
	// most.
	measureEvery = time.Minute
	// restFactor keeps measuring to a tenth of one core: after each one there is
	// a rest of that many times what it took.
	restFactor = 9
	// tick is the pause between two looks at what is due to be measured, and between two
	// samples of CPU time that nobody has asked for.
	tick = 10 * time.Second
)

// A layer is what a container has written to its root file system, as last
// measured.
type layer struct {
	at            time.Time
	bytes, inodes uint64
	of            first
	dir           string // where of's files are, "" if only the Engine knows
}

// writable tells what the container id has written; no bytes before the first
// measurement.
func (s *Service) writable(id string) *runtimeapi.FilesystemUsage {
	docker, err := s.docker.Last()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &runtimeapi.FilesystemUsage{
		Timestamp: time.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: docker.Can.ImageFS()},
		UsedBytes: number(0), InodesUsed: number(0),
	}
	if l := s.layers[id]; l != nil {
		out.Timestamp, out.UsedBytes.Value, out.InodesUsed.Value = l.at.UnixNano(), l.bytes, l.inodes
	}
	return out
}

// Written returns how many bytes and inodes all containers have written, as
// last measured.
func (s *Service) Written() (bytes, inodes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		bytes += l.bytes
		inodes += l.inodes
	}
	return bytes, inodes
}

// Run measures writable layers until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	for {
		if list, err := s.view.Containers(ctx, nil); err == nil {
			s.forget(ctx, list)
			for _, c := range list {
				if err := s.measure(ctx, c); err != nil && ctx.Err() == nil && !gone(err) {
					s.log.Debug("what a container has written could not be measured", slog.String("container", c.ID()), slog.Any("err", err))
				}
			}
		}
		if !pause(ctx, tick) {
			return nil
		}
	}
}

// KeepRates takes samples of the CPU time of pods and containers, so that rates are
// known when they are asked for, until ctx ends. Measuring would keep it waiting.
func (s *Service) KeepRates(ctx context.Context) error {
	for {
		if list, inside, err := s.pods(ctx, &runtimeapi.PodSandboxFilter{State: ready}); err == nil {
			s.look(list, inside)
		}
		if !pause(ctx, tick) {
			return nil
		}
	}
}

// pause waits for d and reports whether ctx has not ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// look takes a sample of each pod in list, and of the containers inside, by
// sandbox.
func (s *Service) look(list []*view.Sandbox, inside map[string][]*view.Container) {
	sums := map[string]uint64{} // by sandbox ID
	for id, some := range inside {
		for _, c := range some {
			sums[id] += s.take(c.ID(), c.Pid, false)
		}
	}
	for _, pod := range list {
		whole := pod.Config.GetLinux().GetCgroupParent() != ""
		sums[pod.ID()] += s.take(pod.ID(), pod.Pid, whole)
		if !whole {
			s.speed(pod.ID()+"/sum", time.Now(), sums[pod.ID()])
		}
	}
}

// take takes a sample of what id, whose first process is pid, or the cgroup that
// it is in, has used, and returns it; 0 of what has ended.
func (s *Service) take(id string, pid int, parent bool) uint64 {
	g, err := s.group(id, pid)
	if err != nil {
		return 0
	}
	if parent {
		g = g.Parent()
	}
	at := time.Now()
	used, err := cpuTime(g)
	if err != nil {
		return 0
	}
	s.speed(id, at, used)
	return used
}

// forget drops what is known of containers and processes that are no more.
func (s *Service) forget(ctx context.Context, list []*view.Container) {
	pods, err := s.view.Sandboxes(ctx, nil)
	if err != nil {
		return
	}
	ids, firsts := map[string]bool{}, map[first]bool{}
	for _, c := range list {
		ids[c.ID()], firsts[first{c.ID(), c.Pid}] = true, true
	}
	for _, p := range pods {
		ids[p.ID()], ids[p.ID()+"/sum"], firsts[first{p.ID(), p.Pid}] = true, true, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.rates {
		if !ids[id] {
			delete(s.rates, id)
		}
	}
	for id := range s.layers {
		if !ids[id] {
			delete(s.layers, id)
		}
	}
	for id := range s.opens {
		if !ids[id] {
			delete(s.opens, id)
		}
	}
	for key := range s.groups {
		if !firsts[key] {
			delete(s.groups, key)
		}
	}
}

// measure looks at one container.
func (s *Service) measure(ctx context.Context, c *view.Container) error {
	if c.Pid == 0 {
		return nil // it cannot write any more
	}
	s.mu.Lock()
	last := s.layers[c.ID()]
	s.mu.Unlock()
	if last != nil && time.Since(last.at) < measureEvery {
		return nil
	}
	at := time.Now()
	l := &layer{of: first{c.ID(), c.Pid}}
	var err error
	if last != nil && last.of == l.of {
		l.dir = last.dir
	} else if l.dir, err = upperDir(c.Pid); err != nil {
		return err
	}
	if l.dir != "" {
		err = walk(ctx, l.dir, l)
	} else {
		err = s.sizeOf(ctx, c.ID(), l)
	}
	if err != nil {
		return err
	}
	l.at = time.Now()
	s.mu.Lock()
	s.layers[c.ID()] = l
	s.mu.Unlock()
	pause(ctx, restFactor*l.at.Sub(at))
	return nil
}

// upperDir returns where the process pid's root file system keeps what has been
// written, or "" if it is no overlay.
func upperDir(pid int) (string, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/mountinfo")
	if err != nil {
		return "", err
	}
	dir := ""
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[4] != "/" {
			continue
		}
		// The last mount on / counts.
		dir = ""
		for i := 6; i+3 < len(fields); i++ {
			if fields[i] != "-" || fields[i+1] != "overlay" {
				continue
			}
			for option := range strings.SplitSeq(fields[i+3], ",") {
				if upper, ok := strings.CutPrefix(option, "upperdir="); ok && filepath.IsAbs(upper) {
					dir = upper
				}
			}
		}
	}
	return dir, nil
}

// walk adds up what is below dir as du does, a file with many names once.
func walk(ctx context.Context, dir string, l *layer) error {
	type file struct{ dev, ino uint64 }
	seen := map[file]bool{}
	var device uint64
	return filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed meanwhile
			}
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("stat of %s: not the kernel's", dir)
		}
		if device == 0 {
			device = st.Dev
		}
		if st.Dev != device {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if st.Nlink > 1 && !e.IsDir() {
			if seen[file{st.Dev, st.Ino}] {
				return nil
			}
			seen[file{st.Dev, st.Ino}] = true
		}
		l.bytes += uint64(max(st.Blocks, 0)) * 512
		l.inodes++
		return nil
	})
}

// sizeOf has the Engine measure a container whose layers are not on overlay.
func (s *Service) sizeOf(ctx context.Context, id string, l *layer) error {
	docker, err := s.docker.Use()
	if err != nil {
		return err
	}
	ctx, cancel := docker.Short(ctx)
	defer cancel()
	found, _, err := docker.ContainerInspectWithRaw(ctx, id, true)
	if err != nil {
		return err
	}
	if found.SizeRw != nil {
		l.bytes = uint64(max(*found.SizeRw, 0))
	}
	return nil
}
