package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// read reads a file that the kernel returns with one read(2) if the buffer is large enough, as all cgroup files but the lists
// of processes: a read that does not fill the buffer was the last one. Package os is not used because these files can be polled:
// it would add each to the runtime's poller and remove it again, which costs three times what the reading does, and the kubelet
// asks for hundreds of files at a time. The contents are put into buffer if they fit.
func read(name string, buffer []byte) ([]byte, error) {
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
		if size += n; size < len(buffer) {
			return buffer[:size], nil
		}
		buffer = append(buffer, make([]byte, size)...)
	}
}

// Unlimited is the value of a limit of "max".
const Unlimited = ^uint64(0)

// ReadUint reads a file with one number, or "max" for Unlimited.
func ReadUint(dir, file string) (uint64, error) {
	data, err := read(dir+"/"+file, make([]byte, 64))
	if err != nil {
		return 0, err
	}
	text := string(bytes.TrimSpace(data))
	if text == "max" {
		return Unlimited, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s/%s: %w", dir, file, err)
	}
	return n, nil
}

// ReadKeyed reads a file with lines of a name and a number (flat keyed, as memory.stat), and returns the numbers of the given
// names. Values that are not numbers are left out.
func ReadKeyed(dir, file string, names ...string) (map[string]uint64, error) {
	data, err := read(dir+"/"+file, make([]byte, 4096))
	if err != nil {
		return nil, err
	}
	out := make(map[string]uint64, len(names))
	for line := range bytes.Lines(data) {
		name, number, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		i := slices.IndexFunc(names, func(s string) bool { return s == string(name) })
		if i < 0 {
			continue
		}
		if n, err := strconv.ParseUint(string(number), 10, 64); err == nil {
			out[names[i]] = n
		}
	}
	return out, nil
}

// A Pressure is how long tasks have waited for a resource (PSI, Documentation/accounting/psi.rst of Linux).
type Pressure struct {
	Avg10, Avg60, Avg300 float64 // % of the time
	Total                uint64  // nanoseconds
}

// ReadPressure reads the lines "some" and "full" of a pressure file of v2. Both are nil if the kernel does not have it, or has PSI
// disabled.
func ReadPressure(dir, file string) (some, full *Pressure, err error) {
	data, err := read(dir+"/"+file, make([]byte, 256))
	if errors.Is(err, fs.ErrNotExist) || err != nil && isUnsupported(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(data)) {
		kind, p, err := parsePressure(line)
		if err != nil {
			return nil, nil, fmt.Errorf("%s/%s: %w", dir, file, err)
		}
		switch kind {
		case "some":
			some = &p
		case "full":
			full = &p
		}
	}
	return some, full, nil
}

// parsePressure parses a line: some avg10=0.00 avg60=0.12 avg300=1.50 total=42.
func parsePressure(line string) (kind string, p Pressure, err error) {
	for field := range strings.FieldsSeq(line) {
		name, value, named := strings.Cut(field, "=")
		switch name {
		case "avg10":
			p.Avg10, err = strconv.ParseFloat(value, 64)
		case "avg60":
			p.Avg60, err = strconv.ParseFloat(value, 64)
		case "avg300":
			p.Avg300, err = strconv.ParseFloat(value, 64)
		case "total":
			p.Total, err = strconv.ParseUint(value, 10, 64)
			p.Total *= 1000 // the kernel counts microseconds
		default:
			if !named {
				kind = name
			}
		}
		if err != nil {
			return "", p, err
		}
	}
	return kind, p, nil
}

// isUnsupported reports whether the kernel has the file but does not support reading it.
func isUnsupported(err error) bool { return errors.Is(err, unix.EOPNOTSUPP) }
