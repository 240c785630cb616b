package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"berth/core/panics"
)

// follow is pump for a container whose output is to be had from the Engine
// only. Its goroutine lives as long as the container.
func (s *Service) follow(ctx context.Context, p *pump) {
	for {
		asks, ended, end := s.take(p)
		if !ended {
			p.at.Complete = false
		}
		s.reopenAsked(p, asks)
		var err error
		if !end && !p.at.Complete {
			asks, end, err = s.stream(ctx, p, asks)
		}
		switch {
		case end:
			err = errors.Join(err, s.end(p))
		case ended && err == nil && ctx.Err() == nil:
			err = s.complete(p)
		default:
			s.reopenNow(p) // what is missing of a line does not come soon
		}
		answer(asks, err)
		switch {
		case end:
			s.leave(p)
			return
		case ctx.Err() != nil:
			s.finish(p, false)
			return
		case p.at.Complete:
			if s.rest(p) {
				return
			}
		default:
			// The Engine has gone, or has not told yet that the container ended.
			s.trouble(p, err)
			pause(ctx, p, troubled)
		}
	}
}

// stream copies the Engine's log stream until it ends, as it does with the
// container. It returns what it was asked meanwhile and could not do.
func (s *Service) stream(ctx context.Context, p *pump, asks []ask) (_ []ask, end bool, err error) {
	if p.out == nil {
		if err := p.findSurplus(); err != nil {
			return asks, false, err
		}
		if err := p.reopenLog(); err != nil {
			return asks, false, err
		}
		s.note(p)
	}
	if err := p.flush(); err != nil {
		return asks, false, err
	}
	docker, err := s.docker.Conn()
	if err != nil {
		return asks, false, err
	}
	s.mu.Lock()
	tty := p.tty
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	since := p.at.since(tty)
	known := p.at.replay()
	body, err := docker.ContainerLogs(ctx, p.id, container.LogsOptions{
		ShowStdout: true, ShowStderr: true, Follow: true, Timestamps: true, Since: since,
	})
	if err != nil {
		return asks, false, fmt.Errorf("log stream: %w", err)
	}
	messages := make(chan message)
	g := panics.NewGroup(s.log)
	g.Go(func() error {
		defer close(messages)
		return errors.Join(split(ctx, body, tty, messages), body.Close())
	})
	for {
		var late <-chan time.Time
		if len(p.reopens) > 0 {
			late = time.After(time.Until(p.reopenBy))
		}
		select {
		case <-late:
			s.reopenNow(p)
		case m, ok := <-messages:
			if !ok {
				return asks, false, g.Wait()
			}
			if known.has(m) {
				continue
			}
			if err := s.take1(p, m); err != nil {
				cancel()
				return asks, false, errors.Join(err, quiet(g.Wait()))
			}
		case <-p.nudge:
			var more []ask
			more, _, end = s.take(p)
			s.reopenAsked(p, more)
			asks = append(asks, more...) // the others' turn is when the stream has ended
			if end {
				cancel()
				return asks, true, quiet(g.Wait())
			}
		}
	}
}

