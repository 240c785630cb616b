package exec

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/semaphore"

	"berth/streaming"
)

const (
	// memoryLimit bounds the output that all sessions together keep in memory, in bytes: of
	// attach clients that read slowly, and of ExecSync responses that are not complete.
	memoryLimit = 96 << 20
	// memoryWaitTimeout is how long a session waits for its part of that.
	memoryWaitTimeout = 30 * time.Second
	// sessionMemory is the size of the buffers of a streamed session, in bytes.
	sessionMemory = 64 << 10
	// unaccountedMemory is how much an ExecSync keeps without counting it, in bytes, so that
	// probes, which print little, do not wait for commands that print much.
	unaccountedMemory = 16 << 10
	// maxChunk is how much a capturedStream allocates at a time, in bytes.
	maxChunk = 64 << 10
)

// memory bounds the output of all sessions that is kept in memory.
type memory struct {
	*streaming.Budget
	// overdraft admits one ExecSync for which the Budget has nothing left. It can always go on
	// until its output is complete or truncated, and then releases its memory; if all waited
	// for each other, none would.
	overdraft *semaphore.Weighted
}

func newMemory(limit int64) *memory {
	return &memory{streaming.NewBudget(limit), semaphore.NewWeighted(1)}
}

var errMemory = fmt.Errorf("the output of all execs and attaches takes more memory than berthd allows: %w", errdefs.ErrResourceExhausted)

// acquireSession waits for the memory of a streamed session.
func (m *memory) acquireSession(ctx context.Context) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, memoryWaitTimeout)
	defer cancel()
	if m.Acquire(ctx, sessionMemory) != nil {
		return nil, errMemory
	}
	return func() { m.Release(sessionMemory) }, nil
}

// A capture keeps the output of an ExecSync, truncated to what fits into a response. Each
// byte counts twice, because the response is a copy.
type capture struct {
	memory *memory
	ctx    context.Context //nolint:containedctx // of the call
	cancel context.CancelFunc

	mu          sync.Mutex // guards following
	left        int        // until the output is truncated
	unaccounted int        // left of unaccountedMemory
	acquired    int        // of the Budget
	overdrawn   bool       // has the overdraft
	failed      error
}

// newCapture returns an empty capture of at most limit bytes.
func (m *memory) newCapture(ctx context.Context, limit int) *capture {
	c := &capture{memory: m, left: limit, unaccounted: unaccountedMemory}
	c.ctx, c.cancel = context.WithCancel(ctx) // cancel ends a write that waits for memory
	return c
}

// err returns errMemory if the output could not be kept for lack of memory.
func (c *capture) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// release releases the memory. It must not be followed by writes.
func (c *capture) release() {
	c.cancel()
	c.memory.Release(c.acquired)
	if c.overdrawn {
		c.memory.overdraft.Release(1)
	}
}

// acquireLocked acquires the memory for n more bytes of output. It unlocks c.mu while it waits.
func (c *capture) acquireLocked(n int) error {
	if c.unaccounted >= n {
		c.unaccounted -= n
		return nil
	}
	if c.overdrawn {
		return nil
	}
	if c.memory.TryAcquire(2 * n) {
		c.acquired += 2 * n
		return nil
	}
	c.failed = errMemory // until the overdraft has been acquired
	ctx, cancel := context.WithTimeout(c.ctx, memoryWaitTimeout)
	defer cancel()
	c.mu.Unlock()
	err := c.memory.overdraft.Acquire(ctx, 1)
	c.mu.Lock()
	if err != nil {
		return c.failed
	}
	c.overdrawn, c.failed = true, nil
	return nil
}

// stream returns a new stream of the output.
func (c *capture) stream() *capturedStream { return &capturedStream{capture: c} }

// A capturedStream is stdout or stderr of a capture. After the limit, writes succeed and
// are dropped, so that the command does not block.
type capturedStream struct {
	capture *capture
	chunks  [][]byte
	size    int // of all chunks
}

// Write implements io.Writer. The error is errMemory.
func (s *capturedStream) Write(p []byte) (int, error) {
	s.capture.mu.Lock()
	defer s.capture.mu.Unlock()
	written := len(p)
	p = p[:min(s.capture.left, len(p))]
	s.capture.left -= len(p)
	s.size += len(p)
	for len(p) > 0 {
		last := len(s.chunks) - 1
		if last < 0 || len(s.chunks[last]) == cap(s.chunks[last]) {
			// As much as there is already: most commands print little.
			size := min(max(s.size-len(p), len(p), 512), maxChunk)
			if err := s.capture.acquireLocked(size); err != nil {
				return 0, err
			}
			s.chunks = append(s.chunks, make([]byte, 0, size))
			last++
		}
		n := min(len(p), cap(s.chunks[last])-len(s.chunks[last]))
		s.chunks[last] = append(s.chunks[last], p[:n]...)
		p = p[n:]
	}
	return written, nil
}

// bytes returns the output. It may be called once, after the last write.
func (s *capturedStream) bytes() []byte {
	if len(s.chunks) == 1 {
		return s.chunks[0]
	}
	all := make([]byte, 0, s.size)
	for i, chunk := range s.chunks {
		all = append(all, chunk...)
		s.chunks[i] = nil
	}
	return all
}
