package streaming

import (
	"errors"
	"io"
	"sync"
	"time"
)

// ErrSlow is what a Buffer says of a reader that it has given up.
var ErrSlow = errors.New("the client does not keep up")

// piece is how much is handed on at once, in bytes.
const piece = 64 << 10

// A Buffer stands between a writer that must not be held up and one that may
// be slow: it takes what it is given into bounded memory and hands it on from
// there. Once it is full, and is not soon half empty, the slow one is given up:
// one that took a little now and then would hold up the writer for ever.
type Buffer struct {
	dst      io.Writer
	limit    int
	patience time.Duration

	mu     sync.Mutex // guards following
	change *sync.Cond
	queue  []byte
	taking bool      // whether a piece is being handed on
	full   time.Time // since when there was no room; zero once half of it is free
	taken  time.Time // when dst took a piece, or was told that there is no more
	err    error     // of dst, or ErrSlow
	closed bool
}

// NewBuffer returns a Buffer of limit bytes before dst. It gives dst up when it
// has been full and not half empty for as long as patience, or, once it is being
// closed, when dst has taken nothing for so long.
func NewBuffer(dst io.Writer, limit int, patience time.Duration) *Buffer {
	b := &Buffer{dst: dst, limit: limit, patience: patience}
	b.change = sync.NewCond(&b.mu)
	go b.hand()
	return b
}

// hand hands on what is queued until the Buffer is closed and empty, or dst
// fails.
func (b *Buffer) hand() {
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
		part := b.queue[:min(piece, len(b.queue))]
		b.queue = b.queue[len(part):]
		b.taking = true
		b.mu.Unlock()
		_, err := b.dst.Write(part)
		b.mu.Lock()
		b.taking, b.taken = false, time.Now()
		if len(b.queue) <= b.limit/2 {
			b.full = time.Time{}
		}
		if err != nil && b.err == nil {
			b.err = err
		}
		b.change.Broadcast()
	}
}

// wait waits for cond to hold, and gives dst up if it does not within patience of
// the time that since holds by then. b.mu is held.
func (b *Buffer) wait(since *time.Time, cond func() bool) {
	for b.err == nil && !cond() {
		left := b.patience - time.Since(*since)
		if left <= 0 {
			b.err = ErrSlow
			b.change.Broadcast()
			return
		}
		timer := time.AfterFunc(left, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.change.Broadcast()
		})
		b.change.Wait()
		timer.Stop()
	}
}

// idle reports whether everything has been handed on. b.mu is held.
func (b *Buffer) idle() bool { return len(b.queue) == 0 && !b.taking }

// Write takes p at once while there is room. The error is that of an earlier
// write to the other side, or ErrSlow.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	room := func() bool { return len(b.queue) == 0 || len(b.queue)+len(p) <= b.limit }
	if !room() && b.full.IsZero() {
		b.full = time.Now()
	}
	b.wait(&b.full, room)
	if b.err != nil {
		return 0, b.err
	}
	b.queue = append(b.queue, p...)
	b.change.Broadcast()
	return len(p), nil
}

// Close waits until everything has been handed on, or dst is given up.
func (b *Buffer) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed, b.taken = true, time.Now()
	b.change.Broadcast()
	b.wait(&b.taken, b.idle)
	return b.err
}
