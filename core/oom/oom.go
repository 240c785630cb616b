// Package oom finds out which containers exited because the kernel's OOM killer killed
// them.
//
// Docker's State.OOMKilled is not reliable: it is set once any process of a container was
// killed, and stays set even if the container exits for another reason; and when many processes are
// killed at a time it is sometimes not set at all. The kernel counts its kills for each
// cgroup (oom_kill in memory.events on cgroup v2, in memory.oom_control on v1), but the
// count disappears with the cgroup, some milliseconds after the exit. So a Watcher watches
// the cgroup of each container from before its first process runs: with inotify on v2,
// with an eventfd on v1. It combines that with Docker's events, of which the caller must
// report each start, SIGKILL and exit, and keeps its results on disk.
package oom

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"berth/core/cgroup"
	"berth/core/panics"
)

const (
	// killWindow is how long before the exit of a container a kill counts as its reason: a
	// process with much memory takes a while to exit, and a shell may clean up before it
	// exits with the status of its child.
	killWindow = 30 * time.Second
	// eventTimeout is how long OOMKilled waits for Docker's event of an exit that is known
	// already. Docker sends the event of its own SIGKILL before that.
	eventTimeout = time.Second
	// countTimeout is how long after a notification of an OOM on cgroup v1 the kill is
	// waited for: the kernel prints a report first, perhaps to a slow console.
	countTimeout = 5 * time.Second

	sigkillExitCode = 137 // 128 + SIGKILL
)

// A Watcher watches the memory cgroups of containers, while Run runs.
type Watcher struct {
	exitReasons *ExitReasons
	log         *slog.Logger

	// readCount reads the kernel's count of kills in the cgroup dir.
	readCount func(dir string) (uint64, error)

	files     *fsnotify.Watcher // nil if the node has no inotify instance left
	stopped   chan struct{}     // closed when Run ends
	followers *panics.Group     // goroutines that wait for eventfds

	mu       sync.Mutex // guards following
	runs     map[string]*run
	expected map[string][]string // IDs of containers that are about to start, by the parent directory of their cgroups
	watched  map[string]string   // container IDs by watched file, on cgroup v2
	closed   bool                // whether Run has ended and nothing new may be watched
}

// A run is one run of a container, from its start to its exit.
type run struct {
	pid        int    // 0 until it is known
	dir        string // the memory cgroup, "" if it is not watched
	count      uint64 // the kernel's count of kills
	lastKillAt time.Time
	sigkilled  bool          // Docker has sent SIGKILL
	exited     bool          // Docker has reported the exit, and so all events before it
	eventsDone chan struct{} // closed when Docker has reported a SIGKILL or the exit, or when events were lost
	eventfd    *os.File      // on cgroup v1
	followed   chan struct{} // on cgroup v1: closed when no signal of eventfd is waited for any more
}

// New returns a Watcher that stores its results in exitReasons.
func New(exitReasons *ExitReasons, log *slog.Logger) *Watcher {
	w := &Watcher{
		exitReasons: exitReasons, log: log, readCount: readKillCount,
		runs: map[string]*run{}, expected: map[string][]string{}, watched: map[string]string{},
		stopped: make(chan struct{}), followers: panics.NewGroup(log),
	}
	var err error
	if w.files, err = fsnotify.NewWatcher(); err != nil {
		log.Warn("cgroups cannot be watched with inotify: OOMKilled is taken from Docker, which may be wrong", slog.Any("err", err))
	}
	return w
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	defer w.stop()
	if w.files == nil {
		<-ctx.Done()
		return nil
	}
	// Errors are received in a goroutine of their own: fsnotify holds a mutex while it sends
	// one. Add and Remove need that mutex, and they are called with w.mu locked, for which
	// the loop below may be waiting.
	eventsLost := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(ctx)
	receivers := panics.NewGroup(w.log)
	defer func() { cancel(); _ = receivers.Wait() }()
	receivers.Go(func() error { w.receiveErrors(ctx, eventsLost); return nil })
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.files.Events:
			if !ok {
				return nil
			}
			// A panic affects one event: those of other containers still count.
			_ = panics.Try(w.log, func() error { w.handleFileEvent(e); return nil })
		case <-eventsLost:
			w.readAll()
		}
	}
}

// receiveErrors reports lost events of inotify until ctx ends.
func (w *Watcher) receiveErrors(ctx context.Context, eventsLost chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case err, ok := <-w.files.Errors:
			if !ok {
				return
			}
			w.log.Debug("inotify events of cgroups were lost, reading all of them", slog.Any("err", err))
			select {
			case eventsLost <- struct{}{}:
			default: // one is pending already
			}
		}
	}
}

