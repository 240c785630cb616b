// Package logs writes the log files of containers that the kubelet reads.
//
// Docker writes the output of a container to files of its own, with the log driver json-file or
// local. They serve as a buffer while berthd is stopped. A pump copies it from there, line by line and exactly once,
// to the CRI log file, which the kubelet rotates. How far it has got is stored as a
// Checkpoint, so that after a crash no line is missing and none is repeated.
//
// There are two more modes: a symbolic link to the json-file, as cri-dockerd creates it, and
// copying from the log stream of the Engine API, for nodes that require another log driver.
//
// The cache calls Observe before it publishes the state of a container, so that none is
// shown as exited before its last line is written. core/container creates, reopens and removes logs.
package logs

import (
	"cmp"
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
	"berth/core/logs/crifile"
	"berth/core/logs/dockerlog"
	"berth/core/panics"
	"berth/core/tracing"
)

// A Mode is how new containers get their log files. Existing containers keep theirs.
type Mode string

// The values of Mode.
const (
	ModeCRI     Mode = "cri"     // copied from Docker's log files
	ModeSymlink Mode = "symlink" // a symbolic link to Docker's json-file
	ModeFollow  Mode = "follow"  // copied from Docker's log stream, with any log driver
)

// A Buffer is the log driver of new containers with ModeCRI. Existing containers keep theirs.
type Buffer string

// The values of Buffer.
const (
	BufferJSONFile Buffer = dockerlog.JSONFile // the default
	BufferLocal    Buffer = dockerlog.Local    // keeps all bytes and costs Docker less
)

// drainTimeout is how long the exit of a container is held back while its last lines are
// being written.
const drainTimeout = 2 * time.Second

// A Service writes the log files of all containers. Run does the work.
type Service struct {
	mode        Mode
	buffer      Buffer
	docker      *engine.Engine
	checkpoints *Checkpoints
	log         *slog.Logger

	queued  chan struct{} // has a buffer of one; sent to when queue is not empty
	stopped chan struct{} // closed when Run has returned

	mu           sync.Mutex        // guards what follows, and some fields of each pump
	loggedErrors map[string]string // why a log is not written, by container ID
	pumps        map[string]*pump  // by container ID
	watched      map[string]*pump  // parked pumps that wait for a change of their source, by its path
	queue        []*pump           // pumps that need a goroutine
}

// New returns a Service that creates logs in the given mode and stores its checkpoints
// in checkpoints. buffer is for ModeCRI; "" is BufferJSONFile. docker is used for log streams only.
func New(mode Mode, buffer Buffer, docker *engine.Engine, checkpoints *Checkpoints, log *slog.Logger) *Service {
	return &Service{
		mode: mode, buffer: cmp.Or(buffer, BufferJSONFile), docker: docker, checkpoints: checkpoints, log: log,
		queued: make(chan struct{}, 1), stopped: make(chan struct{}),
		loggedErrors: map[string]string{}, pumps: map[string]*pump{}, watched: map[string]*pump{},
	}
}

// LogConfig returns the log driver and its options for a new container; the zero value for the
// default of daemon.json.
func (s *Service) LogConfig() container.LogConfig {
	switch s.mode {
	case ModeCRI:
		// What Docker keeps is what can be copied later, when berthd was stopped meanwhile.
		return container.LogConfig{Type: string(s.buffer), Config: map[string]string{"max-size": "32m", "max-file": "3", "compress": "false", "mode": "blocking"}}
	case ModeSymlink:
		return container.LogConfig{Type: dockerlog.JSONFile}
	default:
		return container.LogConfig{}
	}
}

