package stats

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/panics"
)

const (
	// measureInterval is how often what a container has written is measured at most.
	measureInterval = time.Minute
	// restFactor keeps the measuring of one container to a tenth of a core: after each
	// slice the container is left alone for that many times what the slice took.
	restFactor = 9
	// loadFactor keeps the measuring of all containers to a quarter of a core: after
	// each slice nothing is measured for that many times what it took.
	loadFactor = 3
	// tick is the interval at which is looked for what is due to be measured, and at
	// which samples of CPU time are taken.
	tick = 10 * time.Second
)

// measureSlice is how long one container is measured at a time. Whatever a container
// does to make its measuring slow, each of the others waits no longer for it than that
// and the pause after it.
var measureSlice = 100 * time.Millisecond

// A written is what a container has written to its root file system, to the volumes
// that Docker has made for it and to the log that Docker keeps, as last measured.
type written struct {
	at    time.Time
	of    first // with no process if it was measured after the end
	bytes uint64
	// layer are the bytes in the root file system alone.
	layer uint64
	// inodes are valid only with countsInodes: the Engine tells a size only.
	inodes       uint64
	countsInodes bool
	// partial tells that more than this is there: the measuring has not come to its end yet.
	partial bool
	due     time.Time // when it is to be measured again, if the container still runs
}

// A measuring is the measuring of one container as far as it has got.
type measuring struct {
	of     first
	engine bool  // whether the Engine measures the root file system
	layer  *walk // of the root file system, unless the Engine does
	rest   *walk // of volumes and logs
	began  time.Time
	took   time.Duration
	resume time.Time // not to be continued before
}

func (m *measuring) close() {
	m.layer.close()
	m.rest.close()
}

// A size is what the Engine says that the root file system of a container holds.
type size struct {
	wanted bool // whether it is to be measured when it is due
	bytes  uint64
	at     time.Time // when the Engine was asked, zero if it has not answered yet
	due    time.Time
}

// writable returns what the container id has written; nil before the first
// measurement, for a 0 would be taken for a measured one.
func (s *Service) writable(id string) *runtimeapi.FilesystemUsage {
	docker, err := s.docker.LastConn()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.written[id]
	if w == nil {
		return nil
	}
	out := &runtimeapi.FilesystemUsage{
		Timestamp: w.at.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: docker.Features.ImageFS()},
		UsedBytes: number(w.bytes),
	}
	if w.countsInodes {
		out.InodesUsed = number(w.inodes)
	}
	return out
}

// Written returns how many bytes and inodes all containers have written, as last
// measured, and how many of the bytes are in their root file systems.
func (s *Service) Written() (bytes, inodes, layers uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.written {
		bytes += w.bytes
		inodes += w.inodes
		layers += w.layer
	}
	return bytes, inodes, layers
}

// Run measures what containers have written until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.keepMeasuring(ctx) })
	// By itself: the Engine may take long for one container, or hang.
	g.Go(func() error { return s.keepSizes(ctx) })
	return g.Wait()
}

func (s *Service) keepMeasuring(ctx context.Context) error {
	defer func() {
		s.walking <- struct{}{} // and nobody measures any more
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, m := range s.measuring {
			m.close()
		}
		clear(s.measuring)
	}()
	for {
		if list, err := s.view.Containers(ctx, nil); err == nil {
			s.walking <- struct{}{}
			s.forget(ctx, list)
			<-s.walking
			for _, c := range list {
				s.walking <- struct{}{}
				begin := time.Now()
				err := panics.Try(s.log, func() error { return s.measure(c) })
				<-s.walking
				if err != nil && !gone(err) {
					level := slog.LevelDebug
					if errors.Is(err, unix.ELOOP) { // on purpose, perhaps
						level = slog.LevelWarn
					}
					s.log.Log(ctx, level, "what a container has written could not be measured completely", slog.String("container", c.ID()), slog.Any("err", err))
				}
				if !pause(ctx, loadFactor*time.Since(begin)) {
					return nil
				}
			}
		}
		if !pause(ctx, s.untilNext()) {
			return nil
		}
	}
}

// measureFirst measures a container that has never been, for a slice of time, and returns
// what was found; nil if that is nothing yet, or somebody else is measuring for long.
func (s *Service) measureFirst(ctx context.Context, c *cache.Container) *written {
	t := time.NewTimer(2 * measureSlice)
	defer t.Stop()
	select {
	case s.walking <- struct{}{}:
	case <-t.C:
		return nil
	case <-ctx.Done():
		return nil
	}
	defer func() { <-s.walking }()
	if w := s.lastWritten(c.ID()); w != nil {
		return w
	}
	if err := s.measure(c); err != nil && !gone(err) {
		s.log.Debug("what a container has written could not be measured completely", slog.String("container", c.ID()), slog.Any("err", err))
	}
	return s.lastWritten(c.ID())
}