// handleFileEvent handles a new cgroup or a change of a watched file.
func (w *Watcher) handleFileEvent(e fsnotify.Event) {
	switch {
	case e.Has(fsnotify.Create):
		w.handleNewCgroup(e.Name)
	case e.Has(fsnotify.Write):
		w.mu.Lock()
		defer w.mu.Unlock()
		w.readLocked(w.runs[w.watched[e.Name]])
	}
}

// readAll reads the counts of all runs. A panic affects one of them.
func (w *Watcher) readAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.runs {
		_ = panics.Try(w.log, func() error { w.readLocked(r); return nil })
	}
}

func (w *Watcher) stop() {
	w.mu.Lock()
	w.closed = true
	close(w.stopped)
	for id := range w.runs {
		w.unwatchLocked(id)
	}
	w.mu.Unlock()
	_ = w.followers.Wait() // the group has logged panics
	if w.files != nil {
		_ = w.files.Close() // nothing is watched any more
	}
}

// ExpectCgroup must be called before the container id is started with a cgroup below parent: the
// cgroup is watched as soon as it is created. The caller calls done after the start.
func (w *Watcher) ExpectCgroup(id string, parent cgroup.Group) (done func()) {
	dir, ok := parent.Dir("memory")
	if !ok || w.files == nil {
		return func() {}
	}
	w.mu.Lock()
	w.expected[dir] = append(w.expected[dir], id)
	w.mu.Unlock()
	if err := w.files.Add(dir); err != nil {
		w.log.Debug("a cgroup cannot be watched", slog.String("cgroup", dir), slog.Any("err", err))
	}
	for _, name := range []string{id, "docker-" + id + ".scope"} { // it may exist already
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			w.handleNewCgroup(filepath.Join(dir, name))
		}
	}
	return sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		ids := w.expected[dir]
		if i := slices.Index(ids, id); i >= 0 {
			ids = slices.Delete(ids, i, i+1)
		}
		if w.expected[dir] = ids; len(ids) == 0 {
			delete(w.expected, dir)
			_ = w.files.Remove(dir) // the directory may not exist any more
		}
	})
}

// handleNewCgroup begins to watch a cgroup that was just created, if it is expected.
func (w *Watcher) handleNewCgroup(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range w.expected[filepath.Dir(path)] {
		if name := filepath.Base(path); name == id || strings.HasSuffix(name, "-"+id+".scope") {
			// All that it counts is of this run.
			w.watchLocked(id, &run{dir: path})
		}
	}
}

// Running records that the container id runs, with the first process pid.
func (w *Watcher) Running(id string, pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.runs[id]
	switch {
	case r != nil && r.pid == pid:
		if !r.sigkilled && !r.exited { // after lost events Docker sends new ones
			select {
			case <-r.eventsDone:
				r.eventsDone = make(chan struct{})
			default:
			}
		}
		return
	case r != nil && r.pid == 0 && r.dir != "" && !r.exited:
		r.pid = pid
		return
	}
	next := &run{pid: pid}
	if g, err := cgroup.ForContainer(pid, id); err == nil {
		next.dir, _ = g.Dir("memory")
	}
	// Earlier kills are not the reason of its exit.
	if next.dir != "" {
		n, err := w.readCount(next.dir)
		if err != nil {
			next.dir = ""
		}
		next.count = n
	}
	if r != nil && r.pid == 0 { // the same run: there was no exit in between
		next.sigkilled, next.exited = r.sigkilled, r.exited
	}
	w.watchLocked(id, next)
	if next.exited {
		next.endWait()
	}
}

// watchLocked makes r the run of the container id.
func (w *Watcher) watchLocked(id string, r *run) {
	w.unwatchLocked(id)
	r.eventsDone = make(chan struct{})
	w.runs[id] = r
	if r.dir == "" || w.files == nil || w.closed {
		r.dir = ""
		return
	}
	var err error
	file := filepath.Join(r.dir, eventsV2)
	if _, missing := os.Stat(file); missing == nil {
		if err = w.files.Add(file); err == nil {
			w.watched[file] = id
		}
	} else if r.eventfd, err = newEventfd(r.dir); err == nil {
		r.followed = make(chan struct{})
		w.followers.Go(func() error { w.follow(r, r.eventfd); return nil })
	}
	if err != nil {
		w.log.Debug("a cgroup cannot be watched", slog.String("cgroup", r.dir), slog.Any("err", err))
		r.dir = ""
		return
	}
	w.readLocked(r)
}

