// Package logs is the room of the kubelet's log files.
//
// In its usual form the Engine writes what a container prints to a json-file
// of its own, which serves as a buffer that outlives us, and a pump copies it
// from there, line by line, to the file that the kubelet reads and rotates, in
// the format of the CRI. Where we are is kept in the journal, so that after
// a crash no line is missing and none is there twice.
//
// Two more forms exist: a link to the json-file, as cri-dockerd makes it, and
// the Engine's log stream, for Engines whose operator insists on another log
// driver.
//
// It is called by the view, which shows no container as ended before its last
// line is written, and by the container room.
package logs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sync/errgroup"

	"berth/core/cache"
	"berth/core/engine"

	"berth/core/panics"
)

// A Mode is how containers created from now on get their log files. Those that
// are there already keep what they have.
type Mode string

// The modes there are.
const (
	CRI    Mode = "cri"     // copied from the Engine's json-file
	Link   Mode = "symlink" // a link to the Engine's json-file
	Follow Mode = "follow"  // read from the Engine, whatever its log driver
)

// drainLimit is how long the end of a container is kept from the kubelet
// while its last lines are being written.
const drainLimit = 2 * time.Second

// A Service writes log files. Run does the work.
type Service struct {
	mode      Mode
	docker    *engine.Engine
	positions *Positions
	log       *slog.Logger

	awake chan struct{} // told when there is something in due
	over  chan struct{} // closed when Run has returned

	mu      sync.Mutex        // guards following, and what is said to be in pumps
	refused map[string]string // why a log is not written, by container ID
	pumps   map[string]*pump  // by container ID
	files   map[string]*pump  // those that wait for their source to change, by its path
	due     []*pump           // those that are to run
}

// New returns a Service that writes as mode says and keeps on positions where
// it is. docker is asked for log streams only.
func New(mode Mode, docker *engine.Engine, positions *Positions, log *slog.Logger) *Service {
	return &Service{
		mode: mode, docker: docker, positions: positions, log: log,
		awake: make(chan struct{}, 1), over: make(chan struct{}),
		refused: map[string]string{}, pumps: map[string]*pump{}, files: map[string]*pump{},
	}
}

// Driver returns the log driver that containers are to have, and its options;
// of no type for what the Engine's operator has chosen.
func (s *Service) Driver() container.LogConfig {
	switch s.mode {
	case CRI:
		// What the Engine keeps is how much can be caught up with after we were away.
		return container.LogConfig{Type: jsonFile, Config: map[string]string{"max-size": "32m", "max-file": "3", "compress": "false", "mode": "blocking"}}
	case Link:
		return container.LogConfig{Type: jsonFile}
	default:
		return container.LogConfig{}
	}
}

// jsonFile is the Engine's log driver that writes the files we read.
const jsonFile = "json-file"

// Run writes until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	defer close(s.over)
	files, err := fsnotify.NewWatcher()
	if err != nil {
		// A node may have run out of inotify instances.
		s.log.Warn("log files are looked at twice a second, for they cannot be watched", slog.Any("err", err))
		files = nil
	}
	watches := watcher{files}
	defer watches.close()
	var g errgroup.Group
	for {
		s.mu.Lock()
		due := s.due
		s.due = nil
		s.mu.Unlock()
		for _, p := range due {
			g.Go(func() error {
				if err := panics.Try(s.log, func() error { s.pump(ctx, watches, p); return nil }); err != nil {
					s.stopped(p, err)
				}
				return nil
			})
		}
		select {
		case e := <-watches.events():
			s.changed(watches, e.Name)
		case err := <-watches.errors():
			// Events were lost, and nobody knows whose.
			s.log.Debug("log files: looking at all", slog.Any("err", err))
			s.changed(watches, "")
		case <-s.awake:
		case <-ctx.Done():
			return g.Wait()
		}
	}
}

// changed wakes the pump whose source is called name, or all if name is empty.
func (s *Service) changed(watches watcher, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	paths := []string{name}
	if name == "" {
		paths = slices.Collect(maps.Keys(s.files))
	}
	for _, path := range paths {
		// A watch tells of every line; until the pump has caught up one is enough.
		watches.remove(path)
		if p, ok := s.files[path]; ok {
			delete(s.files, path)
			s.wake(p)
		}
	}
}