func (s *Service) lastWritten(id string) *written {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written[id]
}

// untilNext returns the time until the next round: less than a tick if there is
// measuring to be continued.
func (s *Service) untilNext() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := tick
	for _, m := range s.measuring {
		next = min(next, time.Until(m.resume))
	}
	return max(next, measureSlice)
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
func (s *Service) look(list []*cache.Sandbox, inside map[string][]*cache.Container) {
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
func (s *Service) forget(ctx context.Context, list []*cache.Container) {
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
	for id := range s.written {
		if !ids[id] {
			delete(s.written, id)
		}
	}
	for id, m := range s.measuring {
		if !ids[id] {
			m.close()
			delete(s.measuring, id)
		}
	}
	for key := range s.sizes {
		if !firsts[key] {
			delete(s.sizes, key)
		}
	}
	for id := range s.layerDirs {
		if !ids[id] {
			delete(s.layerDirs, id)
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

// measure goes on with measuring what one container has written, for a slice of time:
// now and then while it runs, and once after it has ended. The error is why something
// was not counted. The caller holds s.walking.
func (s *Service) measure(c *cache.Container) error {
	ended := c.Row.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	if c.Pid == 0 && !ended {
		return nil // it has written nothing yet
	}
	key := first{c.ID(), c.Pid}
	begin := time.Now()
	s.mu.Lock()
	last, m := s.written[c.ID()], s.measuring[c.ID()]
	s.mu.Unlock()
	if m != nil && m.of != key { // it has ended meanwhile
		s.drop(m)
		m = nil
	}
	switch {
	case m != nil:
		if begin.Before(m.resume) {
			return nil
		}
	case last == nil || last.partial:
	case ended && last.of == key, !ended && begin.Before(last.due):
		return nil
	}
	if m == nil {
		docker, err := s.docker.LastConn()
		if err != nil {
			return err
		}
		m = s.begin(docker, c, key)
		s.mu.Lock()
		s.measuring[c.ID()] = m
		s.mu.Unlock()
	}
	done := s.advance(m, begin.Add(measureSlice))
	took := time.Since(begin)
	m.took += took
	m.resume = time.Now().Add(restFactor * took)
	s.note(m, last, done)
	if !done {
		return nil
	}
	s.drop(m)
	return errors.Join(m.layer.missed, m.rest.missed)
}

// begin returns the measuring of a container that is to be measured anew.
func (s *Service) begin(docker *engine.Conn, c *cache.Container, key first) *measuring {
	m := &measuring{of: key, layer: newWalk(), rest: newWalk(), began: time.Now()}
	if dir := s.layerDir(docker, c); dir != "" {
		m.layer = newWalk(dir)
	} else {
		m.engine = true
	}
	for _, dir := range c.Volumes {
		if below(docker.Features.RootDir, dir) {
			m.rest.roots = append(m.rest.roots, dir)
		}
	}
	s.addLogs(m.rest, filepath.Join(docker.Features.RootDir, "containers", c.ID()), c.JSONPath)
	return m
}

// advance goes on until the given time and reports whether m is complete.
func (s *Service) advance(m *measuring, until time.Time) bool {
	if !m.layer.run(until) || !m.rest.run(until) {
		return false
	}
	if m.layer.absent != nil { // we do not see it; the Engine does
		m.engine = true
	}
	return !m.engine || !s.sizeOf(m.of).at.Before(m.began)
}

// note puts down what m has counted, as far as it is news.
func (s *Service) note(m *measuring, last *written, done bool) {
	if m.engine && !done {
		return // the most of it is not known yet
	}
	layer, inodes := m.layer.total()
	if m.engine {
		layer = s.sizeOf(m.of).bytes
	}
	bytes, more := m.rest.total()
	now := &written{at: time.Now(), of: m.of, bytes: layer + bytes, layer: layer, inodes: inodes + more, countsInodes: !m.engine, partial: !done}
	now.due = now.at.Add(max(measureInterval, restFactor*m.took))
	// Of one that takes long it counts what there is at least: else a container could
	// have more files than can be counted, and no limit.
	if !done && (now.bytes == 0 || last != nil && last.bytes >= now.bytes) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written[m.of.id] = now
}

func (s *Service) drop(m *measuring) {
	m.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.measuring[m.of.id] == m {
		delete(s.measuring, m.of.id)
	}
}

// layerDir returns the directory with what a container has written to its root file
// system, "" if it cannot be told. Nothing that the container itself can change has
// a say in it: its own mount table would lead wherever it likes.
func (s *Service) layerDir(docker *engine.Conn, c *cache.Container) string {
	can := docker.Features
	if c.Layer != "" {
		if below(can.RootDir, c.Layer) {
			return c.Layer
		}
		return ""
	}
	s.mu.Lock()
	dir := s.layerDirs[c.ID()]
	s.mu.Unlock()
	if dir != "" || c.Pid == 0 {
		return dir
	}
	// With the containerd image store the Engine does not say it, but has the root file
	// system mounted at <data root>/rootfs/<snapshotter>/<ID> while the container runs
	// (moby, daemon/snapshotter/mount.go).
	list, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "overlay" || filepath.Base(m.Mountpoint) != c.ID() || !below(can.RootDir, m.Mountpoint), false
	})
	if err != nil || len(list) == 0 {
		return ""
	}
	dir = upperDir(list[len(list)-1].VFSOptions, can.RootDir, can.ContainerdRoot)
	if dir != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.layerDirs[c.ID()] = dir
	}
	return dir
}

// upperDir returns the upperdir= of the options of an overlay, "" if it is below none of
// the roots.
func upperDir(options string, roots ...string) string {
	for option := range strings.SplitSeq(options, ",") {
		upper, ok := strings.CutPrefix(option, "upperdir=")
		if !ok {
			continue
		}
		for _, root := range roots {
			if below(root, upper) {
				return upper
			}
		}
	}
	return ""
}

// below reports whether path is below the directory root.
func below(root, path string) bool {
	return filepath.IsAbs(root) && filepath.Clean(path) == path && strings.HasPrefix(path, strings.TrimSuffix(root, "/")+"/")
}

// addLogs adds to w what Docker keeps of the output of a container, in its own directory
// dir. jsonPath is the newest file of the driver json-file, if it is that; the driver
// local has a directory.
func (s *Service) addLogs(w *walk, dir, jsonPath string) {
	w.roots = append(w.roots, filepath.Join(dir, "local-logs"))
	if jsonPath == "" || filepath.Dir(jsonPath) != dir {
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(jsonPath)) {
			w.file(filepath.Join(dir, e.Name()))
		}
	}
}

