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
	// memoryLimit is what all sessions together may keep of output that nobody has
	// taken yet, in bytes: clients of attach that are slow, and answers of ExecSync
	// that are not complete.
	memoryLimit = 96 << 20
	// memoryWait is how long a session waits for its part of that.
	memoryWait = 30 * time.Second
	// sessionMemory is what the buffers of a streamed session come to, in bytes.
	sessionMemory = 64 << 10
	// freeMemory is what an ExecSync needs none of the limit for, in bytes, so that
	// probes, which say little, are not held up by what others print.
	freeMemory = 16 << 10
)

// memory is what the output of all sessions is kept in.
type memory struct {
	*streaming.Budget
	// last is for one ExecSync that the Budget has nothing left for. It is sure to
	// get as far as an answer can be, and gives back what it has then; if all of them
	// waited for each other, none would.
	last *semaphore.Weighted
}

func newMemory(limit int64) *memory {
	return &memory{streaming.NewBudget(limit), semaphore.NewWeighted(1)}
}

var errMemory = fmt.Errorf("the output of all execs and attaches takes more memory than berthd allows: %w", errdefs.ErrResourceExhausted)

// admit waits for the memory of a streamed session.
func (m *memory) admit(ctx context.Context) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, memoryWait)
	defer cancel()
	if m.Wait(ctx, sessionMemory) != nil {
		return nil, errMemory
	}
	return func() { m.Return(sessionMemory) }, nil
}

// kept is the output of an ExecSync as far as it fits into an answer. It is put
// together in the end, so each byte of it counts twice.
type kept struct {
	memory *memory
	ctx    context.Context //nolint:containedctx // of the call
	cancel context.CancelFunc

	mu     sync.Mutex // guards following
	room   int        // in the answer
	free   int        // of freeMemory
	taken  int        // of the Budget
	isLast bool
	failed error
}

// keep returns an empty output, of which room bytes are kept.
func (m *memory) keep(ctx context.Context, room int) *kept {
	k := &kept{memory: m, room: room, free: freeMemory}
	k.ctx, k.cancel = context.WithCancel(ctx)
	return k
}

// stop ends a write that waits for memory.
func (k *kept) stop() { k.cancel() }

// err returns why the output could not be kept; nil if it was not for memory.
func (k *kept) err() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failed
}

// release gives the memory back. Nothing may be written any more.
func (k *kept) release() {
	k.cancel()
	k.memory.Return(k.taken)
	if k.isLast {
		k.memory.last.Release(1)
	}
}

// reserve has n bytes more be kept, now or in a while.
func (k *kept) reserve(n int) error {
	if k.free >= n {
		k.free -= n
		return nil
	}
	if k.isLast {
		return nil
	}
	if k.memory.Take(2 * n) {
		k.taken += 2 * n
		return nil
	}
	k.failed = errMemory // unless it is had in time
	ctx, cancel := context.WithTimeout(k.ctx, memoryWait)
	defer cancel()
	k.mu.Unlock()
	err := k.memory.last.Acquire(ctx, 1)
	k.mu.Lock()
	if err != nil {
		return k.failed
	}
	k.isLast, k.failed = true, nil
	return nil
}

// stream returns one of the streams of the output.
func (k *kept) stream() *stream { return &stream{kept: k} }

// A stream keeps what is written to it while there is room, and takes the rest
// without keeping it, so that the command is not held up.
type stream struct {
	kept   *kept
	pieces [][]byte
	size   int
}

// maxPiece is how much a stream takes of the memory at a time, in bytes.
const maxPiece = 64 << 10

// Write is of io.Writer.
func (s *stream) Write(p []byte) (int, error) {
	s.kept.mu.Lock()
	defer s.kept.mu.Unlock()
	all := len(p)
	p = p[:min(s.kept.room, len(p))]
	s.kept.room -= len(p)
	s.size += len(p)
	for len(p) > 0 {
		last := len(s.pieces) - 1
		if last < 0 || len(s.pieces[last]) == cap(s.pieces[last]) {
			// Twice what there is, for most say little.
			size := min(max(s.size-len(p), len(p), 512), maxPiece)
			if err := s.kept.reserve(size); err != nil {
				return 0, err
			}
			s.pieces = append(s.pieces, make([]byte, 0, size))
			last++
		}
		n := min(len(p), cap(s.pieces[last])-len(s.pieces[last]))
		s.pieces[last] = append(s.pieces[last], p[:n]...)
		p = p[n:]
	}
	return all, nil
}

// bytes returns all that was kept.
func (s *stream) bytes() []byte {
	if len(s.pieces) == 1 {
		return s.pieces[0]
	}
	all := make([]byte, 0, s.size)
	for i, piece := range s.pieces {
		all = append(all, piece...)
		s.pieces[i] = nil
	}
	return all
}
