// Package oom finds out which containers have ended because the kernel killed them for want
// of memory.
//
// Docker's own word is not enough: State.OOMKilled is set once any process of a container
// was killed so, and stays for its life, whatever it ends of later; and where many are
// killed at a time it is now and then not set at all. The kernel counts its kills for each
// cgroup (oom_kill in memory.events with cgroup v2, in memory.oom_control with v1), but the
// count is gone with the cgroup, some milliseconds after the end. So it is watched from
// before the first process of a container runs.
package oom

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"berth/core/cgroup"
)

const (
	// killWindow is how long before the end of a container a kill is the reason of it: a
	// process with much memory takes a while to end, and a shell may clean up before it
	// passes on what its child has died of.
	killWindow = 30 * time.Second
	// eventTimeout is how long Docker's event of an end that is known already is waited
	// for. A SIGKILL by Docker is told before it.
	eventTimeout = time.Second
	// countTimeout is how long after the kernel has said that memory is short (cgroup v1)
	// the kill is waited for: it prints a report first, perhaps to a slow console.
	countTimeout = 5 * time.Second

	exitKilled = 137 // 128 + SIGKILL
)

// A Watcher watches the memory cgroups of containers. Run must run for that.
type Watcher struct {
	verdicts *Verdicts // of ended containers: the cgroups are gone
	log      *slog.Logger

	files   *fsnotify.Watcher // nil if the node has no inotify instance left
	stopped chan struct{}     // closed when Run ends

	mu       sync.Mutex // guards following
	runs     map[string]*run
	expected map[string][]string // IDs of containers that are about to start, by the directory that their cgroups will be in
	watched  map[string]string   // IDs by the file that is watched, with cgroup v2
	over     bool                // whether nothing is to be watched any more
	events   sync.WaitGroup      // those who wait for the eventfd of a run
}

// A run is one life of a container.
type run struct {
	pid      int    // 0 before it is known
	dir      string // its memory cgroup, "" if it is not watched
	count    uint64 // of the kernel's kills
	killedAt time.Time
	slain    bool          // Docker has sent SIGKILL
	died     bool          // Docker has told of its end, and of all before
	wake     chan struct{} // closed when Docker has told of a SIGKILL or of the end, or will not
	event    *os.File      // with cgroup v1
}

// A verdict is why a container has ended, as it is kept.
type verdict struct {
	Finished  time.Time `json:"finished"`
	OOMKilled bool      `json:"oomKilled"`
}

// New returns a Watcher that keeps on verdicts what it has found out.
func New(verdicts *Verdicts, log *slog.Logger) *Watcher {
	w := &Watcher{verdicts: verdicts, log: log, runs: map[string]*run{}, expected: map[string][]string{}, watched: map[string]string{}, stopped: make(chan struct{})}
	var err error
	if w.files, err = fsnotify.NewWatcher(); err != nil {
		log.Warn("cgroups cannot be watched; which containers are OOMKilled is taken from Docker", slog.Any("err", err))
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
	// Errors are received whatever happens: the library has a mutex locked while it sends
	// one, and it may be wanted by somebody who has ours.
	lost := make(chan struct{}, 1)
	errs := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	defer func() { cancel(); <-errs }()
	go func() {
		defer close(errs)
		for {
			select {
			case <-ctx.Done():
				return
			case err, ok := <-w.files.Errors:
				if !ok {
					return
				}
				w.log.Debug("some changes of cgroups were not told", slog.Any("err", err))
				select {
				case lost <- struct{}{}:
				default:
				}
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.files.Events:
			switch {
			case !ok:
				return nil
			case e.Has(fsnotify.Create):
				w.created(e.Name)
			case e.Has(fsnotify.Write):
				w.mu.Lock()
				w.readLocked(w.runs[w.watched[e.Name]])
				w.mu.Unlock()
			}
		case <-lost: // read all instead
			w.mu.Lock()
			for _, r := range w.runs {
				w.readLocked(r)
			}
			w.mu.Unlock()
		}
	}
}

func (w *Watcher) stop() {
	w.mu.Lock()
	w.over = true
	close(w.stopped)
	for id := range w.runs {
		w.unwatchLocked(id)
	}
	w.mu.Unlock()
	w.events.Wait()
	if w.files != nil {
		_ = w.files.Close() // there is nothing left to watch
	}
}

// Expect has the cgroup of the container id watched as soon as there is one, in the cgroup
// parent, until done is called.
func (w *Watcher) Expect(id string, parent cgroup.Group) (done func()) {
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
	for _, name := range []string{id, "docker-" + id + ".scope"} { // it may be there already
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			w.created(filepath.Join(dir, name))
		}
	}
	return sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		left := w.expected[dir]
		for i := range left {
			if left[i] == id {
				left = append(left[:i:i], left[i+1:]...)
				break
			}
		}
		if w.expected[dir] = left; len(left) == 0 {
			delete(w.expected, dir)
			_ = w.files.Remove(dir) // it may be gone
		}
	})
}