// wake lets p run, once more if it does already. s.mu is held.
func (s *Service) wake(p *pump) {
	if p.running {
		p.again = true
		select {
		case p.nudge <- struct{}{}:
		default:
		}
		return
	}
	p.running, p.caughtUp = true, time.Now()
	s.due = append(s.due, p)
	select {
	case s.awake <- struct{}{}:
	default:
	}
}

// stopped is called when a pump has panicked: it goes on with the next thing that there
// is to do for its container.
func (s *Service) stopped(p *pump, err error) {
	s.mu.Lock()
	asks := p.asks
	p.asks, p.running = nil, false
	s.mu.Unlock()
	for _, a := range asks {
		a.done <- err
	}
}

// Open makes path the log of the container id, which is about to be created or
// has just been, and of which the Engine's own file is source. That need
// not be there yet. dir is the log directory of the pod.
//
// The error is of kind FailedPrecondition if path is not below dir, or something
// is there that cannot be a log.
func (s *Service) Open(id, source, dir, path string) error {
	file, err := locate(dir, path)
	if err != nil {
		return err
	}
	if s.mode == Link {
		return file.link(source)
	}
	if err := file.make(); err != nil {
		return err
	}
	_, err = s.know(id, source, file)
	return err
}

// errNoSource is why a log that was copied from a file is not: a pump keeps the
// source it was made with.
var errNoSource = errors.New("docker does not say where its json-file is")

// know returns the pump of a container, and makes it if need be.
func (s *Service) know(id, source string, file location) (*pump, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.pumps[id]
	if ok {
		return p, nil
	}
	p = &pump{id: id, file: file, source: source, nudge: make(chan struct{}, 1)}
	if p.at, ok = s.positions.Get(id); !ok {
		p.at = position{Dir: file.dir, Follow: s.mode == Follow || source == ""}
		// From now on a pump is known to write this file, also to another daemon.
		if err := s.positions.Put(id, p.at); err != nil {
			return nil, err
		}
	}
	if source == "" && !p.at.Follow {
		return nil, errNoSource
	}
	p.kept, p.complete, p.follows = p.at, p.at.Complete, p.at.Follow
	s.pumps[id] = p
	return p, nil
}

// Keep sees to the log of a container that has just been looked at. It returns
// when the log of one that has ended is complete, or at least has had the time
// to be: then the rest follows as soon as it can.
func (s *Service) Keep(ctx context.Context, c *cache.Container) {
	path, started := c.Status.GetLogPath(), c.Status.GetStartedAt()
	if path == "" || started == 0 {
		return
	}
	s.mu.Lock()
	p, known := s.pumps[c.ID()]
	s.mu.Unlock()
	if !known {
		file, err := s.locate(c)
		if err == nil && s.linked(c, file) {
			return
		}
		if err == nil {
			p, err = s.know(c.ID(), c.JSONPath, file)
		}
		if err != nil {
			s.refuse(c.ID(), err)
			return
		}
	}
	s.mu.Lock()
	if c.Running && started == p.past {
		s.mu.Unlock()
		return // a later look has overtaken this one
	}
	p.tty = c.TTY
	if c.Running {
		// Docker may have been told to start it again, while its pump was about to
		// rest for good.
		again := p.ended
		p.ended, p.complete = false, false
		if again || !p.running && s.files[p.source] != p {
			s.wake(p)
		}
	}
	if p.ended = !c.Running; p.ended {
		p.past = started
	}
	wait := p.ended && !p.complete
	s.mu.Unlock()
	if wait {
		s.drain(ctx, p)
	}
}

// locate returns where the log of c is.
func (s *Service) locate(c *cache.Container) (location, error) {
	dir := c.LogDirectory
	if dir == "" {
		at, _ := s.positions.Get(c.ID())
		dir = at.Dir // it was berth that made it there
	}
	return locate(dir, c.Status.GetLogPath())
}

// refuse logs why the log of a container is not written, once.
func (s *Service) refuse(id string, err error) {
	s.mu.Lock()
	known := s.refused[id] == err.Error()
	s.refused[id] = err.Error()
	s.mu.Unlock()
	if !known {
		s.log.Warn("the log of a container is not written", slog.String("container", id), slog.Any("err", err))
	}
}

