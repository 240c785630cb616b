package exec

import (
	"context"
	"net"

	"golang.org/x/sys/unix"

	"berth/core/cache"
)

// OnDial has dial reach the ports of pods.
func (s *Service) OnDial(dial func() (net.Conn, error)) {
	s.dial = func(context.Context, *cache.Sandbox, int) (net.Conn, error) { return dial() }
}

// OnSignal has f told of the signals that processes are sent, instead of them.
func (s *Service) OnSignal(f func(id string, pid int, signal unix.Signal) error) { s.signal = f }

// LimitMemory limits what all sessions keep to n bytes.
func (s *Service) LimitMemory(n int64) { s.memory = newMemory(n) }

// MemoryIsFree reports whether nothing is taken of a limit of n bytes.
func (s *Service) MemoryIsFree(n int) bool { return s.memory.Take(n) }
