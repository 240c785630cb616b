package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// gather is the pause between two looks at a source that grows. One look
	// per line would cost more than the lines do.
	gather = 10 * time.Millisecond
	// unwatched is the pause where the source cannot be watched.
	unwatched = 500 * time.Millisecond
	// troubled is the pause after something went wrong, a full disk perhaps.
	troubled = time.Second

	// noteEvery and noteAfter bound what is to be compared after a crash.
	noteEvery = 500 * time.Millisecond
	noteAfter = 4 << 20

	// readAtOnce holds the longest line that the Engine writes: 16 KiB of
	// which every byte is escaped.
	readAtOnce = 256 << 10
	// lineGrace is how long the beginning of a new file waits for the end of a line.
	// The Engine writes the pieces of one right after each other, unless the
	// container itself stops in the middle.
	lineGrace = time.Second

	// longestLine is what a line with an operator's attributes may have.
	longestLine = 16 << 20
)

// asked is what a pump is to do before it reads on.
type asked int

const (
	drained  asked = iota // read on until the end
	reopened              // begin a new file
	closed                // read to the end, and no more
)

// An ask is answered on done, which has room for the answer.
type ask struct {
	what asked
	done chan error
}

// A pump copies the output of one container. Its goroutine comes into being
// when there is something to do and ends when there is not.
type pump struct {
	id, source string
	file       location      // the kubelet's
	nudge      chan struct{} // cuts pauses short

	// Guarded by the mu of the Service.
	running  bool  // whether its goroutine is there
	again    bool  // whether to look once more before it ends
	asks     []ask // not seen yet
	tty      bool
	ended    bool      // whether the container has
	complete bool      // whether all is written, or has been waited for long enough
	gone     bool      // whether nobody runs it any more
	past     int64     // when the run began whose end was seen
	later    bool      // whether it will be woken to note what it has written
	follows  bool      // whether it reads the Engine's log stream
	caughtUp time.Time // when all that there was had last been written, while it runs

	// The goroutine's own.
	at      position
	in, out *os.File
	over    *surplus  // what the kubelet's file holds beyond at.File, to be compared; nil for nothing
	pending []byte    // translated but not written, for the disk was full
	kept    position  // what the journal has
	noted   time.Time // when at was last put there
	dirty   int64     // how much has been written since
	told    string    // the last trouble that was logged
	unkept  string    // the last trouble with the journal that was logged
	odd     bool      // whether an unreadable line was logged
	behind  bool      // whether the last look has left something unwritten

	reopens  []chan<- error // answered once there is a new file
	reopenBy time.Time      // when it is begun in the middle of a line
}

// buffers are a pump's for as long as it reads.
type buffers struct{ in, out []byte }

var pool = sync.Pool{New: func() any { return &buffers{in: make([]byte, readAtOnce)} }}

// pump runs p until there is nothing more to do for it.
func (s *Service) pump(ctx context.Context, watches watcher, p *pump) {
	if p.at.Follow {
		s.follow(ctx, p)
		return
	}
	for {
		asks, ended, end := s.take(p)
		if !ended {
			p.at.Complete = false
		}
		s.reopenAsked(p, asks)
		var moved bool
		var err error
		// Of one that is being removed the kubelet may have removed the log.
		if !p.at.Complete && (!end || p.out != nil) {
			moved, err = s.copy(ctx, p)
			p.behind = err != nil
			s.trouble(p, err)
		}
		switch {
		case end:
			err = errors.Join(err, s.end(p))
		case ended && err == nil && ctx.Err() == nil:
			// The Engine tells that a container has ended after it has written
			// its last line.
			err = s.complete(p)
			s.trouble(p, err)
		case err != nil:
			s.reopenNow(p)
		default:
			s.reopenInTime(p)
		}
		answer(asks, err)
		switch {
		case end:
			s.leave(p)
			return
		case ctx.Err() != nil:
			s.finish(p, false)
			return
		case err != nil:
			pause(ctx, p, troubled)
		case p.at.Complete:
			if s.rest(p) {
				return
			}
		case moved, len(p.reopens) > 0:
			pause(ctx, p, gather)
		default:
			s.noteInTime(p)
			if s.park(watches, p) {
				return
			}
			pause(ctx, p, unwatched)
		}
	}
}

// take returns what p is asked since the last time, whether its container has
// ended, and whether p itself is to.
func (s *Service) take(p *pump) (asks []ask, ended, end bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asks, ended = p.asks, p.ended
	p.asks, p.again = nil, false
	if !p.behind {
		p.caughtUp = time.Now()
	}
	for _, a := range asks {
		end = end || a.what == closed
	}
	return asks, ended, end
}

