package daemon

import "sync/atomic"

// A setting is an option that can be changed while the services that use it run.
type setting[T any] struct{ value atomic.Pointer[T] }

func newSetting[T any](value T) *setting[T] {
	s := &setting[T]{}
	s.set(value)
	return s
}

func (s *setting[T]) get() T      { return *s.value.Load() }
func (s *setting[T]) set(value T) { s.value.Store(&value) }

// SetPauseImage changes the image of new sandboxes.
func (d *Daemon) SetPauseImage(ref string) { d.pauseImage.set(ref) }
