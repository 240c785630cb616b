// Package pending keeps objects that were created after the deadline of the caller that requested
// them, until that caller retries.
//
// On a slow disk Docker may take longer to create something than the kubelet waits for it. The kubelet
// then sends the same request again. If the object were removed, the retry would take as long and fail
// as well; if it were kept and shown, the kubelet would find an object whose ID it has never received.
// So the creation continues (Caller distinguishes a deadline from a cancellation), the result is put into a
// Store under the name of the request, and Take returns it to the retry. An object that no retry claims
// within TTL is removed.
//
// The contents of a Store do not survive a restart of the daemon: the objects are visible then, and
// the kubelet removes those that it does not know. The pattern is that of CRI-O's internal/resourcestore.
package pending

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// TTL is how long an object is kept for a retry: twice the five minutes within which the kubelet
	// sends a request again.
	TTL = 10 * time.Minute
	// expireInterval is how often a Store looks for objects older than TTL.
	expireInterval = TTL / 10
)

// A Config is what a Store needs; all fields are required. T is what the owner wants to know of an
// object when it takes or removes it: the request that it was created for, above all.
type Config[T any] struct {
	// Kind is what log messages call the objects, as "container".
	Kind string
	// Lock serializes what happens under one key. Put and Take must be called by the holder of the key's
	// lock, Expire takes it itself.
	Lock func(ctx context.Context, key string) (unlock func(), err error)
	// Remove removes an object that no retry has asked for. It is called again later if it fails.
	Remove func(ctx context.Context, id string, object T) error
	Log    *slog.Logger
}

// A Store keeps objects by key. Use New.
type Store[T any] struct {
	Config[T]

	mu      sync.Mutex // guards entries
	entries map[string]entry[T]
}

type entry[T any] struct {
	id     string
	object T
	since  time.Time
}

// New returns an empty Store.
func New[T any](cfg Config[T]) *Store[T] {
	return &Store[T]{Config: cfg, entries: map[string]entry[T]{}}
}

// Put keeps the object id for the caller that asks for key again.
func (s *Store[T]) Put(key, id string, object T) {
	s.Log.Info("created after the deadline of its caller; kept for the retry", slog.String("kind", s.Kind), slog.String(s.Kind, id), slog.String("name", key))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[key] = entry[T]{id, object, time.Now()}
}

// Take returns the object that was kept under key, if there is one, and forgets it. The caller has to
// make sure that the object still exists and is what it wants.
func (s *Store[T]) Take(key string) (id string, object T, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[key]
	delete(s.entries, key)
	return e.id, e.object, ok
}

// Run removes what has been kept for longer than TTL, until ctx ends. It returns nil.
func (s *Store[T]) Run(ctx context.Context) error {
	ticker := time.NewTicker(expireInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			s.Expire(ctx, now.Add(-TTL))
		}
	}
}

// Expire removes the objects that were put before cutoff. Those that cannot be removed are logged and
// stay for the next time.
func (s *Store[T]) Expire(ctx context.Context, cutoff time.Time) {
	s.mu.Lock()
	expired := map[string]string{}
	for key, e := range s.entries {
		if e.since.Before(cutoff) {
			expired[key] = e.id
		}
	}
	s.mu.Unlock()
	for key, id := range expired {
		if err := s.remove(ctx, key, id); err != nil {
			s.Log.Warn("cannot remove an object that no retry has claimed; retrying", slog.String("kind", s.Kind), slog.String(s.Kind, id), slog.Any("err", err))
		}
	}
}

// remove removes the object id, unless it has been taken meanwhile.
func (s *Store[T]) remove(ctx context.Context, key, id string) error {
	unlock, err := s.Lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	s.mu.Lock()
	e, ok := s.entries[key]
	s.mu.Unlock()
	if !ok || e.id != id {
		return nil
	}
	if err := s.Remove(ctx, id, e.object); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.entries, key)
	s.mu.Unlock()
	return nil
}
