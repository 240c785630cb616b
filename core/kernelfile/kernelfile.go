// Package kernelfile reads small files that the kernel makes, of cgroups and of processes.
//
// Package os is not used because some of these files can be polled: it would add each to the runtime's poller and remove it again, which
// costs three times what the reading does, and the kubelet requests hundreds of files at a time.
package kernelfile

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Read reads a file until its end, into buffer if it fits.
func Read(name string, buffer []byte) ([]byte, error) { return read(name, buffer, false) }

// ReadOnce reads a file that the kernel returns with one read(2) if the buffer is large enough, as all cgroup files but the lists of
// processes: a read that does not fill the buffer was the last one. The contents are put into buffer if they fit.
func ReadOnce(name string, buffer []byte) ([]byte, error) { return read(name, buffer, true) }

func read(name string, buffer []byte, once bool) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	for size := 0; ; {
		n, err := unix.Read(fd, buffer[size:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		}
		if size += n; n == 0 || once && size < len(buffer) {
			return buffer[:size], nil
		}
		if size == len(buffer) {
			buffer = append(buffer, make([]byte, size)...)
		}
	}
}
