package streaming

import (
	"errors"
	"io"
	"sync"
	"time"
)

// ErrSlow is what a Buffer says of a reader that it has given up.
var ErrSlow = errors.New("the client does not keep up")

// A Buffer stands between a writer that must not be held up and one that may
// be slow: it takes what it is given into bounded memory and hands it on from
// there. Once it is full, and stays so, the slow one is given up.
type Buffer struct {
	dst      io.Writer
	limit    int
	patience time.Duration

	mu     sync.Mutex // guards following
	change *sync.Cond
	queue  []byte
	err    error // of dst, or ErrSlow
	closed bool
	done   chan struct{} // closed when everything has been handed on, or never will be
}

// NewBuffer returns a Buffer of limit bytes before dst, which gives dst up when
// it has been full for as long as patience.
func NewBuffer(dst io.Writer, limit int, patience time.Duration) *Buffer {
	b := &Buffer{dst: dst, limit: limit, patience: patience, done: make(chan struct{})}
	b.change = sync.NewCond(&b.mu)
	go b.hand()
	return b
}

// hand hands on what is queued until the Buffer is closed and empty, or dst
// fails.
func (b *Buffer) hand() {
	defer close(b.done)
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.err == nil {
		if len(b.queue) == 0 {
			if b.closed {
				return
			}
			b.change.Wait()
			continue
		}
		part := b.queue
		b.queue = nil
		b.mu.Unlock()
		_, err := b.dst.Write(part)
		b.mu.Lock()
		if err != nil && b.err == nil {
			b.err = err
		}
		b.change.Broadcast()
	}
}

// Write takes p at once while there is room. The error is that of an earlier
// write to the other side, or ErrSlow.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue)+len(p) > b.limit && len(b.queue) > 0 && b.err == nil {
		timer := time.AfterFunc(b.patience, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.err == nil {
				b.err = ErrSlow
			}
			b.change.Broadcast()
		})
		for len(b.queue)+len(p) > b.limit && len(b.queue) > 0 && b.err == nil {
			b.change.Wait()
		}
		timer.Stop()
	}
	if b.err != nil {
		return 0, b.err
	}
	b.queue = append(b.queue, p...)
	b.change.Broadcast()
	return len(p), nil
}

// Close waits, for as long as patience at the most, until everything has been
// handed on.
func (b *Buffer) Close() error {
	b.mu.Lock()
	b.closed = true
	b.change.Broadcast()
	b.mu.Unlock()
	timer := time.NewTimer(b.patience)
	defer timer.Stop()
	select {
	case <-b.done:
	case <-timer.C:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil && len(b.queue) > 0 {
		b.err = ErrSlow
	}
	b.change.Broadcast()
	return b.err
}