// created begins to watch a cgroup that has just been made, if it is expected.
func (w *Watcher) created(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range w.expected[filepath.Dir(path)] {
		if name := filepath.Base(path); name == id || strings.HasSuffix(name, "-"+id+".scope") {
			// All that it will count is of this run.
			w.watchLocked(id, &run{dir: path})
		}
	}
}

// Running tells that the container id runs, with its first process.
func (w *Watcher) Running(id string, pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.runs[id]
	switch {
	case r != nil && r.pid == pid:
		if !r.slain && !r.died { // after Deaf there are events again
			select {
			case <-r.wake:
				r.wake = make(chan struct{})
			default:
			}
		}
		return
	case r != nil && r.pid == 0 && r.dir != "" && !r.died:
		r.pid = pid
		return
	}
	next := &run{pid: pid}
	if g, err := cgroup.Of(pid, id); err == nil {
		next.dir, _ = g.Dir("memory")
	}
	// What was counted before is not what it will end of.
	if next.dir != "" {
		n, err := kills(next.dir)
		if err != nil {
			next.dir = ""
		}
		next.count = n
	}
	if r != nil && r.pid == 0 { // nothing has ended between
		next.slain, next.died = r.slain, r.died
	}
	w.watchLocked(id, next)
	if next.died {
		next.wakeUp()
	}
}

// watchLocked makes r the run of the container id.
func (w *Watcher) watchLocked(id string, r *run) {
	w.unwatchLocked(id)
	r.wake = make(chan struct{})
	w.runs[id] = r
	if r.dir == "" || w.files == nil || w.over {
		r.dir = ""
		return
	}
	var err error
	if _, missing := os.Stat(filepath.Join(r.dir, eventsV2)); missing == nil {
		file := filepath.Join(r.dir, eventsV2)
		if err = w.files.Add(file); err == nil {
			w.watched[file] = id
		}
	} else if r.event, err = listen(r.dir); err == nil {
		w.events.Go(func() { w.follow(r, r.event) })
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
	if r.event != nil {
		_ = r.event.Close() // the kernel ends the registration
	}
	if file := filepath.Join(r.dir, eventsV2); w.watched[file] == id {
		delete(w.watched, file)
		_ = w.files.Remove(file) // gone with the cgroup, mostly
	}
	delete(w.runs, id)
}

// The files that count the kernel's kills.
const (
	eventsV2 = "memory.events"
	eventsV1 = "memory.oom_control"
)

// kills returns how many processes of a cgroup the kernel has killed for want of memory.
func kills(dir string) (uint64, error) {
	for _, file := range []string{eventsV2, eventsV1} {
		found, err := cgroup.Numbers(dir, file, "oom_kill")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		n, ok := found["oom_kill"]
		if err == nil && !ok {
			err = errors.New(file + " has no oom_kill") // Linux before 4.13
		}
		return n, err
	}
	return 0, &fs.PathError{Op: "read", Path: dir, Err: fs.ErrNotExist}
}

// readLocked looks whether the kernel has killed something in r.
func (w *Watcher) readLocked(r *run) {
	if r == nil || r.dir == "" {
		return
	}
	if n, err := kills(r.dir); err == nil && n > r.count {
		r.count, r.killedAt = n, time.Now()
	}
}

// listen returns an eventfd that the kernel counts up when memory of a cgroup of version 1
// is short, and when the cgroup is removed.
func listen(dir string) (*os.File, error) {
	control, err := os.Open(filepath.Join(dir, eventsV1))
	if err != nil {
		return nil, err
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	event := os.NewFile(uintptr(fd), "eventfd of "+dir)
	line := strconv.Itoa(fd) + " " + strconv.Itoa(int(control.Fd()))
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		event.Close()
		return nil, err
	}
	return event, nil
}

// follow reads the count of r whenever event says so, until that is closed or the cgroup
// is gone.
func (w *Watcher) follow(r *run, event *os.File) {
	buffer := make([]byte, 8)
	for {
		if _, err := event.Read(buffer); err != nil {
			return
		}
		// The kernel says that memory is short before it kills, and then counts.
		begin := time.Now()
		for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
			n, err := kills(r.dir)
			if err != nil {
				return
			}
			w.mu.Lock()
			grown := n > r.count
			if grown {
				r.count, r.killedAt = n, time.Now()
			}
			w.mu.Unlock()
			if grown || time.Since(begin) > countTimeout {
				break
			}
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-w.stopped:
				t.Stop()
				return
			}
		}
	}
}

