package exec

import (
	"context"
	"net"

	"golang.org/x/sys/unix"

	"berth/core/cache"
)

// SetDial replaces how ports of pods are dialled.
func (s *Service) SetDial(dial func() (net.Conn, error)) {
	s.dial = func(context.Context, *cache.Sandbox, int) (net.Conn, error) { return dial() }
}

// SetSignal has signals passed to f instead of to processes.
func (s *Service) SetSignal(f func(id string, pid int, signal unix.Signal) error) { s.signal = f }

// LimitMemory replaces memoryLimit.
func (s *Service) LimitMemory(n int64) { s.memory = newMemory(n) }

// MemoryIsFree reports whether all of a limit of n bytes is available.
func (s *Service) MemoryIsFree(n int) bool { return s.memory.TryAcquire(n) }

// ErrProcessEnded is the error of a signal to a process that has ended.
var ErrProcessEnded = errProcessEnded
