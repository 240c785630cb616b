package logs

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

// openLog opens the CRI log file if it is not open, and writes what an earlier failure has
// left pending.
func (p *pump) openLog() error {
	if !p.out.IsOpen() {
		if err := p.out.Open(); err != nil {
			return err
		}
		// Before the first line: after a crash the next daemon has to find it in this file.
		p.saveCheckpoint()
	}
	return p.out.Flush()
}

// write appends records to the CRI log file, and does what was waiting for the end of a line
// and for more output.
func (p *pump) write(records []byte) error {
	if err := p.out.Write(records); err != nil {
		return err
	}
	p.reopenIfDue()
	if p.out.Unacked() > maxUnacked || time.Since(p.savedAt) > checkpointInterval {
		p.saveCheckpoint()
	}
	return nil
}

// saveCheckpoint stores how far the log is written, if everything that was read is
// written. An error is logged once: it only matters after a crash.
func (p *pump) saveCheckpoint() {
	if !p.out.CanCheckpoint() {
		return
	}
	file, err := p.out.Checkpoint()
	if err == nil {
		p.checkpoint.File = file
		err = p.source.savePosition(&p.checkpoint)
	}
	if err == nil {
		err = p.storeCheckpoint()
	}
	if err == nil {
		p.lastCheckpointError = ""
	} else if text := err.Error(); text != p.lastCheckpointError {
		p.lastCheckpointError = text
		p.service.log.Warn("the position in a log cannot be saved; after a crash lines may be repeated", slog.String("container", p.id), slog.Any("err", err))
	}
	p.savedAt = time.Now()
	p.out.ResetUnacked()
}

// storeCheckpoint writes the checkpoint to the state directory, unless it is there already
// or the pump was discarded.
func (p *pump) storeCheckpoint() error {
	p.service.mu.Lock()
	discarded := p.service.pumps[p.id] != p
	p.service.mu.Unlock()
	if discarded || p.checkpoint == p.saved {
		return nil
	}
	err := p.service.checkpoints.Put(p.id, p.checkpoint)
	if err == nil {
		p.saved = p.checkpoint
	}
	return err
}

// saveCheckpointSoon is saveCheckpoint for a pump that is about to park. It saves at most
// once per checkpointInterval, with a timer if necessary: a container that prints a line now
// and then would otherwise cost a write to the state directory for each line.
func (p *pump) saveCheckpointSoon() {
	left := checkpointInterval - time.Since(p.savedAt)
	if left <= 0 {
		p.saveCheckpoint()
		return
	}
	s := p.service
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.out.Unacked() == 0 || p.checkpointPending {
		return
	}
	p.checkpointPending = true
	time.AfterFunc(left, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		p.checkpointPending = false
		s.wakeLocked(p)
	})
}

// addReopens begins a new CRI log file for the reopen commands among commands: at once or,
// in the middle of a line, when the line has ended, because log collectors read each file
// separately.
func (p *pump) addReopens(commands []command) {
	for _, c := range commands {
		if c.kind != reopenCommand {
			continue
		}
		if len(p.reopens) == 0 {
			p.reopenDeadline = time.Now().Add(lineGrace)
		}
		p.reopens = append(p.reopens, c)
	}
	p.reopenIfDue()
}

// reopenIfDue executes the waiting reopen commands, unless a line is open and its grace
// period has not passed.
func (p *pump) reopenIfDue() {
	if !p.out.IsOpen() || !p.checkpoint.Open.Any() || time.Now().After(p.reopenDeadline) {
		p.reopenNow()
	}
}

// reopenNow executes the waiting reopen commands. After one whose caller has gone the kubelet puts the old file
// back, so that nothing is to be done for it.
func (p *pump) reopenNow() {
	p.reopens = slices.DeleteFunc(p.reopens, command.abandoned)
	if len(p.reopens) == 0 {
		return
	}
	err := p.reopen()
	for _, c := range p.reopens {
		c.done <- err
	}
	p.reopens = nil
}

// reopen begins a new CRI log file.
func (p *pump) reopen() error {
	if !p.out.IsOpen() {
		return p.path.Touch() // nothing was printed yet
	}
	if err := p.out.Reopen(); err != nil {
		return err
	}
	p.saveCheckpoint()
	return nil
}

// endLines ends the lines that the last output of the container has left open.
func (p *pump) endLines() error {
	open := p.checkpoint.Open.Any()
	if !open && !p.out.IsOpen() {
		return nil
	}
	if err := p.openLog(); err != nil || !open {
		return err
	}
	return p.out.Write(p.checkpoint.Open.AppendEnds(nil))
}

// complete ends the log of a container that has exited.
func (p *pump) complete() error {
	if err := p.endLines(); err != nil {
		return err
	}
	p.reopenNow()
	p.out.DiscardTail() // there is no more output that it could contain
	p.close(true)
	return nil
}

// remove ends the log of a container that is being removed.
func (p *pump) remove() (err error) {
	if p.out.IsOpen() { // else the kubelet may have removed the log
		err = p.endLines()
	}
	for _, c := range p.reopens {
		c.done <- fmt.Errorf("container %s is being removed: %w", p.id, errdefs.ErrNotFound)
	}
	p.reopens = nil
	p.close(false)
	if p.out.IsUnused() {
		err = errors.Join(err, p.path.RemoveEmpty())
	}
	return err
}

// close saves the checkpoint and closes the files. With complete it marks the log as complete.
func (p *pump) close(complete bool) {
	if complete && !p.checkpoint.Complete {
		p.checkpoint.Complete = true
		if !p.out.IsOpen() {
			// The container has printed nothing, which an empty file shows.
			if err := errors.Join(p.path.Touch(), p.storeCheckpoint()); err != nil {
				p.service.log.Warn("the empty log of a container cannot be created", slog.String("container", p.id), slog.Any("err", err))
			}
		}
	}
	if p.out.IsOpen() {
		p.saveCheckpoint()
	}
	if err := errors.Join(p.source.close(), p.out.Close()); err != nil {
		p.service.log.Warn("the files of a log cannot be closed", slog.String("container", p.id), slog.Any("err", err))
	}
	if complete {
		p.service.mu.Lock()
		defer p.service.mu.Unlock()
		if p.output == outputEnding {
			p.output = outputComplete
		}
	}
}