// Run writes logs until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	defer close(s.stopped)
	files, err := fsnotify.NewWatcher()
	if err != nil {
		s.log.Warn("docker's log files cannot be watched and are polled twice a second; raise fs.inotify.max_user_instances", slog.Any("err", err))
		files = nil
	}
	watches := watcher{files}
	defer watches.close()
	var g errgroup.Group
	for {
		s.mu.Lock()
		queue := s.queue
		s.queue = nil
		s.mu.Unlock()
		for _, p := range queue {
			g.Go(func() error {
				if err := panics.Try(s.log, func() error { p.run(ctx, watches); return nil }); err != nil {
					s.handlePanic(p, err)
				}
				return nil
			})
		}
		select {
		case e := <-watches.events():
			s.handleChange(watches, e.Name)
		case err := <-watches.errors():
			s.log.Debug("log files: changes were lost, reading all", slog.Any("err", err))
			s.handleChange(watches, "")
		case <-s.queued:
		case <-ctx.Done():
			return g.Wait()
		}
	}
}

// handleChange wakes the pump of the source at path, or all pumps if path is empty.
func (s *Service) handleChange(watches watcher, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	paths := []string{path}
	if path == "" {
		paths = slices.Collect(maps.Keys(s.watched))
	}
	for _, path := range paths {
		// A watch reports each line; the pump needs the first report only, until it parks again.
		watches.remove(path)
		if p, ok := s.watched[path]; ok {
			delete(s.watched, path)
			s.wakeLocked(p)
		}
	}
}

// unwatch makes changes of the file at path wake no pump.
func (s *Service) unwatch(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watched, path)
}

// wakeLocked makes p run at least one more round. s.mu is held.
func (s *Service) wakeLocked(p *pump) {
	switch p.schedule {
	case retired:
	case running, rerun:
		p.schedule = rerun
		p.interrupt()
	case parked:
		p.schedule, p.caughtUp = running, time.Now()
		s.queue = append(s.queue, p)
		select {
		case s.queued <- struct{}{}:
		default:
		}
	}
}

// handlePanic parks a pump after a panic of its goroutine and fails its commands with err.
// The next command or change of its source starts it again.
func (s *Service) handlePanic(p *pump, err error) {
	s.mu.Lock()
	commands := p.commands
	p.commands = nil
	if p.schedule != retired {
		p.schedule = parked
	}
	s.mu.Unlock()
	for _, c := range commands {
		c.done <- err
	}
}

// Create creates the log of the container id at path. The container is about to be created or was
// created just now; source is Docker's log file of it, which need not exist yet. dir is the log
// directory of the pod.
//
// The error is of kind FailedPrecondition if path is not below dir, or if there is something
// at path that cannot be a log.
func (s *Service) Create(id string, source dockerlog.File, dir, path string) error {
	logPath, err := crifile.NewPath(dir, path)
	if err != nil {
		return err
	}
	if s.mode == ModeSymlink {
		return logPath.Symlink(source.Path)
	}
	if err := logPath.Create(); err != nil {
		return err
	}
	_, err = s.pumpOf(id, source, logPath)
	return err
}

// errNoSource is why a log that was copied from Docker's files cannot be continued: a pump
// keeps its kind of source.
var errNoSource = errors.New("the log file of docker is not known")

// pumpOf returns the pump of a container, and creates it if necessary.
func (s *Service) pumpOf(id string, source dockerlog.File, path crifile.Path) (*pump, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.pumps[id]; ok {
		return p, nil
	}
	cp, stored, err := s.checkpoints.Get(id)
	if err != nil {
		return nil, err // a copy from the beginning would write everything again
	}
	if !stored {
		cp = Checkpoint{Dir: path.Dir(), Follow: s.mode == ModeFollow || source.Path == ""}
		// From now on also the next daemon knows that a pump writes this file.
		if err := s.checkpoints.Put(id, cp); err != nil {
			return nil, err
		}
	}
	p := &pump{
		service: s, id: id, path: path, wakeup: make(chan struct{}, 1),
		checkpoint: cp, saved: cp, out: crifile.NewWriter(path, cp.File),
	}
	switch {
	case cp.Follow:
		p.source = streamSource{}
	case source.Path == "":
		return nil, errNoSource
	default:
		p.sourcePath, p.source = source.Path, newFileSource(source, cp.Source)
	}
	if cp.Complete {
		p.output = outputComplete
	}
	s.pumps[id] = p
	return p, nil
}