// leave ends p for good.
func (s *Service) leave(p *pump) {
	s.mu.Lock()
	asks := p.asks
	p.asks, p.gone = nil, true
	delete(s.files, p.source)
	renewed := s.pumps[p.id] != nil && s.pumps[p.id] != p
	s.mu.Unlock()
	for _, a := range asks {
		a.done <- fmt.Errorf("container %s: %w", p.id, errdefs.ErrNotFound)
	}
	// It may have been noted after Drop had forgotten it.
	if renewed {
		return // its successor's
	}
	if err := s.positions.Delete(p.id); err != nil {
		s.trouble(p, err)
	}
}

// answer answers the asks that wait for the end of a look.
func answer(asks []ask, err error) {
	for _, a := range asks {
		if a.what != reopened {
			a.done <- err
		}
	}
}

// pause waits for d, a nudge or the end of ctx.
func pause(ctx context.Context, p *pump, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.nudge:
	case <-ctx.Done():
	}
}

// park has p woken when its source changes, and reports whether its goroutine
// may end.
func (s *Service) park(watches watcher, p *pump) bool {
	if p.in == nil {
		// There is no file yet, or no more. Anyone who starts the container tells us.
		return s.rest(p)
	}
	s.mu.Lock()
	s.files[p.source] = p
	s.mu.Unlock()
	if !watches.add(p.source) {
		s.unpark(p)
		return false
	}
	// What came between the last look and the watch is nobody's news.
	if grown, err := p.grown(); err != nil || grown {
		s.unpark(p)
		watches.remove(p.source)
		select {
		case p.nudge <- struct{}{}:
		default:
		}
		return false
	}
	return s.rest(p)
}

func (s *Service) unpark(p *pump) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, p.source)
}

// rest reports whether the goroutine of p may end, and if so counts it as
// ended.
func (s *Service) rest(p *pump) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.again || len(p.asks) > 0 {
		return false
	}
	p.running = false
	return true
}

// grown reports whether there is more in the source than has been read.
func (p *pump) grown() (bool, error) {
	info, err := os.Stat(p.source)
	if err != nil {
		return false, err
	}
	return inodeOf(info) != p.at.Source.Inode || info.Size() != p.at.Source.Offset, nil
}

// copy writes all that is in the source and has not been written, and reports
// whether there was anything.
func (s *Service) copy(ctx context.Context, p *pump) (moved bool, err error) {
	if p.in == nil {
		if found, err := s.begin(p); err != nil || !found {
			return false, err
		}
	}
	if p.out == nil {
		if err := p.reopenLog(); err != nil {
			return false, err
		}
		// Before the first line: a crash after it must know that it is there.
		s.note(p)
	}
	b, _ := pool.Get().(*buffers) // there is nothing else in it
	defer func() {
		if len(b.in) == readAtOnce {
			pool.Put(b)
		}
	}()
	for ctx.Err() == nil {
		if err := p.flush(); err != nil {
			return moved, err
		}
		n, err := p.in.ReadAt(b.in, p.at.Source.Offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return moved, err
		}
		used := s.translate(p, b, n)
		if used > 0 {
			moved = true
			p.at.Source.Offset += int64(used)
			if err := p.write(b.out); err != nil {
				return moved, err
			}
			s.reopenInTime(p)
			if p.dirty > noteAfter || time.Since(p.noted) > noteEvery {
				s.note(p)
			}
			continue
		}
		if n == len(b.in) && n < longestLine {
			b.in = make([]byte, 2*n)
			continue
		}
		more, err := s.turn(p)
		if err != nil || !more {
			return moved, err
		}
	}
	return moved, nil
}

// begin opens the source where the last daemon left off. It reports whether there
// is one: nothing may have been printed yet.
func (s *Service) begin(p *pump) (found bool, err error) {
	in, err := openSource(p.source, p.at.Source)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case errors.Is(err, errLost):
		s.lost(p)
		p.at.Source = place{}
	case err != nil:
		return false, err
	}
	if err := p.findSurplus(); err != nil {
		return false, errors.Join(err, in.Close())
	}
	return true, p.enter(in)
}

// findSurplus looks for what was written and not noted.
func (p *pump) findSurplus() error {
	p.dropSurplus()
	over, err := findSurplus(p.file, p.at.File)
	p.over = over
	return err
}

func (p *pump) dropSurplus() {
	if p.over != nil {
		_ = p.over.file.Close() // it was only read
		p.over = nil
	}
}

