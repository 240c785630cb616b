package logs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	"berth/core/logs/crifile"
)

const (
	// batchInterval is the pause between two reads of a source that grows. One read
	// per line would cost more than the copying.
	batchInterval = 10 * time.Millisecond
	// pollInterval is the pause between two reads of a source that cannot be watched.
	pollInterval = 500 * time.Millisecond
	// retryInterval is the pause after a failure, such as a full disk.
	retryInterval = time.Second

	// checkpointInterval and maxUnacked bound what has to be compared after a crash.
	checkpointInterval = 500 * time.Millisecond
	maxUnacked         = 4 << 20 // bytes

	// lineGrace is how long a rotation waits for the end of an open line. Docker writes
	// the pieces of a line right after each other, unless the container itself pauses in
	// the middle.
	lineGrace = time.Second
)

// A commandKind is what a pump has to do before it continues.
type commandKind int

const (
	drainCommand  commandKind = iota // copy everything that the source has now
	reopenCommand                    // begin a new CRI log file
	removeCommand                    // copy the rest and stop, for the container is being removed
)

// The result of a command is sent to done, which has a buffer of one. gone is closed when nobody waits for it any more.
type command struct {
	kind commandKind
	done chan error
	gone <-chan struct{}
}

func (c command) abandoned() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// A schedule is whether a pump has a goroutine.
type schedule int

const (
	parked  schedule = iota // no goroutine: a command or a change of the source starts one
	running                 // a goroutine runs, or is queued
	rerun                   // a goroutine runs and has to do another round before it parks
	retired                 // the container was removed: never runs again
)

// An outputState is how far the output of a container is, as callers of the Service see it.
type outputState int

const (
	outputOpen     outputState = iota // the container runs or was not started: more may come
	outputEnding                      // the container has exited, its log may be incomplete
	outputComplete                    // the log is complete, or was waited for long enough
)

// A pump copies the output of one container from its source to its CRI log file. Its
// goroutine runs only while there is something to do.
type pump struct {
	service    *Service
	id         string
	path       crifile.Path // of the CRI log file
	sourcePath string       // of Docker's newest log file; "" for a log stream
	source     source
	wakeup     chan struct{} // interrupts sleep; has a buffer of one

	// Guarded by service.mu.
	schedule          schedule
	output            outputState
	commands          []command // not received yet
	tty               bool
	exitedRun         int64     // start time of the last run of which the exit was observed
	checkpointPending bool      // a timer wakes the pump for a checkpoint
	caughtUp          time.Time // while running: when everything in the source was last written

	// Used by the goroutine only.
	checkpoint          Checkpoint
	out                 *crifile.Writer
	saved               Checkpoint // as in the state directory
	savedAt             time.Time
	lastError           string    // that was logged
	lastCheckpointError string    // that was logged
	reopens             []command // reopen commands that wait for the end of a line
	reopenDeadline      time.Time // when they stop waiting
}

// A source is where Docker keeps the output of a container.
type source interface {
	// copy writes the output that the source has beyond its position to the log of p.
	// Commands that it receives meanwhile are added to r.
	copy(ctx context.Context, p *pump, r *round) (copyResult, error)
	// savePosition sets in cp how far the source was copied.
	savePosition(cp *Checkpoint) error
	// watchPath returns the file that changes when there is more output; "" if it does
	// not exist now.
	watchPath() string
	// changed reports whether there may be output beyond the position.
	changed() (bool, error)
	close() error
}

// A copyResult is why a source stopped copying without an error.
type copyResult int

const (
	nothingCopied copyResult = iota // there is no more output for now
	someCopied                      // some was copied, and more may follow at once
	streamEnded                     // Docker's log stream ended: the container has exited or Docker stopped
)

// A round is the work of one pass of a pump.
type round struct {
	commands []command
	exited   bool // the container has exited
	remove   bool // the container is being removed
}

// A pumpState is what a pump does after a round.
type pumpState int

const (
	stateCopying   pumpState = iota // the next round follows after batchInterval
	stateIdle                       // there is no more output: wait for a change of the source
	stateRereading                  // the container has exited during the round: the next one follows at once
	stateRetrying                   // the round failed or the log stream ended: try again after retryInterval
	stateComplete                   // the container has exited and all is written: wait for a new start
	stateShutdown                   // berthd ends
	stateRemoved                    // the container is removed
)

// run copies until there is nothing more to do for now.
func (p *pump) run(ctx context.Context, watches watcher) {
	caughtUp := true
	for {
		r := p.nextRound(caughtUp)
		if !r.exited {
			p.checkpoint.Complete = false
		}
		p.addReopens(r.commands)
		result, err := nothingCopied, error(nil)
		// The kubelet may have removed the log of a container that is being removed: then
		// it is not created again.
		if !p.checkpoint.Complete && (!r.remove || p.out.IsOpen()) {
			result, err = p.source.copy(ctx, p, r)
		}
		caughtUp = err == nil
		state, err := p.finishRound(ctx, r, result, err)
		r.reply(err)
		switch state {
		case stateRemoved:
			p.retire()
			return
		case stateShutdown:
			p.close(false)
			return
		case stateRereading:
		case stateRetrying:
			p.sleep(ctx, retryInterval)
		case stateComplete:
			if p.park() {
				return
			}
		case stateCopying:
			p.sleep(ctx, batchInterval)
		case stateIdle:
			p.saveCheckpointSoon()
			if p.parkWatched(watches) {
				return
			}
			p.sleep(ctx, pollInterval)
		}
	}
}

