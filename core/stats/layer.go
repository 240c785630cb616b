package stats

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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
	of            first  // with no process if it was measured after the end
	dir           string // where the files are, "" if only the Engine knows
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

// measure looks at what one container has written: now and then while it runs, and
// once after it has ended.
func (s *Service) measure(ctx context.Context, c *view.Container) error {
	ended := c.Row.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	if c.Pid == 0 && !ended {
		return nil // it has written nothing yet
	}
	l := &layer{of: first{c.ID(), c.Pid}}
	s.mu.Lock()
	last := s.layers[c.ID()]
	s.mu.Unlock()
	if last != nil {
		if ended && last.of == l.of || !ended && time.Since(last.at) < measureEvery {
			return nil
		}
		l.dir = last.dir // it has one all its life
	}
	at := time.Now()
	missed, err := s.fill(ctx, l, ended)
	if err == nil {
		l.at = time.Now()
		s.mu.Lock()
		s.layers[c.ID()] = l
		s.mu.Unlock()
	}
	pause(ctx, restFactor*time.Since(at))
	return errors.Join(missed, err)
}

// fill measures l. What could be counted does count: missed says why something
// could not. With err nothing is known.
func (s *Service) fill(ctx context.Context, l *layer, ended bool) (missed, err error) {
	switch {
	case l.dir != "":
	case ended:
		l.dir, err = s.dirOf(ctx, l.of.id)
	default:
		l.dir, err = upperDir(l.of.pid)
	}
	if err != nil {
		return nil, err
	}
	if l.dir != "" {
		if missed, err := walk(ctx, l.dir, l); !errors.Is(err, fs.ErrNotExist) {
			return missed, err
		}
	}
	return nil, s.sizeOf(ctx, l.of.id, l)
}

// dirOf asks the Engine for what upperDir tells of containers that run; "" where it
// does not say, as with the containerd image store.
func (s *Service) dirOf(ctx context.Context, id string) (string, error) {
	docker, err := s.docker.Use()
	if err != nil {
		return "", err
	}
	ctx, cancel := docker.Short(ctx)
	defer cancel()
	found, err := docker.ContainerInspect(ctx, id)
	if err != nil || docker.Can.StorageDriver != "overlay2" {
		return "", err
	}
	return found.GraphDriver.Data["UpperDir"], nil
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

// walk adds up what is below dir as du does, a file with many names once. What
// cannot be read is left out; missed is the first of that.
func walk(ctx context.Context, dir string, l *layer) (missed, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	t := &tree{l: l, device: st.Dev, seen: map[uint64]bool{}}
	err = t.add(ctx, unix.AT_FDCWD, dir, 0)
	return t.missed, err
}

const (
	// longest is how long a path gets before there is a new beginning for those
	// below it. The kernel takes no path of 4096 bytes or more at a time, but
	// files can be deeper than that.
	longest = 3500
	// deepest bounds the beginnings that are open at a time: one for every dozen
	// of directories with long names.
	deepest = 10_000
)

// A tree is what is added up in one walk.
type tree struct {
	l      *layer
	device uint64
	seen   map[uint64]bool // inodes with many names
	missed error
}

// add counts the file at path, which begins in the open directory at, and what is
// below it, if it is a directory. The error is that of ctx.
func (t *tree) add(ctx context.Context, at int, path string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(at, path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.miss("stat", path, err)
		return nil
	}
	if st.Dev != t.device {
		return nil
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if st.Nlink > 1 && !isDir {
		if t.seen[st.Ino] {
			return nil
		}
		t.seen[st.Ino] = true
	}
	t.l.bytes += uint64(max(st.Blocks, 0)) * 512
	t.l.inodes++
	switch {
	case !isDir:
		return nil
	case depth == deepest:
		t.miss("open", path, unix.ELOOP)
		return nil
	}
	return t.below(ctx, at, path, depth+1)
}

// below counts what is in a directory.
func (t *tree) below(ctx context.Context, at int, path string, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fd, err := unix.Openat(at, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		t.miss("open", path, err)
		return nil
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		t.miss("read", path, err) // those that were read count
	}
	if len(path) > longest {
		at, path = fd, "."
	} else {
		f.Close()
	}
	for _, name := range names {
		if err := t.add(ctx, at, path+"/"+name, depth); err != nil {
			return err
		}
	}
	return nil
}

// miss takes note that something is left out, unless it was removed meanwhile.
func (t *tree) miss(what, path string, err error) {
	if t.missed == nil && !errors.Is(err, fs.ErrNotExist) {
		t.missed = &fs.PathError{Op: what, Path: path, Err: err}
	}
}

// sizeOf has the Engine measure a container whose files we do not find.
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