// sizeOf returns what the Engine says of the root file system of a container, and has it
// asked now and then from now on.
func (s *Service) sizeOf(key first) size {
	s.mu.Lock()
	defer s.mu.Unlock()
	z := s.sizes[key]
	if z == nil {
		z = &size{}
		s.sizes[key] = z
	}
	z.wanted = true
	return *z
}

// keepSizes has the Engine measure the containers whose files we do not find, until ctx ends.
func (s *Service) keepSizes(ctx context.Context) error {
	for pause(ctx, tick/10) {
		s.askSizes(ctx)
	}
	return nil
}

func (s *Service) askSizes(ctx context.Context) {
	now := time.Now()
	var due []first
	s.mu.Lock()
	for key, z := range s.sizes {
		if z.wanted && !now.Before(z.due) {
			due = append(due, key)
		}
	}
	s.mu.Unlock()
	for _, key := range due {
		begin := time.Now()
		bytes, err := s.ask(ctx, key.id)
		took := time.Since(begin)
		s.mu.Lock()
		if z := s.sizes[key]; z != nil {
			z.due = time.Now().Add(max(measureInterval, restFactor*took))
			if err == nil {
				z.bytes, z.at, z.wanted = bytes, begin, false
			}
		}
		s.mu.Unlock()
		if err != nil && ctx.Err() == nil && !gone(err) {
			s.log.Debug("the Engine could not measure what a container has written", slog.String("container", key.id), slog.Any("err", err))
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// ask has the Engine measure the root file system of a container.
func (s *Service) ask(ctx context.Context, id string) (uint64, error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return 0, err
	}
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	found, _, err := docker.ContainerInspectWithRaw(ctx, id, true)
	if err != nil {
		return 0, err
	}
	if found.SizeRw == nil {
		return 0, errors.New("the Engine does not tell the size")
	}
	return uint64(max(*found.SizeRw, 0)), nil
}