// unwatchLocked forgets the run of the container id.
func (w *Watcher) unwatchLocked(id string) {
	r := w.runs[id]
	if r == nil {
		return
	}
	if r.eventfd != nil {
		_ = r.eventfd.Close() // the kernel ends the registration
	}
	if file := filepath.Join(r.dir, eventsV2); w.watched[file] == id {
		delete(w.watched, file)
		_ = w.files.Remove(file) // mostly removed with the cgroup already
	}
	delete(w.runs, id)
}

// The files with the kernel's count of kills.
const (
	eventsV2 = "memory.events"
	eventsV1 = "memory.oom_control"
)

// readKillCount returns how many processes of a cgroup the OOM killer has killed.
func readKillCount(dir string) (uint64, error) {
	for _, file := range []string{eventsV2, eventsV1} {
		found, err := cgroup.ReadKeyed(dir, file, "oom_kill")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		n, ok := found["oom_kill"]
		if err == nil && !ok {
			err = errors.New(file + " has no oom_kill") // Linux < 4.13
		}
		return n, err
	}
	return 0, &fs.PathError{Op: "read", Path: dir, Err: fs.ErrNotExist}
}

// readLocked updates the count of kills of r, which may be nil.
func (w *Watcher) readLocked(r *run) {
	if r == nil || r.dir == "" {
		return
	}
	if n, err := w.readCount(r.dir); err == nil && n > r.count {
		r.count, r.lastKillAt = n, time.Now()
	}
}

// newEventfd returns an eventfd that the kernel signals on an OOM in the v1 cgroup dir, and
// when the cgroup is removed (Documentation/admin-guide/cgroup-v1/memory.rst).
func newEventfd(dir string) (*os.File, error) {
	control, err := os.Open(filepath.Join(dir, eventsV1))
	if err != nil {
		return nil, err
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	eventfd := os.NewFile(uintptr(fd), "eventfd of "+dir)
	line := strconv.Itoa(fd) + " " + strconv.Itoa(int(control.Fd()))
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		eventfd.Close()
		return nil, err
	}
	return eventfd, nil
}

// follow waits for signals of an eventfd of r until the eventfd is closed or the cgroup was
// removed after a kill. A panic affects one signal: the next one is handled.
//
// The kernel removes the cgroup's files, and signals once more, a moment later. So of two
// signals after the count was last read, with the files gone, the first one was an OOM; of
// one signal that is not known before a second one arrives.
func (w *Watcher) follow(r *run, eventfd *os.File) {
	defer close(r.followed)
	buffer := make([]byte, 8)
	for signals := uint64(0); ; {
		if _, err := eventfd.Read(buffer); err != nil {
			return
		}
		signals += binary.NativeEndian.Uint64(buffer)
		killed := false
		_ = panics.Try(w.log, func() error {
			counted, removed := w.waitForKill(r)
			if !removed {
				signals = 0
			}
			killed = removed && (counted || signals > 1)
			return nil
		})
		if killed {
			w.mu.Lock()
			r.lastKillAt = time.Now()
			w.mu.Unlock()
			return
		}
	}
}

// waitForKill reads the count of r until it has grown or countTimeout is over: the kernel
// signals an OOM before it kills, and then counts. It reports whether the count could be
// read at all, and whether the cgroup was removed before it had grown.
func (w *Watcher) waitForKill(r *run) (counted, removed bool) {
	begin := time.Now()
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		n, err := w.readCount(r.dir)
		if err != nil {
			return counted, true
		}
		counted = true
		w.mu.Lock()
		grown := n > r.count
		if grown {
			r.count, r.lastKillAt = n, time.Now()
		}
		w.mu.Unlock()
		if grown || time.Since(begin) > countTimeout {
			return counted, false
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-w.stopped:
			t.Stop()
			return counted, false
		}
	}
}

// Started records that Docker has reported a start of the container id.
func (w *Watcher) Started(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.runs[id]
	switch {
	case r == nil:
		w.runs[id] = &run{eventsDone: make(chan struct{})}
	case r.exited: // restarted
		w.watchLocked(id, &run{})
	}
}

// KillSent records that Docker has reported that it sent SIGKILL to the container id.
func (w *Watcher) KillSent(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.runs[id]; r != nil {
		r.sigkilled = true
		r.endWait()
	}
}

// Exited records that Docker has reported the exit of the container id.
func (w *Watcher) Exited(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.runs[id]; r != nil {
		r.exited = true
		r.endWait()
	}
}

