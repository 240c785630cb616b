// Package broadcast sends messages to any number of subscribers without waiting for them.
//
// Its type is Broadcaster. Every subscriber has a bounded queue of its own: a slow one
// loses its oldest messages and delays neither the sender nor the others.
package broadcast

import (
	"context"
	"sync"
)

// MaxPending bounds the queue of a subscriber. Of more messages the oldest are dropped.
const MaxPending = 4096

// A Broadcaster sends messages to its subscribers. The zero Broadcaster has none. Its
// methods may be called from several goroutines.
type Broadcaster[T any] struct {
	mu          sync.Mutex // guards subscribers
	subscribers map[*subscriber[T]]bool
}

// A subscriber is the queue of one call of Subscribe.
type subscriber[T any] struct {
	mu      sync.Mutex // guards pending and dropped
	pending []T
	dropped int
	wake    chan struct{} // has an element if pending may not be empty
}

// HasSubscribers reports whether anybody would receive a message.
func (b *Broadcaster[T]) HasSubscribers() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subscribers) > 0
}

// Send queues a message for every subscriber. It never blocks.
func (b *Broadcaster[T]) Send(message T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subscribers {
		s.push(message)
	}
}

// Subscribe calls receive for every message that is sent from now on, in order, until ctx
// ends or receive fails, and returns that error. It calls dropped with the number of
// messages that were lost because receive was too slow.
func (b *Broadcaster[T]) Subscribe(ctx context.Context, receive func(T) error, dropped func(n int)) error {
	s := &subscriber[T]{wake: make(chan struct{}, 1)}
	b.mu.Lock()
	if b.subscribers == nil {
		b.subscribers = map[*subscriber[T]]bool{}
	}
	b.subscribers[s] = true
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subscribers, s)
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		}
		messages, lost := s.drain()
		if lost > 0 {
			dropped(lost)
		}
		for _, m := range messages {
			if err := receive(m); err != nil {
				return err
			}
		}
	}
}

// push appends a message to the queue.
func (s *subscriber[T]) push(message T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) >= MaxPending {
		s.pending = s.pending[1:]
		s.dropped++
	}
	s.pending = append(s.pending, message)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// drain empties the queue and returns its messages, and how many have been dropped since
// the last drain.
func (s *subscriber[T]) drain() (messages []T, dropped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	messages, dropped = s.pending, s.dropped
	s.pending, s.dropped = nil, 0
	return messages, dropped
}
