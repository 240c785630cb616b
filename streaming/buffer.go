package streaming

import (
	"errors"
	"io"
	"sync"
	"time"
)

// ErrSlow is the error of a Buffer whose reader does not keep up.
var ErrSlow = errors.New("the client does not keep up")

// chunk is the least that a Buffer takes of its Budget at a time, in bytes.
const chunk = 4 << 10

// A Buffer stands between a writer that must not be held up and a reader that may
// be slow: it takes what it is given into bounded memory and hands it on from
// there. Once it is full, and is not soon half empty, the reader is given up:
// one that took a little now and then would hold up the writer for ever.
//
// The memory is taken from a Budget. One piece may always wait to be handed on, so
// a reader that keeps up is served when all of the Budget is used by others.
type Buffer struct {
	dst      io.Writer
	budget   *Budget
	limit    int
	patience time.Duration

	mu      sync.Mutex // guards following
	change  *sync.Cond
	queue   []piece
	size    int       // capacity of what is in queue, in bytes
	taking  bool      // whether a piece is being handed on
	starved bool      // whether the Budget had nothing when it was last asked
	full    time.Time // since when there was no room; zero once half of it is free
	taken   time.Time // when dst took a piece, or was told that there is no more
	err     error     // of dst, or ErrSlow
	closed  bool
}

// A piece is a part of the output, with what was taken of the Budget for it.
type piece struct {
	data []byte
	paid int
}

// NewBuffer returns a Buffer of at most limit bytes of budget before dst. It gives
// dst up when it has been full and not half empty for as long as patience, or, once
// it is being closed, when dst has taken nothing for so long.
func NewBuffer(dst io.Writer, budget *Budget, limit int, patience time.Duration) *Buffer {
	b := &Buffer{dst: dst, budget: budget, limit: limit, patience: patience}
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
		part := b.queue[0]
		b.queue = b.queue[1:]
		b.size -= cap(part.data)
		b.taking = true
		b.mu.Unlock()
		_, err := b.dst.Write(part.data)
		b.budget.Return(part.paid)
		b.mu.Lock()
		b.taking, b.taken = false, time.Now()
		if len(b.queue) == 0 || !b.starved && b.size <= b.limit/2 {
			b.full = time.Time{}
		}
		if err != nil {
			b.fail(err)
		}
		b.change.Broadcast()
	}
}

// fail gives dst up, and with it what is queued. b.mu is held.
func (b *Buffer) fail(err error) {
	if b.err == nil {
		b.err = err
	}
	for _, part := range b.queue {
		b.budget.Return(part.paid)
	}
	b.queue, b.size = nil, 0
	b.change.Broadcast()
}

// wait waits for cond to hold, and gives dst up if it does not within patience of
// the time that since holds by then. b.mu is held.
func (b *Buffer) wait(since *time.Time, cond func() bool) {
	for b.err == nil && !cond() {
		left := b.patience - time.Since(*since)
		if left <= 0 {
			b.fail(ErrSlow)
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

// add queues p if there is room. b.mu is held.
func (b *Buffer) add(p []byte) bool {
	if last := len(b.queue) - 1; last >= 0 && cap(b.queue[last].data)-len(b.queue[last].data) >= len(p) {
		b.queue[last].data = append(b.queue[last].data, p...)
		return true
	}
	size := max(len(p), chunk)
	if len(b.queue) > 0 && b.size+size > b.limit {
		return false
	}
	part := piece{data: make([]byte, 0, size), paid: size}
	if b.starved = !b.budget.Take(size); b.starved {
		if len(b.queue) > 0 {
			return false
		}
		part.paid = 0
	}
	part.data = append(part.data, p...)
	b.queue = append(b.queue, part)
	b.size += size
	return true
}

// Write takes p at once while there is room. The error is that of an earlier
// write to the other side, or ErrSlow.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	added := b.err == nil && b.add(p)
	if !added {
		if b.full.IsZero() {
			b.full = time.Now()
		}
		b.wait(&b.full, func() bool { added = b.add(p); return added })
	}
	if b.err != nil {
		return 0, b.err
	}
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