// EventsLost records that events of Docker may have been lost, so that no call waits for them.
func (w *Watcher) EventsLost() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.runs {
		r.endWait()
	}
}

// endWait ends the wait for Docker's events of r. The caller holds Watcher.mu.
func (r *run) endWait() {
	select {
	case <-r.eventsDone:
	default:
		close(r.eventsDone)
	}
}

// OOMKilled reports whether a container that exited with exitCode at finished was killed by
// the OOM killer. dockerFlag is State.OOMKilled. It may wait for Docker's events, and for
// signals of the kernel, for eventTimeout; later calls return the stored result.
func (w *Watcher) OOMKilled(ctx context.Context, id string, dockerFlag bool, exitCode int, finished time.Time) bool {
	if exitCode != sigkillExitCode {
		return false
	}
	if stored, ok, err := w.exitReasons.Get(id); err == nil && ok && stored.Finished.Equal(finished) {
		return stored.OOMKilled
	}
	r, eventsDone := w.readRun(id)
	if r != nil {
		ctx, cancel := context.WithTimeout(ctx, eventTimeout)
		defer cancel()
		select {
		case <-eventsDone:
		case <-ctx.Done():
		}
		if !dockerFlag {
			select {
			case <-w.signalsDone(r):
			case <-ctx.Done():
			}
		}
	}
	w.mu.Lock()
	killed := r.oomKilled(dockerFlag, finished)
	w.mu.Unlock()
	if r != nil {
		w.store(id, r, exitReason{Finished: finished, OOMKilled: killed})
	}
	return killed
}

// store stores the exit reason of the run r of the container id, unless the container was
// removed in the meantime. Without a run there is nothing to store: Docker's flag is the answer
// then, and it stays the same.
func (w *Watcher) store(id string, r *run, reason exitReason) {
	if err := w.exitReasons.Put(id, reason); err != nil {
		w.log.Warn("the exit reason of a container could not be stored: after a restart of berthd, OOMKilled is taken from Docker", slog.String("container", id), slog.Any("err", err))
	}
	w.mu.Lock()
	forgotten := w.runs[id] != r
	w.mu.Unlock()
	if forgotten { // by Remove, which may have deleted before the Put
		w.deleteReason(id)
	}
}

// readRun updates the count of kills of the container id and returns its run, nil if it is
// not known, and the channel that is closed when Docker's events of it are known.
func (w *Watcher) readRun(id string) (*run, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.runs[id]
	if r == nil {
		return nil, nil
	}
	w.readLocked(r)
	return r, r.eventsDone
}

// signalsDone returns a channel that is closed when no signal of the kernel can show a kill
// of r that it does not know of yet.
func (w *Watcher) signalsDone(r *run) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.eventfd != nil && !r.sigkilled && r.lastKillAt.IsZero() {
		if _, err := w.readCount(r.dir); err != nil {
			return r.followed
		}
	}
	done := make(chan struct{})
	close(done)
	return done
}

// oomKilled reports whether the OOM killer ended r, which is nil if the container exited
// while berthd was not running. The caller holds Watcher.mu.
func (r *run) oomKilled(dockerFlag bool, finished time.Time) bool {
	switch {
	case r == nil:
		return dockerFlag
	case r.sigkilled:
		return false
	case r.lastKillAt.IsZero():
		// A kill that Docker has seen and the Watcher has not was at the exit: the cgroup
		// was removed before its count was read (on v2, where the files alone tell of it).
		return dockerFlag
	default:
		return finished.Sub(r.lastKillAt) < killWindow
	}
}

// Remove forgets the container id, which was removed.
func (w *Watcher) Remove(id string) {
	w.mu.Lock()
	if r := w.runs[id]; r != nil {
		r.endWait()
	}
	w.unwatchLocked(id)
	w.mu.Unlock()
	w.deleteReason(id)
}

func (w *Watcher) deleteReason(id string) {
	if err := w.exitReasons.Delete(id); err != nil {
		w.log.Debug("the exit reason of a removed container could not be deleted", slog.String("container", id), slog.Any("err", err))
	}
}

// Prune forgets all containers for which keep is false.
func (w *Watcher) Prune(keep func(id string) bool) {
	ids, err := w.exitReasons.Keys()
	if err != nil {
		w.log.Debug("the stored exit reasons of containers cannot be listed", slog.Any("err", err))
	}
	w.mu.Lock()
	for id := range w.runs {
		ids = append(ids, id)
	}
	w.mu.Unlock()
	for _, id := range ids {
		if !keep(id) {
			w.Remove(id)
		}
	}
}
