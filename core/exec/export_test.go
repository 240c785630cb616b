package exec

import "golang.org/x/sys/unix"

// OnSignal has f told of the signals that processes are sent, instead of them.
func (s *Service) OnSignal(f func(id string, pid int, signal unix.Signal) error) { s.signal = f }