// Observe continues the log of a container that was just inspected. If the container has
// exited, it returns when the log is complete or drainTimeout has passed; then the
// rest is written as soon as possible.
func (s *Service) Observe(ctx context.Context, c *cache.Container) {
	path, started := c.Status.GetLogPath(), c.Status.GetStartedAt()
	if path == "" || started == 0 {
		return
	}
	p, err := s.observedPump(c)
	if err != nil {
		s.logOnce(c.ID(), err)
		return
	}
	if p == nil {
		return // nothing is to be written
	}
	s.mu.Lock()
	if c.Running && started == p.exitedRun {
		s.mu.Unlock()
		return // an older inspect result: this run has ended
	}
	p.tty = c.TTY
	if c.Running {
		// Docker may have started the container again while its pump was about to
		// park.
		restarted := p.output != outputOpen
		p.output = outputOpen
		if restarted || p.schedule == parked && s.watched[p.sourcePath] != p {
			s.wakeLocked(p)
		}
	} else {
		if p.output == outputOpen {
			p.output = outputEnding
		}
		p.exitedRun = started
	}
	wait := p.output == outputEnding
	s.mu.Unlock()
	if wait {
		s.drain(ctx, p)
	}
}

// observedPump returns the pump of a container that was inspected, nil if its log is a
// symbolic link, or if Remove or Discard has ended it.
func (s *Service) observedPump(c *cache.Container) (*pump, error) {
	s.mu.Lock()
	p, ok := s.pumps[c.ID()]
	s.mu.Unlock()
	if ok {
		return p, nil
	}
	dir := c.LogDirectory
	// Get reads a file, which running containers with a symbolic link need at no inspect.
	if ended := c.CreatedByBerth && !c.Running; ended || dir == "" {
		switch cp, stored, err := s.checkpoints.Get(c.ID()); {
		case err != nil:
			return nil, err
		case stored && dir == "": // a container of berth in a pod of cri-dockerd
			dir = cp.Dir
		case !stored && ended:
			// Create has stored a checkpoint, which is deleted before Docker removes the container. A copy from
			// the beginning would write everything again.
			return nil, nil
		}
	}
	path, err := crifile.NewPath(dir, c.Status.GetLogPath())
	if err != nil || s.isSymlink(c, path) {
		return nil, err
	}
	return s.pumpOf(c.ID(), c.LogFile, path)
}

// logOnce logs why the log of a container is not written, if that is not what it has logged last.
func (s *Service) logOnce(id string, err error) {
	s.mu.Lock()
	repeated := s.loggedErrors[id] == err.Error()
	s.loggedErrors[id] = err.Error()
	s.mu.Unlock()
	if !repeated {
		s.log.Warn("the log of a container is not written", slog.String("container", id), slog.Any("err", err))
	}
}

// isSymlink reports whether the log of c is a symbolic link to Docker's json-file. It
// restores the link of a running container of cri-dockerd.
func (s *Service) isSymlink(c *cache.Container, path crifile.Path) bool {
	switch {
	case c.LogFile.Driver != dockerlog.JSONFile:
		// An existing link leads to a file of Docker's, to which nothing may be written.
		return path.LinkTarget() != ""
	case c.CreatedByBerth:
		return path.LinkTarget() == c.LogFile.Path
	}
	// A container of cri-dockerd keeps its link: its json-file has no max-size, and the
	// kubelet may have read it for days. The link of one that has exited is not created
	// again: an older inspect result must not undo its removal.
	if !c.Running {
		return true
	}
	if err := path.Symlink(c.LogFile.Path); err != nil {
		s.log.Warn("the log of a container cannot be linked", slog.String("container", c.ID()), slog.Any("err", err))
	}
	return true
}

