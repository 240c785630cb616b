package streaming

import (
	"errors"
	"io"
	"sync"
	"time"
)

// ErrSlow is what a Buffer says of a reader that it has given up.
var ErrSlow = errors.New("the client does not keep up")

// piece is how much is handed on at once, in bytes. A client has to take so
// much in the time that its patience gives it.
const piece = 64 << 10

// A Buffer stands between a writer that must not be held up and one that may
// be slow: it takes what it is given into bounded memory and hands it on from
// there. One that has taken nothing for too long is given up when its Buffer is full.
type Buffer struct {
	dst      io.Writer
	limit    int
	patience time.Duration

	mu     sync.Mutex // guards following
	change *sync.Cond
	queue  []byte
	taking bool      // whether a piece is being handed on
	taken  time.Time // when dst took a piece, or had nothing more to take
	err    error     // of dst, or ErrSlow
	closed bool
}

// NewBuffer returns a Buffer of limit bytes before dst, which gives dst up when
// it is full and dst has taken nothing for as long as patience.
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
		if err != nil && b.err == nil {
			b.err = err
		}
		b.change.Broadcast()
	}
}

// wait waits for cond to hold, and gives dst up if it takes nothing meanwhile.
// b.mu is held.
func (b *Buffer) wait(cond func() bool) {
	for b.err == nil && !cond() {
		left := b.patience - time.Since(b.taken)
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
	if b.idle() {
		b.taken = time.Now()
	}
	b.wait(func() bool { return len(b.queue) == 0 || len(b.queue)+len(p) <= b.limit })
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
	b.closed = true
	b.change.Broadcast()
	b.wait(b.idle)
	return b.err
}
