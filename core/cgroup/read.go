package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth/core/kernelfile"
)

// bufferSize is that of the buffers for files: memory.stat has less than 2 KiB.
const bufferSize = 4096

// buffers are for the contents of files, which are parsed at once.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// withFile calls parse with the contents of a file, which are valid during the call only.
func withFile(dir, file string, parse func(data []byte) error) error {
	buffer := buffers.Get().(*[bufferSize]byte) //nolint:forcetypeassert // the pool has no others
	defer buffers.Put(buffer)
	data, err := kernelfile.ReadOnce(dir+"/"+file, buffer[:])
	if err != nil {
		return err
	}
	return parse(data)
}

// Unlimited is the value of a limit of "max".
const Unlimited = ^uint64(0)

// ReadUint reads a file with one number, or "max" for Unlimited.
func ReadUint(dir, file string) (n uint64, err error) {
	err = withFile(dir, file, func(data []byte) error {
		data = bytes.TrimSpace(data)
		if string(data) == "max" {
			n = Unlimited
			return nil
		}
		if n, err = strconv.ParseUint(string(data), 10, 64); err != nil {
			return fmt.Errorf("%s/%s: %w", dir, file, err)
		}
		return nil
	})
	return n, err
}

// ReadKeyed is ReadNumbers with a map as its result.
func ReadKeyed(dir, file string, names ...string) (map[string]uint64, error) {
	values := make([]uint64, len(names))
	found, err := ReadNumbers(dir, file, names, values)
	if err != nil {
		return nil, err
	}
	out := make(map[string]uint64, len(names))
	for i, name := range names {
		if found&(1<<i) != 0 {
			out[name] = values[i]
		}
	}
	return out, nil
}

// ReadNumbers reads a file with lines of a name and a number (flat keyed, as memory.stat), and sets values to the numbers of the
// names, at most 64, in their order. A value that is not in the file, or not a number, stays as it is. Bit i of found is set if
// values[i] was.
func ReadNumbers(dir, file string, names []string, values []uint64) (found uint64, err error) {
	err = withFile(dir, file, func(data []byte) error {
		for line := range bytes.Lines(data) {
			name, number, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
			for i := range names {
				if names[i] != string(name) {
					continue
				}
				if n, err := strconv.ParseUint(string(number), 10, 64); err == nil {
					values[i] = n
					found |= 1 << i
				}
				break
			}
		}
		return nil
	})
	return found, err
}

// A Pressure is how long tasks have waited for a resource (PSI, Documentation/accounting/psi.rst of Linux).
type Pressure struct {
	Avg10, Avg60, Avg300 float64 // % of the time
	Total                uint64  // nanoseconds
}

// ReadPressure reads the lines "some" and "full" of a pressure file of v2. Both are nil if the kernel does not have it, or has PSI
// disabled.
func ReadPressure(dir, file string) (some, full *Pressure, err error) {
	err = withFile(dir, file, func(data []byte) error {
		for line := range bytes.Lines(data) {
			kind, p, err := parsePressure(string(line))
			if err != nil {
				return fmt.Errorf("%s/%s: %w", dir, file, err)
			}
			switch kind {
			case "some":
				some = &p
			case "full":
				full = &p
			}
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) || err != nil && isUnsupported(err) {
		return nil, nil, nil
	}
	return some, full, err
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