// drain waits, at most drainTimeout, until all output that Docker has at the time of the
// call is written.
func (s *Service) drain(ctx context.Context, p *pump) {
	var err error
	if s.isStopped() {
		return
	}
	ctx, span := tracing.Start(ctx, "drain container log", tracing.ContainerID(p.id))
	defer func() { span.End(err) }()
	done := s.command(p, drainCommand, ctx.Done())
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	select {
	case err = <-done:
	case <-s.stopped:
	case <-ctx.Done():
		err = ctx.Err()
		s.log.Warn("the exit of a container is reported before its last lines are written", slog.String("container", p.id))
		s.mu.Lock()
		if p.output == outputEnding {
			p.output = outputComplete // the next call does not wait
		}
		s.mu.Unlock()
	}
}

func (s *Service) isStopped() bool {
	select {
	case <-s.stopped:
		return true
	default:
		return false
	}
}

// command sends p a command of a caller who has gone when gone is closed. Its result is sent to the returned channel.
func (s *Service) command(p *pump, kind commandKind, gone <-chan struct{}) <-chan error {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := make(chan error, 1)
	if p.schedule == retired {
		done <- p.errRemoved()
		return done
	}
	p.commands = append(p.commands, command{kind, done, gone})
	s.wakeLocked(p)
	return done
}

// Reopen begins a new file at the path of a container's log, which the kubelet has renamed.
// Nothing is written to the old file once Reopen has returned. The error is of kind
// FailedPrecondition if the log is a symbolic link.
func (s *Service) Reopen(ctx context.Context, id string) (err error) {
	ctx, span := tracing.Start(ctx, "reopen container log", tracing.ContainerID(id))
	defer func() { span.End(err) }()
	s.mu.Lock()
	p, ok := s.pumps[id]
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("the log of container %s is Docker's json-file and rotated by Docker (max-size in log-opts of daemon.json): %w", id, errdefs.ErrFailedPrecondition)
	}
	select {
	case err := <-s.command(p, reopenCommand, ctx.Done()):
		if err != nil {
			return fmt.Errorf("log of container %s: %w", id, err)
		}
		return nil
	case <-s.stopped:
		return fmt.Errorf("log of container %s: shutting down: %w", id, errdefs.ErrUnavailable)
	case <-ctx.Done():
		return fmt.Errorf("log of container %s: %w", id, ctx.Err())
	}
}

// Remove ends the log of a container that is being removed. The file remains, for the kubelet
// removes it, unless nothing was ever written to it. A symbolic link to source is removed.
// A path that is not below dir, the log directory of the pod, is ignored.
func (s *Service) Remove(ctx context.Context, id, source, dir, path string) (err error) {
	ctx, span := tracing.Start(ctx, "close container log", tracing.ContainerID(id))
	defer func() { span.End(err) }()
	s.mu.Lock()
	p, ok := s.pumps[id]
	s.mu.Unlock()
	if ok {
		ctx, cancel := context.WithTimeout(ctx, drainTimeout)
		defer cancel()
		select {
		case <-s.command(p, removeCommand, ctx.Done()):
		case <-s.stopped:
		case <-ctx.Done():
		}
	}
	s.Discard(id)
	logPath, err := crifile.NewPath(dir, path)
	if err != nil {
		return nil // nothing was ever written there
	}
	return logPath.RemoveSymlink(source)
}

// Discard ends the pump of a container that no longer exists and deletes its checkpoint.
func (s *Service) Discard(id string) {
	s.mu.Lock()
	p, ok := s.pumps[id]
	delete(s.pumps, id)
	delete(s.loggedErrors, id)
	s.mu.Unlock()
	if ok {
		s.command(p, removeCommand, nil)
	}
	if err := s.checkpoints.Delete(id); err != nil {
		s.log.Warn("the position in a log could not be deleted", slog.String("container", id), slog.Any("err", err))
	}
}

// Prune deletes the checkpoints of containers that do not exist.
func (s *Service) Prune(exists func(id string) bool) error {
	ids, err := s.checkpoints.Keys()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !exists(id) {
			s.Discard(id)
		}
	}
	return nil
}
