package cgroup

import (
	"bytes"
	"errors"
	"io/fs"
	"strconv"
	"strings"

	"berth/core/kernelfile"
)

// A DeviceIO is the I/O of a cgroup on one block device.
type DeviceIO struct {
	Major, Minor string
	// Bytes and Requests are by operation: Read, Write, Discard, and on v1 what else the kernel reports.
	Bytes, Requests map[string]uint64
}

// ReadDeviceIO returns the I/O of g on block devices, in the order of the kernel. It is empty if the kernel does not count it.
func ReadDeviceIO(g Group) ([]DeviceIO, error) {
	if g.V2 != "" {
		data, err := kernelfile.ReadOnce(g.V2+"/io.stat", make([]byte, 4096))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return devicesV2(data), err
	}
	dir, ok := g.V1["blkio"]
	if !ok {
		return nil, nil
	}
	var list devices
	for file, counters := range map[string]func(*DeviceIO) map[string]uint64{
		"blkio.throttle.io_service_bytes": func(d *DeviceIO) map[string]uint64 { return d.Bytes },
		"blkio.throttle.io_serviced":      func(d *DeviceIO) map[string]uint64 { return d.Requests },
	} {
		// Includes cgroups below. Older kernels have counters of the cgroup alone.
		data, err := kernelfile.ReadOnce(dir+"/"+file+"_recursive", make([]byte, 4096))
		if errors.Is(err, fs.ErrNotExist) {
			data, err = kernelfile.ReadOnce(dir+"/"+file, make([]byte, 4096))
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(data) {
			fields := strings.Fields(string(line)) // 8:0 Read 123
			if len(fields) != 3 {
				continue // the total, which has no device
			}
			if n, err := strconv.ParseUint(fields[2], 10, 64); err == nil {
				counters(list.device(fields[0]))[fields[1]] = n
			}
		}
	}
	return list, nil
}

// devicesV2 parses io.stat: 8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6.
func devicesV2(data []byte) []DeviceIO {
	var list devices
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			continue // a device without counters, as one that was removed
		}
		d := list.device(fields[0])
		for _, f := range fields[1:] {
			key, value, _ := strings.Cut(f, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				continue
			}
			switch key {
			case "rbytes":
				d.Bytes["Read"] = n
			case "wbytes":
				d.Bytes["Write"] = n
			case "dbytes":
				d.Bytes["Discard"] = n
			case "rios":
				d.Requests["Read"] = n
			case "wios":
				d.Requests["Write"] = n
			case "dios":
				d.Requests["Discard"] = n
			}
		}
	}
	return list
}

type devices []DeviceIO

// device returns the device with the number MAJOR:MINOR, which is added if need be.
func (list *devices) device(number string) *DeviceIO {
	major, minor, _ := strings.Cut(number, ":")
	for i := range *list {
		if d := &(*list)[i]; d.Major == major && d.Minor == minor {
			return d
		}
	}
	*list = append(*list, DeviceIO{Major: major, Minor: minor, Bytes: map[string]uint64{}, Requests: map[string]uint64{}})
	return &(*list)[len(*list)-1]
}
