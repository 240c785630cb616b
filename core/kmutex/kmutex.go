// Package kmutex is a mutex by key: callers with the same key exclude each other, and
// callers with different keys do not wait for each other.
//
// Unlike containerd's internal/kmutex it has a TryLock, and Lock returns the function
// that unlocks.
package kmutex

import (
	"context"
	"sync"
)

// A Mutex is a set of locks by key. The zero Mutex is ready to use. It keeps memory only
// for keys that are locked.
type Mutex struct {
	mu    sync.Mutex // guards locks
	locks map[string]*lock
}

// A lock is that of one key.
type lock struct {
	token chan struct{} // has one element while the key is not locked
	users int           // that have the lock or wait for it
}

// Lock waits until the lock of key is free, takes it and returns the function that releases
// it, which can be called more than once. The only error is that of ctx, if it ends first.
func (m *Mutex) Lock(ctx context.Context, key string) (unlock func(), err error) {
	l := m.ref(key)
	select {
	case <-l.token:
		return m.unlocker(key, l), nil
	case <-ctx.Done():
		m.unref(key, l)
		return nil, ctx.Err()
	}
}

// TryLock is Lock without waiting: ok is false if the key is locked.
func (m *Mutex) TryLock(key string) (unlock func(), ok bool) {
	l := m.ref(key)
	select {
	case <-l.token:
		return m.unlocker(key, l), true
	default:
		m.unref(key, l)
		return nil, false
	}
}

// unlocker returns the function that releases the lock l of key.
func (m *Mutex) unlocker(key string, l *lock) (unlock func()) {
	return sync.OnceFunc(func() { l.token <- struct{}{}; m.unref(key, l) })
}

// ref adds a user to the lock of key, and creates the lock if there is none.
func (m *Mutex) ref(key string) *lock {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locks == nil {
		m.locks = map[string]*lock{}
	}
	l := m.locks[key]
	if l == nil {
		l = &lock{token: make(chan struct{}, 1)}
		l.token <- struct{}{}
		m.locks[key] = l
	}
	l.users++
	return l
}

// unref removes a user from the lock l of key, and deletes the lock after the last one.
func (m *Mutex) unref(key string, l *lock) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(m.locks, key)
	}
}