// Started tells that Docker has told of a start of the container id.
func (w *Watcher) Started(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.runs[id]
	switch {
	case r == nil:
		w.runs[id] = &run{wake: make(chan struct{})}
	case r.died: // it has been started again
		w.watchLocked(id, &run{})
	}
}

// Slain tells that Docker has told of a SIGKILL that it has sent to the container id.
func (w *Watcher) Slain(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.runs[id]; r != nil {
		r.slain = true
		r.wakeUp()
	}
}

// Died tells that Docker has told of the end of the container id.
func (w *Watcher) Died(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.runs[id]; r != nil {
		r.died = true
		r.wakeUp()
	}
}

// Deaf tells that events of Docker have been lost: none is worth waiting for.
func (w *Watcher) Deaf() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.runs {
		r.wakeUp()
	}
}

func (r *run) wakeUp() {
	select {
	case <-r.wake:
	default:
		close(r.wake)
	}
}

// Killed reports whether a container that has ended with that exit code was killed by the
// kernel for want of memory. flag is what Docker says.
func (w *Watcher) Killed(ctx context.Context, id string, flag bool, exitCode int, finished time.Time) bool {
	if exitCode != exitKilled {
		return false
	}
	if kept, ok := w.verdicts.Get(id); ok && kept.Finished.Equal(finished) {
		return kept.OOMKilled
	}
	w.mu.Lock()
	r := w.runs[id]
	w.readLocked(r)
	var wake chan struct{}
	if r != nil {
		wake = r.wake
	}
	w.mu.Unlock()
	if r != nil {
		t := time.NewTimer(eventTimeout)
		defer t.Stop()
		select {
		case <-wake: // what Docker has told is known
		case <-t.C:
		case <-ctx.Done():
		}
	}
	w.mu.Lock()
	killed := r.killed(flag, finished)
	w.mu.Unlock()
	if err := w.verdicts.Put(id, verdict{Finished: finished, OOMKilled: killed}); err != nil {
		w.log.Warn("why a container has ended could not be kept; after a restart it is taken from Docker", slog.String("container", id), slog.Any("err", err))
	}
	return killed
}

// killed reports whether the kernel has ended r.
func (r *run) killed(flag bool, finished time.Time) bool {
	switch {
	case r == nil: // it ended while we were away
		return flag
	case r.slain:
		return false
	case r.killedAt.IsZero():
		// Where we have seen no kill, what Docker has seen was at the end: the cgroup was
		// gone before we could read it.
		return flag
	default:
		return finished.Sub(r.killedAt) < killWindow
	}
}

// Drop forgets the container id, which is gone.
func (w *Watcher) Drop(id string) {
	w.mu.Lock()
	w.unwatchLocked(id)
	w.mu.Unlock()
	if err := w.verdicts.Delete(id); err != nil {
		w.log.Debug("the record of why a container has ended could not be removed", slog.String("container", id), slog.Any("err", err))
	}
}

// Forget forgets all containers that are not to be kept.
func (w *Watcher) Forget(keep func(id string) bool) {
	ids, err := w.verdicts.Names()
	if err != nil {
		w.log.Debug("records of why containers have ended cannot be listed", slog.Any("err", err))
	}
	w.mu.Lock()
	for id := range w.runs {
		ids = append(ids, id)
	}
	w.mu.Unlock()
	for _, id := range ids {
		if !keep(id) {
			w.Drop(id)
		}
	}
}
