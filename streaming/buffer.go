package streaming

import (
	"errors"
	"io"
	"sync"
	"time"
)

// ErrSlow is the error of a Buffer whose reader is too slow.
var ErrSlow = errors.New("the client does not keep up")

// minChunk is the least that a Buffer takes of its Budget at a time, in bytes.
const minChunk = 4 << 10

// A Buffer decouples a writer that must not be blocked from a destination that may be slow:
// writes go to bounded memory, and a goroutine copies from there to the destination. Once
// the memory is full and is not half empty again within stallTimeout, the Buffer fails with
// ErrSlow. Space for one more chunk is not enough: a client that reads a little now and then
// would block the writer forever.
//
// The memory is taken from a Budget. One chunk may always be queued, so that a client that
// keeps up is served even if others use the whole Budget.
type Buffer struct {
	dst          io.Writer
	budget       *Budget
	limit        int
	stallTimeout time.Duration

	mu           sync.Mutex // guards following
	changed      *sync.Cond
	queue        []chunk
	size         int       // capacity of the chunks in queue, in bytes
	writing      bool      // a chunk is being written to dst
	starved      bool      // the Budget was used up when a chunk was last needed
	fullSince    time.Time // zero once half of the limit is free
	lastProgress time.Time // when dst took a chunk, or Close was called
	err          error     // of dst, or ErrSlow
	closed       bool
}

// A chunk is a part of the output. reserved is what was taken of the Budget for it, in bytes.
type chunk struct {
	data     []byte
	reserved int
}

// NewBuffer returns a Buffer of at most limit bytes, taken from budget, in front of dst. It
// fails with ErrSlow if it has been full, and not half empty, for stallTimeout or, while it
// is being closed, if dst has taken nothing for stallTimeout.
func NewBuffer(dst io.Writer, budget *Budget, limit int, stallTimeout time.Duration) *Buffer {
	b := &Buffer{dst: dst, budget: budget, limit: limit, stallTimeout: stallTimeout}
	b.changed = sync.NewCond(&b.mu)
	go b.flushLoop()
	return b
}

// flushLoop writes the queue to dst until the Buffer is closed and empty, or fails.
func (b *Buffer) flushLoop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.err == nil {
		if len(b.queue) == 0 {
			if b.closed {
				return
			}
			b.changed.Wait()
			continue
		}
		c := b.queue[0]
		b.queue = b.queue[1:]
		b.size -= cap(c.data)
		b.writing = true
		b.mu.Unlock()
		_, err := b.dst.Write(c.data)
		b.budget.Release(c.reserved)
		b.mu.Lock()
		b.writing, b.lastProgress = false, time.Now()
		if len(b.queue) == 0 || !b.starved && b.size <= b.limit/2 {
			b.fullSince = time.Time{}
		}
		if err != nil {
			b.failLocked(err)
		}
		b.changed.Broadcast()
	}
}

// failLocked records the first error and drops the queue.
func (b *Buffer) failLocked(err error) {
	if b.err == nil {
		b.err = err
	}
	for _, c := range b.queue {
		b.budget.Release(c.reserved)
	}
	b.queue, b.size = nil, 0
	b.changed.Broadcast()
}

// waitLocked waits until condition is true. It fails the Buffer if that takes longer than
// stallTimeout from the time in since, which may change meanwhile.
func (b *Buffer) waitLocked(since *time.Time, condition func() bool) {
	for b.err == nil && !condition() {
		left := b.stallTimeout - time.Since(*since)
		if left <= 0 {
			b.failLocked(ErrSlow)
			return
		}
		timer := time.AfterFunc(left, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.changed.Broadcast()
		})
		b.changed.Wait()
		timer.Stop()
	}
}

// flushedLocked reports whether everything has been written to dst.
func (b *Buffer) flushedLocked() bool { return len(b.queue) == 0 && !b.writing }

// enqueueLocked appends p to the queue if it has space.
func (b *Buffer) enqueueLocked(p []byte) bool {
	if last := len(b.queue) - 1; last >= 0 && cap(b.queue[last].data)-len(b.queue[last].data) >= len(p) {
		b.queue[last].data = append(b.queue[last].data, p...)
		return true
	}
	size := max(len(p), minChunk)
	if len(b.queue) > 0 && b.size+size > b.limit {
		return false
	}
	c := chunk{data: make([]byte, 0, size), reserved: size}
	if b.starved = !b.budget.TryAcquire(size); b.starved {
		if len(b.queue) > 0 {
			return false
		}
		c.reserved = 0
	}
	c.data = append(c.data, p...)
	b.queue = append(b.queue, c)
	b.size += size
	return true
}

// Write queues p. It blocks only while the Buffer is full. The error is that of an earlier
// write to the destination, or ErrSlow.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	queued := b.err == nil && b.enqueueLocked(p)
	if !queued {
		if b.fullSince.IsZero() {
			b.fullSince = time.Now()
		}
		b.waitLocked(&b.fullSince, func() bool { queued = b.enqueueLocked(p); return queued })
	}
	if b.err != nil {
		return 0, b.err
	}
	b.changed.Broadcast()
	return len(p), nil
}

// Close waits until everything has been written to the destination, or the Buffer fails.
func (b *Buffer) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed, b.lastProgress = true, time.Now()
	b.changed.Broadcast()
	b.waitLocked(&b.lastProgress, b.flushedLocked)
	return b.err
}
