package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/docker/docker/api/types/container"

	"berth/core/logs/dockerlog"
	"berth/core/logs/logstream"
	"berth/core/panics"
)

// A streamSource is the log stream of the Engine API. It ends when the container exits or
// Docker stops. It cannot be watched: the goroutine of its pump runs as long as the
// container.
type streamSource struct{}

// copy copies the log stream until it ends, or until the container is being removed.
func (streamSource) copy(ctx context.Context, p *pump, r *round) (copyResult, error) {
	if r.remove {
		return streamEnded, nil
	}
	if err := p.openLog(); err != nil {
		return streamEnded, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.service.mu.Lock()
	tty := p.tty
	p.service.mu.Unlock()
	cp := &p.checkpoint
	since := cp.Since(tty, cp.Open.Stdout, cp.Open.Stderr)
	replay := cp.Replay()
	body, err := p.service.openStream(ctx, p.id, since)
	if err != nil {
		return streamEnded, err
	}
	entries := make(chan dockerlog.Entry)
	g := panics.NewGroup(p.service.log)
	g.Go(func() error {
		defer close(entries)
		return errors.Join(logstream.Split(ctx, body, tty, entries), body.Close())
	})
	copyErr := p.copyEntries(entries, replay, r)
	cancel()
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		copyErr = errors.Join(copyErr, err)
	}
	return streamEnded, copyErr
}

// openStream opens the log stream of a container.
func (s *Service) openStream(ctx context.Context, id, since string) (io.ReadCloser, error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return nil, err
	}
	body, err := docker.ContainerLogs(ctx, id, container.LogsOptions{
		ShowStdout: true, ShowStderr: true, Follow: true, Timestamps: true, Since: since,
	})
	if err != nil {
		return nil, fmt.Errorf("log stream: %w", err)
	}
	return body, nil
}

// copyEntries copies entries until the channel is closed, except those that replay
// contains, and executes the commands that arrive meanwhile. It returns early if the
// container is being removed.
func (p *pump) copyEntries(entries <-chan dockerlog.Entry, replay *logstream.Replay, r *round) error {
	for {
		var reopenDue <-chan time.Time
		if len(p.reopens) > 0 {
			reopenDue = time.After(time.Until(p.reopenDeadline))
		}
		select {
		case <-reopenDue:
			p.reopenNow()
		case e, ok := <-entries:
			if !ok {
				return nil
			}
			if replay.Contains(e) {
				continue
			}
			p.checkpoint.Add(e)
			if err := p.write(p.checkpoint.Open.AppendEntry(nil, e)); err != nil {
				return err
			}
		case <-p.wakeup:
			p.addReopens(p.receive(r)) // the other commands wait for the end of the stream
			if r.remove {
				return nil
			}
		}
	}
}

// savePosition does nothing: copyEntries keeps the position in the checkpoint.
func (streamSource) savePosition(*Checkpoint) error { return nil }

func (streamSource) watchPath() string { return "" }

func (streamSource) changed() (bool, error) { return false, nil }

func (streamSource) close() error { return nil }
