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
	"golang.org/x/sync/errgroup"
)

// pieceSize is where the Engine cuts what has no line break.
const pieceSize = 16 << 10

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
			s.finish(p, false)
			err = errors.Join(err, p.sweep())
		case ended && err == nil && ctx.Err() == nil:
			s.finish(p, true)
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
		if p.over, err = surplus(p.path, p.at.File); err != nil {
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
	docker, err := s.docker.Use()
	if err != nil {
		return asks, false, err
	}
	s.mu.Lock()
	tty := p.tty
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := docker.ContainerLogs(ctx, p.id, container.LogsOptions{
		ShowStdout: true, ShowStderr: true, Follow: true, Timestamps: true, Since: p.at.Last,
	})
	if err != nil {
		return asks, false, fmt.Errorf("log stream: %w", err)
	}
	messages := make(chan message)
	var g errgroup.Group
	g.Go(func() error {
		defer close(messages)
		return errors.Join(split(ctx, body, tty, messages), body.Close())
	})
	known := position{Last: p.at.Last, Count: p.at.Count}
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				return asks, false, g.Wait()
			}
			if m.stamp == known.Last && known.Count > 0 {
				known.Count-- // written by the last stream
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
	if m.stamp == p.at.Last {
		p.at.Count++
	} else {
		p.at.Last, p.at.Count = m.stamp, 1
	}
	if err := p.write(appendText(nil, []byte(m.stamp), []byte(m.stream), m.text)); err != nil {
		return err
	}
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
		w := &terminal{to: sender{ctx, "stdout", to}}
		_, err := io.Copy(w, body)
		return errors.Join(err, w.end())
	}
	_, err := stdcopy.StdCopy(sender{ctx, "stdout", to}, sender{ctx, "stderr", to}, body)
	return err
}

// A sender sends each write as one message: the Engine frames them so.
type sender struct {
	ctx    context.Context //nolint:containedctx // an io.Writer has no other way
	stream string
	to     chan<- message
}

func (w sender) Write(frame []byte) (int, error) {
	stamp, text, ok := bytes.Cut(frame, []byte{' '})
	if _, err := time.Parse(time.RFC3339Nano, string(stamp)); !ok || err != nil {
		return 0, fmt.Errorf("log stream: %q has no time", frame[:min(len(frame), 64)])
	}
	select {
	case w.to <- message{string(stamp), w.stream, bytes.Clone(text)}:
		return len(frame), nil
	case <-w.ctx.Done():
		return 0, w.ctx.Err()
	}
}

// A terminal finds the messages in what has no frames: a message ends with its
// line or where the Engine cuts.
type terminal struct {
	to   sender
	rest []byte
}

func (w *terminal) Write(b []byte) (int, error) {
	w.rest = append(w.rest, b...)
	for {
		space := bytes.IndexByte(w.rest, ' ')
		if space < 0 {
			return len(b), nil
		}
		n := bytes.IndexByte(w.rest, '\n') + 1
		if cut := space + 1 + pieceSize; (n == 0 || n > cut+1) && len(w.rest) > cut {
			n = cut
		}
		if n == 0 {
			return len(b), nil
		}
		if _, err := w.to.Write(w.rest[:n]); err != nil {
			return 0, err
		}
		w.rest = append(w.rest[:0], w.rest[n:]...)
	}
}

// end sends what has no end.
func (w *terminal) end() error {
	if len(w.rest) == 0 {
		return nil
	}
	_, err := w.to.Write(w.rest)
	return err
}