// enter goes on with the file in, from the beginning unless it is the one that
// p.at is about.
func (p *pump) enter(in *os.File) error {
	info, err := in.Stat()
	if err != nil {
		return errors.Join(err, in.Close())
	}
	if p.at.Source.Inode != inodeOf(info) {
		p.at.Source = place{Inode: inodeOf(info)}
	}
	closing := p.in
	p.in = in
	return shut(&closing)
}

// lost tells that output is missing from the log.
func (s *Service) lost(p *pump) {
	s.log.Error("the log of a container has a gap", slog.String("container", p.id), slog.Any("file", p.file), slog.Any("err", errLost))
}

// turn looks at why there is no more to read, and reports whether there is
// after all: the Engine has rotated its file, or somebody has emptied it.
func (s *Service) turn(p *pump) (more bool, err error) {
	info, err := p.in.Stat()
	if err != nil {
		return false, err
	}
	if info.Size() < p.at.Source.Offset {
		p.at.Source = place{Inode: inodeOf(info)}
		return info.Size() > 0, nil
	}
	newer, err := newerSource(p.source, p.in)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil // it is being rotated; a removed one stays so
	case errors.Is(err, errLost):
		s.lost(p)
	case err != nil, newer == nil:
		return false, err
	}
	// The Engine writes no more to a file that it has renamed, but it may have
	// between our last look and that.
	if now, err := p.in.Stat(); err == nil && now.Size() > p.at.Source.Offset {
		rest := make([]byte, now.Size()-p.at.Source.Offset)
		n, err := p.in.ReadAt(rest, p.at.Source.Offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, errors.Join(err, newer.Close())
		}
		if end := bytes.LastIndexByte(rest[:n], '\n'); end >= 0 {
			return true, newer.Close()
		}
	}
	if err := p.enter(newer); err != nil {
		return false, err
	}
	s.note(p)
	return true, nil
}

// translate fills b.out with what the first n bytes of b.in say and returns
// how many of them it has used. Where a new file is to be begun it stops at the end
// of a line.
func (s *Service) translate(p *pump, b *buffers, n int) (used int) {
	b.out = b.out[:0]
	in := b.in[:n]
	for {
		end := bytes.IndexByte(in[used:], '\n')
		if end < 0 {
			break
		}
		var ok bool
		if b.out, ok = p.at.Open.appendLine(b.out, in[used:used+end]); !ok && !p.odd {
			p.odd = true
			s.log.Warn("docker has written a log line that cannot be read, left out", slog.String("container", p.id), slog.String("file", p.source), slog.Int64("offset", p.at.Source.Offset+int64(used)))
		}
		used += end + 1
		if len(p.reopens) > 0 && !p.at.Open.any() {
			break
		}
	}
	if used == 0 && n > 0 && len(bytes.TrimLeft(in, "\x00")) == 0 {
		return n // the hole that truncating a file has left
	}
	if used == 0 && n >= longestLine {
		return n
	}
	return used
}

// reopenLog opens the kubelet's file, anew if it is open.
func (p *pump) reopenLog() error {
	if p.out != nil {
		if err := p.flush(); err != nil {
			return err
		}
	}
	out, err := p.file.open()
	if err != nil {
		return err
	}
	info, err := out.Stat()
	if err != nil {
		return errors.Join(err, out.Close())
	}
	p.at.File.Inode = inodeOf(info)
	closing := p.out
	p.out = out
	return shut(&closing)
}

// write puts text into the kubelet's file, but for what is there already
// because a daemon died between writing it and noting so.
func (p *pump) write(text []byte) error {
	if p.over != nil {
		rest, more, err := p.over.skip(text)
		if err != nil {
			p.pending = append(p.pending, text...)
			return err
		}
		if text = rest; !more {
			p.dropSurplus()
		}
	}
	n, err := p.out.Write(text)
	p.dirty += int64(n)
	if err != nil {
		p.pending = append(p.pending, text[n:]...)
	}
	return err
}

// flush writes what is pending.
func (p *pump) flush() error {
	if len(p.pending) == 0 {
		return nil
	}
	n, err := p.out.Write(p.pending)
	p.dirty += int64(n)
	if p.pending = p.pending[n:]; len(p.pending) == 0 {
		p.pending = nil
	}
	return err
}