// quiet drops the error of something that was called off.
func quiet(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// take1 writes one message.
func (s *Service) take1(p *pump, m message) error {
	p.at.mark(m.stream).add(m.stamp)
	if err := p.write(p.at.Open.appendPiece(nil, []byte(m.stamp), []byte(m.stream), m.text)); err != nil {
		return err
	}
	s.reopenInTime(p)
	if p.dirty > noteAfter || time.Since(p.noted) > noteEvery {
		s.note(p)
	}
	return nil
}

// A message is what a container has written at once: a line or a part of one.
type message struct {
	stamp, stream string
	text          []byte
}

// split sends the messages of a log stream with time stamps.
func split(ctx context.Context, body io.Reader, tty bool, to chan<- message) error {
	if tty {
		w := &terminal{to: sender{ctx, stdout, to}}
		if _, err := io.Copy(w, body); err != nil {
			return err // what was cut off comes again
		}
		return w.end()
	}
	_, err := stdcopy.StdCopy(sender{ctx, stdout, to}, sender{ctx, stderr, to}, body)
	return err
}

// A sender sends each write as one message: the Engine frames them so.
type sender struct {
	ctx    context.Context //nolint:containedctx // an io.Writer has no other way
	stream string
	to     chan<- message
}

func (w sender) Write(frame []byte) (int, error) {
	stamp := stampOf(frame)
	if stamp == nil {
		return 0, fmt.Errorf("log stream: %q has no time", frame[:min(len(frame), 64)])
	}
	return len(frame), w.send(string(stamp), frame[len(stamp)+1:])
}

func (w sender) send(stamp string, text []byte) error {
	select {
	case w.to <- message{stamp, w.stream, bytes.Clone(text)}:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// stampOf returns the time that b begins with, before a space; nil if it does not.
func stampOf(b []byte) []byte {
	stamp, _, ok := bytes.Cut(b[:min(len(b), longestStamp+1)], []byte{' '})
	if !ok {
		return nil
	}
	if _, err := time.Parse(time.RFC3339Nano, string(stamp)); err != nil {
		return nil
	}
	return stamp
}

// longestStamp is how long a time may be: the Engine's have nine digits for the
// fraction, and mostly Z for the zone.
const longestStamp = len("2006-01-02T15:04:05.000000000-07:00")

// A terminal finds the messages in the log stream of a container with a terminal,
// which has no frames: a time, text, a time, text. A text ends with its line
// or, without a line break, where the Engine has cut: that is after pieceSize
// bytes or, where the log driver cuts later or writes U+FFFD for what is not
// UTF-8, somewhat later. All pieces of a line have the same time, to the
// nanosecond, so the next one is recognised by that. The last piece of a line may have
// no line break: with the log driver local of Docker 20.10. Then what
// follows has a later time.
type terminal struct {
	to    sender
	rest  []byte
	stamp string // of the text in rest; "" if rest begins with a time
	cut   string // of the text before, if that had no line break; else ""
}

// longestPiece is how long a text without a line break may get before it is sent as it
// is. Of Docker's log drivers awslogs cuts last, at 256 KiB.
const longestPiece = 1 << 20

func (w *terminal) Write(b []byte) (int, error) {
	w.rest = append(w.rest, b...)
	for {
		if w.stamp == "" {
			stamp := stampOf(w.rest)
			if stamp == nil && len(w.rest) <= longestStamp && bytes.IndexByte(w.rest, '\n') < 0 {
				return len(b), nil // not all of it is there
			}
			if stamp == nil {
				return 0, fmt.Errorf("log stream: %q has no time", w.rest[:min(len(w.rest), 64)])
			}
			w.stamp = string(stamp)
			w.rest = w.rest[len(stamp)+1:]
		}
		n, over := w.next()
		if n < 0 {
			return len(b), nil
		}
		if err := w.to.send(w.stamp, w.rest[:n]); err != nil {
			return 0, err
		}
		w.cut = w.stamp
		if n > 0 && w.rest[n-1] == '\n' {
			w.cut = ""
		}
		w.rest = w.rest[n:] // what is sent goes when the buffer grows
		if over {
			w.stamp = ""
		}
	}
}

// next returns how much of rest is to be sent now, -1 for nothing yet, and whether the
// text is over then.
func (w *terminal) next() (n int, over bool) {
	newline := bytes.IndexByte(w.rest, '\n') + 1
	text := w.rest
	if newline > 0 {
		text = text[:newline]
	}
	n = -1
	if len(text) > pieceSize {
		if at := bytes.Index(text[pieceSize:], []byte(w.stamp+" ")); at >= 0 {
			n = pieceSize + at
		} else if stampOf(text[pieceSize:]) != nil {
			n = pieceSize // journald may give each piece a time of its own, and keeps all bytes
		}
	}
	if w.cut == w.stamp {
		if at := laterStamp(text, w.stamp); at >= 0 && (n < 0 || at < n) {
			n = at
		}
	}
	switch {
	case n >= 0:
		return n, true
	case newline > 0:
		return newline, true
	case len(text) > longestPiece:
		return longestPiece / 2, false
	}
	return -1, false
}

// laterStamp returns where a time begins in text, as the Engine writes it, that is later than
// stamp; -1 if nowhere.
func laterStamp(text []byte, stamp string) int {
	now, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		return -1
	}
	// Between the seconds and their nine digits.
	const before, after = len("2006-01-02T15:04:05"), len(".000000000Z ")
	for from := before; ; {
		dot := bytes.IndexByte(text[min(from, len(text)):], '.')
		if dot < 0 {
			return -1
		}
		at := from + dot - before
		from += dot + 1
		if len(text) < at+before+after || text[at+len("2006-01-02")] != 'T' {
			continue
		}
		found := stampOf(text[at:])
		if len(found) < before+after-1 {
			continue
		}
		if then, err := time.Parse(time.RFC3339Nano, string(found)); err == nil && then.After(now) {
			return at
		}
	}
}

// end sends what has no end.
func (w *terminal) end() error {
	if w.stamp == "" {
		if len(w.rest) == 0 {
			return nil
		}
		return fmt.Errorf("log stream: it ends in %q", w.rest[:min(len(w.rest), 64)])
	}
	if len(w.rest) == 0 {
		return nil
	}
	return w.to.send(w.stamp, w.rest)
}