// nextRound begins a round with the commands that have arrived. caughtUp is whether the
// last round has copied all output that there was.
func (p *pump) nextRound(caughtUp bool) *round {
	p.service.mu.Lock()
	defer p.service.mu.Unlock()
	r := &round{exited: p.output != outputOpen}
	p.receiveLocked(r)
	if caughtUp {
		p.caughtUp = time.Now()
	}
	return r
}

// receiveLocked adds the commands that have arrived to r and returns them. service.mu is held.
func (p *pump) receiveLocked(r *round) []command {
	received := p.commands
	p.commands = nil
	if p.schedule == rerun {
		p.schedule = running
	}
	r.commands = append(r.commands, received...)
	for _, c := range received {
		r.remove = r.remove || c.kind == removeCommand
	}
	return received
}

// receive is receiveLocked during a round.
func (p *pump) receive(r *round) []command {
	p.service.mu.Lock()
	defer p.service.mu.Unlock()
	return p.receiveLocked(r)
}

// finishRound does the rest of a round after the source has copied what it could, with
// the given result, and returns what to do next.
func (p *pump) finishRound(ctx context.Context, r *round, result copyResult, err error) (pumpState, error) {
	switch {
	case r.remove:
		p.logError(ctx, err)
		return stateRemoved, errors.Join(err, p.remove())
	case r.exited && err == nil && ctx.Err() == nil:
		// Docker reports the exit of a container after it has written its last line.
		err = p.complete()
	case result == streamEnded && err == nil && ctx.Err() == nil && p.exitedDuring(r):
		return stateRereading, nil
	case err != nil, result == streamEnded:
		p.reopenNow() // the rest of an open line will not come soon
	default:
		p.reopenIfDue()
	}
	p.logError(ctx, err)
	switch {
	case ctx.Err() != nil:
		return stateShutdown, err
	case err != nil:
		return stateRetrying, err
	case p.checkpoint.Complete:
		return stateComplete, nil
	case result == streamEnded:
		return stateRetrying, nil
	case result == someCopied, len(p.reopens) > 0:
		return stateCopying, nil
	}
	return stateIdle, nil
}

// exitedDuring reports whether the exit of the container was observed after r began. Then the
// commands of r wait for the next round, which reads the log stream again before it ends
// the log: the stream may have ended before the container, because Docker was stopped.
func (p *pump) exitedDuring(r *round) bool {
	p.service.mu.Lock()
	defer p.service.mu.Unlock()
	if r.exited || p.output == outputOpen {
		return false
	}
	for _, c := range r.commands {
		if c.kind != reopenCommand { // those are in p.reopens
			p.commands = append(p.commands, c)
		}
	}
	r.commands = nil
	return true
}

// reply sends err to the commands that wait for the end of the round.
func (r *round) reply(err error) {
	for _, c := range r.commands {
		if c.kind != reopenCommand {
			c.done <- err
		}
	}
}

// logError logs err, unless it is the one that was logged last. Errors of a shutdown are
// not logged.
func (p *pump) logError(ctx context.Context, err error) {
	switch {
	case err == nil:
		p.lastError = ""
	case ctx.Err() == nil && err.Error() != p.lastError:
		p.lastError = err.Error()
		p.service.log.Warn("the log of a container cannot be written, trying again", slog.String("container", p.id), slog.Any("err", err))
	}
}

// sleep waits for d, a wake-up or the end of ctx.
func (p *pump) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.wakeup:
	case <-ctx.Done():
	}
}

// interrupt ends the current or the next sleep.
func (p *pump) interrupt() {
	select {
	case p.wakeup <- struct{}{}:
	default:
	}
}

// park reports whether the goroutine of p may end, and if so marks p as parked.
func (p *pump) park() bool {
	p.service.mu.Lock()
	defer p.service.mu.Unlock()
	if p.schedule == rerun || len(p.commands) > 0 {
		return false
	}
	p.schedule = parked
	return true
}

// parkWatched is park for a pump that wakes when its source changes.
func (p *pump) parkWatched(watches watcher) bool {
	path := p.source.watchPath()
	if path == "" {
		return p.park() // the start of the container wakes it
	}
	s := p.service
	s.mu.Lock()
	s.watched[path] = p
	s.mu.Unlock()
	if !watches.add(path) {
		s.unwatch(path)
		return false
	}
	// The watch does not report what came between the last read and its own start.
	if changed, err := p.source.changed(); err != nil || changed {
		s.unwatch(path)
		watches.remove(path)
		p.interrupt()
		return false
	}
	return p.park()
}

// retire ends p after its container was removed.
func (p *pump) retire() {
	s := p.service
	s.mu.Lock()
	commands := p.commands
	p.commands, p.schedule = nil, retired
	delete(s.watched, p.sourcePath)
	replaced := s.pumps[p.id] != nil && s.pumps[p.id] != p
	s.mu.Unlock()
	for _, c := range commands {
		c.done <- p.errRemoved()
	}
	// p may have saved a checkpoint after Drop has deleted it.
	if replaced {
		return // the checkpoint is that of the new pump
	}
	if err := s.checkpoints.Delete(p.id); err != nil {
		s.log.Warn("the position in a log could not be deleted", slog.String("container", p.id), slog.Any("err", err))
	}
}

func (p *pump) errRemoved() error {
	return fmt.Errorf("container %s: %w", p.id, errdefs.ErrNotFound)
}