// note puts into the journal how far p is, if that is all written.
func (s *Service) note(p *pump) {
	if len(p.pending) > 0 || p.over != nil || p.out == nil {
		return
	}
	info, err := p.out.Stat()
	if err == nil {
		p.at.File.Offset = info.Size()
		if p.in != nil {
			p.at.Source.Head, err = head(p.in, p.at.Source.Offset)
		}
	}
	if err == nil {
		err = s.keep(p)
	}
	if err == nil {
		p.unkept = ""
	} else if text := err.Error(); text != p.unkept {
		p.unkept = text
		s.log.Warn("how far a log is written cannot be kept; after a crash lines may be repeated", slog.String("container", p.id), slog.Any("err", err))
	}
	p.noted, p.dirty = time.Now(), 0
}

// noteInTime is note for what is about to rest: at once if the last time is long
// past, and else when it is, for one that prints a line now and then would cost
// a write to the journal for each.
func (s *Service) noteInTime(p *pump) {
	left := noteEvery - time.Since(p.noted)
	if left <= 0 {
		s.note(p)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.dirty == 0 || p.later {
		return
	}
	p.later = true
	time.AfterFunc(left, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		p.later = false
		if !p.gone {
			s.wake(p)
		}
	})
}

// keep puts p.at into the journal, unless it is there or p is not wanted any
// more.
func (s *Service) keep(p *pump) error {
	s.mu.Lock()
	wanted := s.pumps[p.id] == p
	s.mu.Unlock()
	if !wanted || p.at == p.kept {
		return nil
	}
	err := s.positions.Put(p.id, p.at)
	if err == nil {
		p.kept = p.at
	}
	return err
}

// reopenAsked begins a new file if one of asks wants it, at once or, in the middle
// of a line, when the line has ended: log collectors read each file by itself.
func (s *Service) reopenAsked(p *pump, asks []ask) {
	for _, a := range asks {
		if a.what != reopened {
			continue
		}
		if len(p.reopens) == 0 {
			p.reopenBy = time.Now().Add(lineGrace)
		}
		p.reopens = append(p.reopens, a.done)
	}
	s.reopenInTime(p)
}

// reopenInTime begins the new file that is asked for, unless there is a line to be
// waited for.
func (s *Service) reopenInTime(p *pump) {
	if p.out == nil || !p.at.Open.any() || time.Now().After(p.reopenBy) {
		s.reopenNow(p)
	}
}

// reopenNow begins the new file that is asked for.
func (s *Service) reopenNow(p *pump) {
	if len(p.reopens) == 0 {
		return
	}
	err := s.reopen(p)
	for _, done := range p.reopens {
		done <- err
	}
	p.reopens = nil
}

// reopen begins a new file of the kubelet's.
func (s *Service) reopen(p *pump) error {
	if p.out == nil {
		return p.touch() // nothing was printed yet
	}
	if err := p.reopenLog(); err != nil {
		return err
	}
	s.note(p)
	return nil
}

// touch makes the kubelet's file.
func (p *pump) touch() error {
	f, err := p.file.open()
	if err != nil {
		return err
	}
	return f.Close()
}

// endLines ends the lines that the container's last output was not the end of.
func (p *pump) endLines() error {
	if !p.at.Open.any() {
		return nil
	}
	if p.out == nil {
		if err := p.reopenLog(); err != nil {
			return err
		}
	}
	return p.write(p.at.Open.end(nil))
}

// complete ends the log of a container that has ended.
func (s *Service) complete(p *pump) error {
	if err := p.endLines(); err != nil {
		return err
	}
	s.reopenNow(p)
	p.dropSurplus() // there is nothing more that it could be compared with
	s.finish(p, true)
	return nil
}

// end ends the log of a container that is being removed.
func (s *Service) end(p *pump) (err error) {
	if p.out != nil { // else the kubelet may have removed it
		err = p.endLines()
	}
	for _, done := range p.reopens {
		done <- fmt.Errorf("container %s is being removed: %w", p.id, errdefs.ErrNotFound)
	}
	p.reopens = nil
	s.finish(p, false)
	return errors.Join(err, p.sweep())
}

// finish closes the files of p; complete tells that no more will come.
func (s *Service) finish(p *pump, complete bool) {
	if complete && !p.at.Complete {
		p.at.Complete = true
		if p.out == nil {
			// It has printed nothing, and an empty file says so.
			if err := p.touch(); err != nil {
				s.trouble(p, err)
			}
			if err := s.keep(p); err != nil {
				s.trouble(p, err)
			}
		}
	}
	if p.out != nil {
		s.note(p)
	}
	p.dropSurplus()
	if err := errors.Join(shut(&p.in), shut(&p.out)); err != nil {
		s.trouble(p, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.complete = p.complete || complete
}

// sweep removes the kubelet's file if nothing was ever written to it.
func (p *pump) sweep() error {
	if p.at.File.Inode != 0 {
		return nil
	}
	return p.file.removeEmpty()
}