// linked reports whether the log of c is a link to the Engine's file, and
// keeps it one.
func (s *Service) linked(c *cache.Container, file location) bool {
	switch {
	case c.JSONPath == "":
		// A link that is there leads to a file of Docker's, which is not ours to
		// write to.
		return file.target() != ""
	case c.Ours:
		return file.target() == c.JSONPath
	}
	// What cri-dockerd has made keeps its link: nobody has bounded its file, and
	// the kubelet may have read it for days. That of one that has ended is not
	// made again: a late look must not undo a removal.
	if !c.Running {
		return true
	}
	if err := file.link(c.JSONPath); err != nil {
		s.log.Warn("the log of a container cannot be linked", slog.String("container", c.ID()), slog.Any("err", err))
	}
	return true
}

// drain waits, but not for long, until all that was there when it was called
// has been written.
func (s *Service) drain(ctx context.Context, p *pump) {
	if s.isOver() {
		return
	}
	done := s.ask(p, drained)
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	select {
	case <-done:
	case <-s.over:
	case <-ctx.Done():
		s.log.Warn("the end of a container is told before its last lines are written", slog.String("container", p.id))
		s.mu.Lock()
		p.complete = true // and is not waited for again
		s.mu.Unlock()
	}
}

func (s *Service) isOver() bool {
	select {
	case <-s.over:
		return true
	default:
		return false
	}
}

// ask has p do something before it reads on. What comes back is its error.
func (s *Service) ask(p *pump, what asked) <-chan error {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := make(chan error, 1)
	if p.gone {
		done <- fmt.Errorf("container %s: %w", p.id, errdefs.ErrNotFound)
		return done
	}
	p.asks = append(p.asks, ask{what, done})
	s.wake(p)
	return done
}

// Reopen begins a new file at the path of a container's log, the old one
// having been moved away. Nothing is written to that any more once Reopen has
// returned.
func (s *Service) Reopen(ctx context.Context, id string) error {
	s.mu.Lock()
	p, ok := s.pumps[id]
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("the log of container %s is Docker's json-file and rotated by Docker (max-size in log-opts of daemon.json): %w", id, errdefs.ErrFailedPrecondition)
	}
	select {
	case err := <-s.ask(p, reopened):
		if err != nil {
			return fmt.Errorf("log of container %s: %w", id, err)
		}
		return nil
	case <-s.over:
		return fmt.Errorf("log of container %s: shutting down: %w", id, errdefs.ErrUnavailable)
	case <-ctx.Done():
		return fmt.Errorf("log of container %s: %w", id, ctx.Err())
	}
}

// Close ends the writing of the log of a container that is being removed. The
// file stays, for it is the kubelet's, unless nothing was ever written to it; a
// link goes with source, which it leads to. A path that is not below dir, the log
// directory of the pod, is left alone.
func (s *Service) Close(ctx context.Context, id, source, dir, path string) error {
	s.mu.Lock()
	p, ok := s.pumps[id]
	s.mu.Unlock()
	if ok {
		ctx, cancel := context.WithTimeout(ctx, drainLimit)
		defer cancel()
		select {
		case <-s.ask(p, closed):
		case <-s.over:
		case <-ctx.Done():
		}
	}
	s.Drop(id)
	file, err := locate(dir, path)
	if err != nil {
		return nil // it was never written
	}
	return file.unlink(source)
}

// Drop lets go of the log of a container that is no more.
func (s *Service) Drop(id string) {
	s.mu.Lock()
	p, ok := s.pumps[id]
	delete(s.pumps, id)
	delete(s.refused, id)
	s.mu.Unlock()
	if ok {
		s.ask(p, closed)
	}
	if err := s.positions.Delete(id); err != nil {
		s.log.Warn("the position in a log could not be forgotten", slog.String("container", id), slog.Any("err", err))
	}
}

// Forget drops what is kept on containers that known does not know.
func (s *Service) Forget(known func(id string) bool) error {
	noted, err := s.positions.Names()
	if err != nil {
		return err
	}
	for _, id := range noted {
		if !known(id) {
			s.Drop(id)
		}
	}
	return nil
}

// trouble logs err, unless it is the one that was logged last.
func (s *Service) trouble(p *pump, err error) {
	if err == nil {
		p.told = ""
		return
	}
	if text := err.Error(); text != p.told {
		p.told = text
		s.log.Warn("the log of a container cannot be written, trying again", slog.String("container", p.id), slog.Any("err", err))
	}
}
